"""Tasks whose answer is a text that the model writes: translation, summaries, titles, and the like."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from tfm_jax.decode.generate import continued
from tfm_jax.decode.options import Options, changed
from tfm_jax.decode.prompts import Prompt, Symbols, check_generates
from tfm_jax.decode.start import prepared
from tfm_jax.errors import UserError
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import Model
from tfm_jax.objectives.objective import Fields
from tfm_jax.objectives.table import make_objective
from tfm_jax.ops.losses import LossTerms, total
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.tasks.labelled.rows import PairBatches, RowBatches, Rows, make_rows
from tfm_jax.tasks.labelled.task import LabelledTask, Outputs, Prediction, log
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.corpora.files import find_text_files
from tfm_jax.text.corpora.parallel import paired_files
from tfm_jax.text.examples.pairs import Pair, read_pairs
from tfm_jax.text.examples.tables import Column, Table, only_files
from tfm_jax.text.tokenizers.table import Tokenizer
from tfm_jax.training.config import Config
from tfm_jax.training.load import symbols_of
from tfm_jax.training.task import Predictions


class Names(NamedTuple):
  """Usual names of the columns of a task's tables."""

  text: tuple[str, ...]
  label: tuple[str, ...]


GENERATED: dict[str, Names] = {
  "translation": Names(("source", "src", "text"), ("target", "tgt", "translation")),
  "summarization": Names(("source", "article", "document", "text"), ("target", "summary", "highlights", "abstract")),
  "dialogue_summary": Names(("dialogue",), ("summary",)),
  "story": Names(("prompt", "beginning", "text"), ("story", "ending", "continuation")),
  "title": Names(("source", "abstract", "document", "text"), ("title", "headline")),
  "paraphrase": Names(("sentence1", "question1", "#1 String", "text"), ("sentence2", "question2", "#2 String")),
}
_TARGETS = {"data.path": "data.target_path", "data.eval_path": "data.eval_target_path", "--data": "--targets"}


