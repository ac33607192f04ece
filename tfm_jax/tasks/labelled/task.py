"""`LabelledTask`: what all tasks on labelled examples share. A task adds reading, rows and predictions."""

import abc
import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from tfm_jax.data.config import DataConfig, eval_key
from tfm_jax.data.prepare import find_tokenizer, vocabulary_of
from tfm_jax.errors import UserError
from tfm_jax.models.config import replaced
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.groups import grouped
from tfm_jax.models.model import Model, labelled_fields
from tfm_jax.objectives.objective import Fields, along_row
from tfm_jax.ops.losses import LossTerms
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.tasks.labelled.augmentation import Augmentation
from tfm_jax.tasks.labelled.rows import RowBatches, Rows, lengths_of
from tfm_jax.tasks.scores import score, signatures
from tfm_jax.text.corpora.corpus import Corpus, Counts
from tfm_jax.text.corpora.files import check_split, content_fingerprint, counted, find_text_files
from tfm_jax.text.corpora.held_out import is_held_out
from tfm_jax.text.examples.tables import Table
from tfm_jax.text.tfds import TfdsSplit, open_data, open_splits
from tfm_jax.text.tokenizers.table import Tokenizer
from tfm_jax.training.config import Config
from tfm_jax.training.loss import LossFunction, make_loss
from tfm_jax.training.task import Batch, EvalStream, Predictions

log = logging.getLogger(__name__)

E = TypeVar("E")
Outputs = Mapping[str, Any]
Prediction = dict[str, Any]

# Keys of the task that reading does not depend on.
_UNREAD: dict[str, Any] = {"texts": 0, "no_answer": False, "scale": 1.0}
SOURCE = "files"
"""`data.source` of tasks unless it is tfds: the files at `data.path`, whose form their endings and the task tell."""


