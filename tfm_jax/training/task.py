"""`Task`: what a run trains on. A task supplies batches, a loss, metrics and a report; the loop does the rest."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from etils import epath

from tfm_jax.data.dataset import Batches, Dataset, batches
from tfm_jax.data.prepare import prepare
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.objectives.objective import Fields
from tfm_jax.ops.losses import LossTerms
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.text.tokenizers.table import Tokenizer
from tfm_jax.training.compiled.lengths import at_length
from tfm_jax.training.compiled.ramp import Ramped
from tfm_jax.training.config import Config
from tfm_jax.training.loss import LossFunction, make_loss

Batch = Mapping[str, np.ndarray]
Predictions = Sequence[Mapping[str, np.ndarray]]
"""One dictionary per batch, in the order of the stream: name -> array of the global batch, see `Model.predict`."""
EvalStream = Callable[[np.ndarray | None], Iterator[Batch]]
"""rows -> the held-out batches, the same at each call; `rows` as in `Task.train_batches`."""


class Task(Protocol):
  """What a run learns: the interface between `fit` and a task.

  Args:
    config: the resolved configuration, after `configure`.
    stored_tokenizer: the folder of the tokenizer of this run, or of the run that it starts from; None: there is none
      yet, and the task reads or trains one.

  Attributes:
    predicts: whether `eval_metrics` gets the predictions of the model's head for each row.
    num_rows: training rows per epoch, from which `train.epochs` computes the number of steps; 0: no epochs.
    lengths: the lengths that rows may have, ascending; the last is the one that `fields` declares. All arrays of one
      batch whose axis "seq" has that declared length are equally long, in all processes. (): `fields` says it.
  """

  predicts: ClassVar[bool] = False
  num_rows: int = 0
  lengths: tuple[int, ...] = ()

  def __init__(self, config: Config, stored_tokenizer: epath.PathLike | None = None) -> None: ...

  @classmethod
  def configure(cls, config: Config) -> Config:
    """The configuration with the keys that follow from the task, such as its head and the classes of its data."""

  @property
  def tokenizer(self) -> Tokenizer | None:
    """Text <-> ids, stored with the run; None if the data has no text."""

  @property
  def fields(self) -> Fields:
    """Field name -> shape, dtype, kind and logical axes of the arrays of a batch."""

  @property
  def fingerprints(self) -> Mapping[str, str]:
    """Hashes of everything that decides the batches, by name: a run with other hashes is not resumed."""

  def train_batches(self, start: int, stop: int, rows: np.ndarray | None) -> Iterator[tuple[int, Batch]]:
    """Yields (step, batch) for the steps start to stop - 1; each batch is a pure function of its step.

    Args:
      start: the first step, from 0.
      stop: the step after the last one.
      rows: indices of the rows of the global batch that this process needs, ascending; None: all.
    """

  @property
  def eval_streams(self) -> Mapping[str, EvalStream]:
    """Held-out data by the `split` of its records in metrics.jsonl. `fit` returns the metrics of the first."""

  def loss(self, model: Model) -> LossFunction:
    """The loss of a model, see `training.loss`; it may add metrics of its own."""

  def eval_metrics(self, split: str, totals: LossTerms, predictions: Predictions) -> dict[str, float]:
    """More metrics for a record of evaluation. All processes call it.

    Args:
      split: the name of the stream.
      totals: the sums over the stream.
      predictions: those of each batch of the stream, if `predicts`; otherwise empty. They are of the global batch, in
        every process.
    """

  def report(self, model: Model, params: Any, metrics: Mapping[str, float], run: RunDirectory) -> list[str]:
    """Lines to print at the end of a run; it may also write files of the run. All processes call it.

    Args:
      model: the model on its mesh.
      params: the trained parameters, which may be sharded over several processes.
      metrics: those of the last evaluation; empty without held-out data.
      run: the run directory.
    """


@runtime_checkable
class Generates(Protocol):
  """A task that also scores generated texts while it trains, every `eval.generate_every` steps and at the end."""

  def generated_scores(self, model: Model, params: Any) -> dict[str, float]:
    """More metrics for the record of an evaluation of the first stream. All processes call it.

    Args:
      model: the model on its mesh.
      params: its parameters at this step, which may be sharded over several processes.
    """


class TextTask:
  """Base class of tasks on text: everything of `Task` but `configure`, `eval_metrics` and `report`."""

  predicts: ClassVar[bool] = False
  lengths: tuple[int, ...] = ()

  def __init__(self, config: Config, stored_tokenizer: epath.PathLike | None = None) -> None:
    prepared = prepare(config.data, config.tokenizer, config.objective, config.seed, stored_tokenizer)
    self._config, self._prepared, data = config, prepared, config.data
    self._train = prepared.train(config.train.batch_size)
    self._evals = prepared.evaluations(config.train.batch_size)
    self._eval = next(iter(self._evals.values()), None)
    self._first: Dataset | None = None
    self._first_eval: Dataset | None = None
    if data.first_steps:
      if "inputs" not in self._train.fields or config.train.epochs:
        raise UserError(
          f"data.first_steps={data.first_steps} is for objectives with one text per row, and for runs of train.steps "
          f"rather than train.epochs: set it to 0"
        )
      first = prepared.at_length(data.first_seq_len)
      self._first, self._first_eval = first.train(config.train.batch_size), first.evaluation(config.train.batch_size)
      self.lengths = (data.first_seq_len, data.seq_len) if data.first_seq_len < data.seq_len else ()
    self.tokenizer = prepared.tokenizer
    self.fields = self._train.fields
    self.num_rows = self._train.num_rows
    self.fingerprints, self.former_fingerprints = prepared.fingerprints, prepared.former_fingerprints

  def train_batches(self, start: int, stop: int, rows: np.ndarray | None) -> Iterator[tuple[int, Batch]]:
    """See `Task`."""
    data, change = self._config.data, start
    if self._first is not None and start < data.first_steps:
      change = min(stop, data.first_steps)
      for step, batch in batches(self._ramped(self._first), start, change, rows, data.prefetch):
        yield step, self._padded(batch)
    yield from batches(self._ramped(self._train), change, stop, rows, data.prefetch)

  def _ramped(self, dataset: Dataset) -> Batches:
    """The batches of a data set, of which the first may be smaller."""
    train = self._config.train
    return Ramped(dataset, train.ramp) if train.ramp_from else dataset

  def _padded(self, batch: Batch) -> Batch:
    """A batch of short rows with as many masks as its program declares: a few more, without weight."""
    fields = at_length(self.fields, self._config.data.first_seq_len, self._config.data.seq_len)
    pad = lambda x, shape: np.pad(x, [(0, 0), *((0, n - m) for n, m in zip(shape, x.shape[1:], strict=True))])
    return {name: pad(x, fields[name].shape) for name, x in batch.items()}

  @property
  def eval_streams(self) -> dict[str, EvalStream]:
    """See `Task`."""
    streams: dict[str, EvalStream] = {
      split: functools.partial(self._held_out, dataset) for split, dataset in self._evals.items()
    }
    if (short := self._first_eval) is not None:
      streams["eval_first"] = lambda rows: map(self._padded, self._held_out(short, rows))
    return streams

  def _held_out(self, dataset: Dataset, rows: np.ndarray | None) -> Iterator[Batch]:
    """The batches of an evaluation."""
    return (dataset.batch(step, rows) for step in range(dataset.num_batches(self._config.eval.batches)))

  def loss(self, model: Model) -> LossFunction:
    """See `Task`."""
    return make_loss(model, self._config.loss)