class Generation(LabelledTask[Pair]):
  """A text for each text: files line by line, or tables and JSON lines (`task.text`, `task.label`).

  An encoder-decoder reads `source eos` and writes `target eos`, which begins as in the objective seq2seq. A decoder
  reads `source eos target eos` in one row, and learns the target alone. Where an example has several references, each
  is a row of its own. `data.target_len` is the most tokens of a target (0: of decoders half of `data.seq_len`,
  otherwise as many as of a source).

  Attributes:
    symbols: how the model's texts begin.
    options: how texts are generated, greedily by default.
  """

  form: ClassVar[str] = "texts"
  head_name: ClassVar[str] = "lm"
  predicts: ClassVar[bool] = False
  _imported = False  # whether the model descends from an import: `evaluate` sets the symbols of a trained one

  def __init__(self, config: Config, stored_tokenizer: epath.PathLike | None = None) -> None:
    # A run has noted where it comes from: what `init_from` names may have been moved since.
    folder = epath.Path(stored_tokenizer).parent if stored_tokenizer else config.init_from
    self._imported = bool(folder and RunDirectory(folder).origin())
    super().__init__(config, stored_tokenizer)

  # Reading.

  @classmethod
  def files(cls, path: str, target_path: str, key: str) -> list[Path]:
    """See `LabelledTask`; the files with the targets come after the others, as many."""
    files = super().files(path, target_path, key)
    if not target_path:
      return files
    targets = find_text_files(target_path, _TARGETS[key], any_ending=True)
    return [*files, *paired_files(files, targets, key, _TARGETS[key]).values()]

  @classmethod
  def read(cls, config: Config, files: Sequence[Table], labelled: bool, counts: Counts) -> list[Pair]:
    """See `LabelledTask`."""
    task, names, paths = config.task, GENERATED[config.task.name], only_files(files, config.task.name)
    columns = {"text": Column(task.text, names.text), "label": Column(task.label, names.label, required=labelled)}
    parallel = config.data.target_path if labelled else config.data.eval_target_path
    count = len(paths) // 2 if parallel else len(paths)
    return read_pairs(paths[:count], paths[count:], columns, labelled, config.data.errors, counts)

  @classmethod
  def texts(cls, example: Pair) -> Sequence[str]:
    """See `LabelledTask`."""
    return (example.source, *(example.targets or ()))

  # Rows.

  @classmethod
  def configure(cls, config: Config) -> Config:
    """See `LabelledTask`: also the objective whose fields the batches have."""
    two_sided = find_family(config.family).encoder_decoder
    if not (two_sided or find_family(config.family).causal):
      raise UserError(
        f"task.name={config.task.name} writes text, and family={config.family} reads in both directions: choose an "
        f"encoder-decoder (t5, transformer) or a decoder (gpt, llama)"
      )
    objective = dataclasses.replace(config.objective, name="seq2seq" if two_sided else "causal")
    return super().configure(dataclasses.replace(config, objective=objective))

  @classmethod
  def head(cls, config: Config, examples: Sequence[Pair]) -> dict[str, Any]:
    """See `LabelledTask`."""
    return {"head.name": cls.head_name}

  def _set(self, config: Config, tokenizer: Tokenizer) -> None:
    super()._set(config, tokenizer)
    self._two_sided = find_family(config.family).encoder_decoder
    self._target_len = config.data.target_len or (config.data.seq_len if self._two_sided else config.data.seq_len // 2)
    self.use(symbols_of(config, tokenizer, self._imported), {})

  def use(self, symbols: Symbols, changes: Mapping[str, Any]) -> None:
    """Sets how texts begin, and changes options of generation by name. Raises UserError for an impossible option."""
    self.symbols = symbols
    greedy = Options(max_new_tokens=self._target_len, batch_size=self.config.train.batch_size)
    self.options = changed(greedy, changes)
    self.options.check(self.tokenizer.vocab_size)

  def rows(self, examples: Sequence[Pair]) -> Rows:
    """See `LabelledTask`. An example without references has one row, without a target."""
    begin = np.array([self.symbols.begin] if self.symbols.begin >= 0 and not self._two_sided else [], np.int32)
    eos = np.array([self.vocabulary.eos_id], np.int32)
    room = self.config.data.seq_len - (1 if self._two_sided else len(begin) + self._target_len)
    most = self._target_len - 1
    if min(room, most) < 1:
      raise UserError(
        f"data.seq_len={self.config.data.seq_len} and targets of {self._target_len} tokens (data.target_len) leave no "
        f"room for text: raise data.seq_len"
      )
    sources = self.tokenizer.encode_batch([self.config.task.prefix + example.source for example in examples])
    owners = [number for number, example in enumerate(examples) for _ in example.targets or [None]]
    targets = self.tokenizer.encode_batch([target for example in examples for target in example.targets or [""]])
    before = [np.concatenate([begin, sources[owner][:room], eos]) for owner in owners]
    known = [examples[owner].targets is not None for owner in owners]
    after = [
      np.concatenate([target[:most], eos]) if has else eos[:0] for target, has in zip(targets, known, strict=True)
    ]
    cut, cut_targets = (sum(len(ids) > n for ids in side) for side, n in ((sources, room), (targets, most)))
    if self._two_sided:
      written = make_rows(after, None, {}, {}, owners, cut_targets)
      return dataclasses.replace(make_rows(before, None, {}, {}, owners, cut), target=written)
    inputs, shifted, weights = [], [], []
    for source, target in zip(before, after, strict=True):
      ids = np.concatenate([source, target])
      read = len(ids) - bool(len(target))  # the end of a target is only predicted
      inputs.append(ids[:read])
      shifted.append(np.append(ids[1:], eos)[:read])
      weights.append((np.arange(read) >= (len(source) - 1 if len(target) else read)).astype(np.float32))
    return make_rows(inputs, None, {}, {"targets": shifted, "weights": weights}, owners, cut + cut_targets)

  def _batches(self, rows: Rows, shuffle: bool = False, **options: Any) -> RowBatches:
    if rows.target is None:
      return super()._batches(rows, shuffle, **options)
    size, seed, pad = self.config.train.batch_size, self.config.seed, self.vocabulary.pad_id
    sides = {"target_len": self._target_len, "start": self.symbols.start, "pad": pad}
    return PairBatches(rows, size, seed, self.lengths, shuffle, **sides, **options)

  def _fields(self, rows: Rows) -> Fields:
    config = self.config
    return make_objective(config.objective, self.vocabulary, config.data.seq_len, self._target_len).fields

  def _log(self, train: Sequence[Pair], rows: Rows, counts: Counts) -> None:
    super()._log(train, rows, counts)
    if rows.target is not None and rows.target.truncated:
      cut = f"{rows.target.truncated:,}"
      log.warning("%s targets are longer than data.target_len=%d and were cut", cut, self._target_len)

  # Generation.

  def outputs(self, model: Model, params: Any, rows: Rows) -> dict[int, Outputs]:
    """Row -> `text` and `logprob` of what the model writes, for the first row of each example."""
    check_generates(model)
    _, first = np.unique(rows.examples, return_index=True)
    prompts = [self._prompt(rows, row, number) for number, row in enumerate(first.tolist())]
    with tqdm(total=len(prompts), desc="generating", unit="text", delay=5, disable=None) as bar:
      found = continued(model, prepared(model, params), self.tokenizer, prompts, self.options, bar.update)
    return {
      row: {"text": best.text.strip(), "logprob": best.logprob}
      for row, (best, *_) in zip(first.tolist(), found, strict=True)
    }

  def _prompt(self, rows: Rows, row: int, number: int) -> Prompt:
    """What the model reads of a row before it writes."""
    place = slice(rows.offsets[row], rows.offsets[row + 1])
    ids = rows.tokens[place]
    if rows.target is not None:
      return Prompt(number, "", np.array([self.symbols.start], np.int32), ids)
    learned = np.flatnonzero(rows.token_labels["weights"][place])
    return Prompt(number, "", ids[: learned[0] + 1] if len(learned) else ids, ids[:0])

  def predictions(self, examples: Sequence[Pair], rows: Rows, outputs: Mapping[int, Outputs]) -> list[Prediction]:
    """See `LabelledTask`. `label` is the reference, or the list of several."""
    return [
      {**self.prediction(examples[rows.examples[row]], output["text"]), "logprob": round(output["logprob"], 6)}
      for row, output in sorted(outputs.items())
    ]

  def prediction(self, example: Pair, text: str) -> Prediction:
    """What predictions.jsonl says about a text that the model wrote for an example."""
    targets = example.targets
    label = None if targets is None else targets[0] if len(targets) == 1 else list(targets)
    return {"prediction": text, "label": label, "text": example.source}

  # While training.

  def eval_metrics(self, split: str, totals: LossTerms, predictions: Predictions) -> dict[str, float]:
    """The perplexity of the targets."""
    return {"perplexity": math.exp(min(total(totals.loss), 700.0))}

  def generated_scores(self, model: Model, params: Any) -> dict[str, float]:
    """See `training.task.Generates`: of examples from all over the held-out ones, always the same."""
    count = min(self.config.eval.generate_examples or len(self._examples), len(self._examples))
    places = np.linspace(0, len(self._examples) - 1, count).round().astype(int)
    found = self.predict(model, params, [self._examples[place] for place in places])
    return self.scores(found, intervals=False)