class LabelledTask(abc.ABC, Generic[E]):
  """Base class of tasks that learn from labelled examples: everything of `training.task.Task`.

  Args:
    config: the resolved configuration, after `configure`.
    stored_tokenizer: the folder of the tokenizer of this run, or of the run that it starts from; None: it is read from
      `tokenizer.path`, or trained on the training examples.

  Raises:
    UserError: a mistake in the data (file and line are named), or a tokenizer without an end symbol.
  """

  form: ClassVar[str]
  """What predictions look like: classes, numbers, tags, answers or texts; see `tasks.scores`."""
  head_name: ClassVar[str]
  """The prediction head, see `models.heads.table`."""
  predicts: ClassVar[bool] = True

  # What a task adds.

  @classmethod
  def form_of(cls, config: Config) -> str:
    """The form of what it predicts with this configuration. Raises UserError."""
    return cls.form

  @classmethod
  def files(cls, path: str, target_path: str, key: str) -> list[Path]:
    """The files of examples that `key` ("data.path", "data.eval_path" or "--data") names. Raises UserError.

    `target_path`: files that belong to them line by line; only tasks that generate have such.
    """
    return find_text_files(path, key, any_ending=True)

  @classmethod
  @abc.abstractmethod
  def read(cls, config: Config, files: Sequence[Table], labelled: bool, counts: Counts) -> list[E]:
    """The examples of files, or of splits of TFDS.

    Args:
      config: the configuration.
      files: what is read.
      labelled: whether each example must have a label.
      counts: what was left out or repaired is added.
    """

  @classmethod
  @abc.abstractmethod
  def head(cls, config: Config, examples: Sequence[E]) -> dict[str, Any]:
    """The keys of the head ("head.name", ...) that follow from the training examples."""

  @classmethod
  def task_keys(cls, examples: Sequence[E]) -> dict[str, Any]:
    """The keys of the section `task` that follow from the training examples."""
    return {}

  @classmethod
  @abc.abstractmethod
  def texts(cls, example: E) -> Sequence[str]:
    """The texts of an example; the first is the one that it shares with others, see `shared`."""

  @classmethod
  def shared(cls, example: E) -> str:
    """The text that decides whether an example is held out: examples that share it are so together."""
    return cls.texts(example)[0]

  @classmethod
  def corpus(cls, examples: Sequence[E]) -> Iterable[str]:
    """The texts of training examples that a tokenizer is trained on."""
    return (text for example in examples for text in cls.texts(example))

  @abc.abstractmethod
  def rows(self, examples: Sequence[E]) -> Rows:
    """The rows of examples. Those without labels have weight 0."""

  @abc.abstractmethod
  def predictions(self, examples: Sequence[E], rows: Rows, outputs: Mapping[int, Outputs]) -> list[Prediction]:
    """What the model predicts for each example, as in predictions.jsonl; see `tasks.scores` for the forms.

    Args:
      examples: the examples.
      rows: their rows.
      outputs: row -> the head's prediction for it. Where rows are missing, their examples are left out.
    """

  def scores(self, predictions: Sequence[Prediction], intervals: bool = True) -> dict[str, float]:
    """The scores of predictions, see `tasks.scores`."""
    return score(self.form, predictions, intervals)

  def training_rows(self, rows: Rows) -> Rows:
    """The rows with the weights that they have in training. Raises UserError for weights that the task cannot have."""
    if self.config.task.class_weights:
      raise UserError(
        f"task.class_weights is for tasks with one class per example, and task.name={self.config.task.name} is none: "
        f"leave it empty"
      )
    return rows

  # `Task`.

  @classmethod
  def configure(cls, config: Config) -> Config:
    """Sets the head, with the classes of the data at `data.path`. Raises UserError."""
    data = config.data
    if data.source == "tfds":
      _, held_out_split = open_splits(data.path, data.split, data.eval_split)
      # Configurations of tasks name files by default.
      data = dataclasses.replace(data, eval_path="", eval_split=held_out_split.split if held_out_split else "")
    else:
      data = dataclasses.replace(data, source=SOURCE)
    config = dataclasses.replace(config, data=data)
    train, held_out = cls.split(config)
    head = cls.head(config, train if data.eval_path or data.eval_split else [*train, *held_out])
    if find_family(config.family).causal and config.model.head.pooling == "first":
      head.setdefault("head.pooling", "last")  # the first token of a causal model knows nothing of the others
    task = dataclasses.replace(config.task, **cls.task_keys(train))
    return dataclasses.replace(config, model=replaced(config.model, head), task=task)

  def __init__(self, config: Config, stored_tokenizer: epath.PathLike | None = None) -> None:
    counts: Counts = {}
    train, held_out = self.split(config, counts)
    tables, eval_tables = self._tables(config.data)
    files, eval_files = _files(tables), _files(eval_tables)
    settings: list[Any] = [config.task.name, config.task.text, config.task.pair, config.task.label, config.data.errors]
    settings += [] if eval_tables else [config.data.eval_fraction]
    settings += [table.split for table in [*tables, *eval_tables] if isinstance(table, TfdsSplit)]
    settings += filter(None, (config.task.prefix, config.task.source_task))
    fingerprint = content_fingerprint(settings, [files, eval_files])
    corpus = Corpus(
      name=config.data.source,
      description=f"{config.data.path}: {counted(files, 'file')}",
      fingerprint=fingerprint,
      read=lambda part, _: ((text,) for text in self.corpus(train)),
    )
    self._set(config, find_tokenizer(config.tokenizer, corpus, stored_tokenizer))
    self.fingerprints = {"data": fingerprint, "tokenizer": self.tokenizer.fingerprint}
    rows = self.rows(train)
    augment = Augmentation(config.task.hide, config.task.hide_spans, config.task.swap, self.vocabulary)
    if augment.swap and (self.form in ("tags", "answers") or self.head_name == "lm"):
      raise UserError(
        f"task.swap={augment.swap:g} would move tokens away from their labels: task.name={config.task.name}"
      )
    self._train = self._batches(self.training_rows(rows), shuffle=True, augment=augment)
    self.num_rows = self._train.num_rows
    self.fields = self._fields(rows)
    self._examples = held_out
    self._held_out_rows = self.rows(held_out) if held_out else None
    self._eval = None
    if self._held_out_rows is not None:
      self._eval = self._batches(self._held_out_rows, limit=config.eval.batches)
    self._log(train, rows, counts)

  @classmethod
  def of_run(cls, config: Config, tokenizer: Tokenizer) -> Self:
    """The task of a trained model, for `predict`: it reads no training data. Raises UserError."""
    task = cls.__new__(cls)
    task._set(config, tokenizer)
    return task

  def _set(self, config: Config, tokenizer: Tokenizer) -> None:
    """What rows and predictions need."""
    self.config, self.tokenizer, self.vocabulary = config, tokenizer, vocabulary_of(tokenizer)
    self.lengths = lengths_of(config.data.seq_len, config.data.buckets)
    if self.vocabulary.eos_id < 0:
      raise UserError(f"task.name={config.task.name} needs an end symbol, and this tokenizer has none")

  @classmethod
  def split(cls, config: Config, counts: Counts | None = None) -> tuple[list[E], list[E]]:
    """The training and the held-out examples. Raises UserError."""
    counts = {} if counts is None else counts
    check_split(config.data.eval_fraction, config.data.errors)
    tables, eval_tables = cls._tables(config.data)
    examples = cls._read(config, tables, True, counts)
    if eval_tables:
      return examples, cls._read(config, eval_tables, False, counts)
    parts: tuple[list[E], list[E]] = ([], [])
    for example in examples:
      parts[is_held_out(cls.shared(example), config.data.eval_fraction)].append(example)
    if not parts[0]:
      raise UserError(f"data.eval_fraction={config.data.eval_fraction:g} leaves no example of {config.data.path}")
    return parts

  @classmethod
  def named(cls, config: Config, data: str, targets: str, key: str) -> list[Table]:
    """What `key` ("--data") names: files, or a split of the data set in TFDS of the run. Raises UserError."""
    if config.data.source == "tfds":
      try:
        return [open_data(config.data.path).split(data, key)]  # also where a file has the name of a split
      except UserError:
        if not Path(data).expanduser().exists():
          raise
    return [*cls.files(data, targets, key)]

  @classmethod
  def _tables(cls, data: DataConfig) -> tuple[list[Table], list[Table]]:
    """What is trained on, and what is held out if the settings name anything."""
    if data.source == "tfds":
      train, held_out = open_splits(data.path, data.split, data.eval_split)
      return [train], [held_out] if held_out else []
    files = cls.files(data.path, data.target_path, "data.path")
    eval_files = cls.files(data.eval_path, data.eval_target_path, "data.eval_path") if data.eval_path else []
    return [*files], [*eval_files]

  @classmethod
  def _read(cls, config: Config, tables: list[Table], labelled: bool, counts: Counts) -> list[E]:
    stamps = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in _files(tables))
    # `configure` and the task read the same data: what `configure` changes is no part of the key.
    same = dataclasses.replace(config, model=Config().model, task=dataclasses.replace(config.task, **_UNREAD))
    examples, found = _examples(cls, labelled, tuple(tables), stamps, same)
    for name, count in found.items():
      counts[name] = counts.get(name, 0) + count
    return list(examples)

  def train_batches(self, start: int, stop: int, rows: np.ndarray | None) -> Iterator[tuple[int, Batch]]:
    """See `Task`."""
    return ((step, self._train.batch(step, rows)) for step in range(start, stop))

  @property
  def eval_streams(self) -> dict[str, EvalStream]:
    """See `Task`."""
    held_out = self._eval
    if held_out is None:
      return {}
    return {"eval": lambda rows: (held_out.batch(step, rows) for step in range(held_out.num_batches))}

  def loss(self, model: Model) -> LossFunction:
    """See `Task`."""
    return make_loss(model, self.config.loss)

  def eval_metrics(self, split: str, totals: LossTerms, predictions: Predictions) -> dict[str, float]:
    """The scores of the held-out examples, see `tasks.scores`."""
    assert self._eval is not None and self._held_out_rows is not None
    outputs = _by_row(self._eval, predictions)
    found = self.predictions(self._examples, self._held_out_rows, outputs)
    return self.scores(found, intervals=False)

  def report(self, model: Model, params: Any, metrics: Mapping[str, float], run: RunDirectory) -> list[str]:
    """Writes the predictions for all held-out examples; the lines have their scores."""
    if not self._examples:
      data = self.config.data
      return [f"nothing is held out: set {eval_key(data)}, or data.eval_fraction (now {data.eval_fraction:g})"]
    found = self.predict(model, params, self._examples)
    run.write_predictions(found)
    said = [f"{name}: {text}" for name, text in signatures(self.form, found).items()]
    return [*score_lines(self.scores(found)), *said, f"every prediction: {run.predictions}"]

  # Evaluation.

  def predict(self, model: Model, params: Any, examples: Sequence[E]) -> list[Prediction]:
    """The predictions for examples, in their order. All processes call it."""
    rows = self.rows(examples)
    return self.predictions(examples, rows, self.outputs(model, params, rows))

  def outputs(self, model: Model, params: Any, rows: Rows) -> dict[int, Outputs]:
    """Row -> what the model's head predicts for it. All processes call it."""
    batches = self._batches(rows)
    predict = jax.jit(model.predict, out_shardings=model.placement.replicated)
    with tqdm(batches.batches(), "predicting", batches.num_batches, unit="batch", delay=5, disable=None) as steps:
      return _by_row(batches, [jax.device_get(predict(params, batch)) for batch in steps])

  def _batches(self, rows: Rows, shuffle: bool = False, **options: Any) -> RowBatches:
    """The batches of rows: of training with `shuffle`. Further options: see `RowBatches`."""
    size, seed = self.config.train.batch_size, self.config.seed
    return RowBatches(rows, size, seed, self.lengths, shuffle, pad=self.vocabulary.pad_id, **options)

  def _fields(self, rows: Rows) -> Fields:
    """What the model and its head read, and token types where rows have them."""
    config = self.config
    size = config.model.vocab_size or self.tokenizer.vocab_size
    fields = labelled_fields(config.family, config.model, config.data.seq_len, size)
    if rows.types is not None:
      types = along_row(config.data.seq_len, "types", config.model.token_types)
      fields["token_types"] = grouped(types, rows.members) if rows.members > 1 else types
    return fields

  def _log(self, train: Sequence[E], rows: Rows, counts: Counts) -> None:
    held_out = "none" if self._held_out_rows is None else f"{len(self._examples):,}"
    log.info("%s: %s examples to train on, %s held out", self.config.task.name, f"{len(train):,}", held_out)
    log.info("batches of %s tokens per row; %.0f %% of the positions hold text", self.lengths, 100 * self._train.fill())
    for name, count in counts.items():
      if count:
        log.info("%s: %s", name, f"{count:,}")
    if rows.truncated:
      log.warning(
        "%s texts are longer than data.seq_len=%d and were cut", f"{rows.truncated:,}", self.config.data.seq_len
      )


def score_lines(scores: Mapping[str, float]) -> list[str]:
  """One line per score, with its interval."""
  lines = []
  for name, value in scores.items():
    if not name.endswith(("_low", "_high")):
      low, high = scores.get(f"{name}_low"), scores.get(f"{name}_high")
      interval = "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"
      lines.append(f"{name.replace('_', ' ')}: {value:.4f}{interval}")
  return lines


@functools.lru_cache(maxsize=4)
def _examples(
  task: Any, labelled: bool, tables: tuple[Table, ...], stamps: tuple[tuple[Path, int, int], ...], config: Any
) -> tuple[tuple[Any, ...], Counts]:
  """What `read` gives. `stamps` tell whether the files have changed."""
  counts: Counts = {}
  return tuple(task.read(config, list(tables), labelled, counts)), counts


def _files(tables: Sequence[Table]) -> list[Path]:
  """The files that hold them."""
  return [file for table in tables for file in (table.files if isinstance(table, TfdsSplit) else [table])]


def _by_row(batches: RowBatches, outputs: Sequence[Outputs]) -> dict[int, Outputs]:
  """Row -> what the head predicts for it."""
  return {
    int(row): {name: values[i] for name, values in batch.items()}
    for step, batch in enumerate(outputs)
    for i, row in enumerate(batches.rows_of(step))
    if row >= 0
  }
