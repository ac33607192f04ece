"""From the config to data sets: corpus, tokenizer, token file, all cached under fingerprints."""

import dataclasses
import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etils import epath

from tfm_jax.cache import atomic_directory, cache_dir, recall, remember
from tfm_jax.data.config import DataConfig, TaskConfig
from tfm_jax.data.dataset import Dataset, unigram_entropy
from tfm_jax.data.encode import Encoder
from tfm_jax.data.token_file import FORMAT, TokenFile, build_token_file
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import Documents, Fields, Objective, ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import Split
from tfm_jax.objectives.table import make_objective
from tfm_jax.text.corpora import (
  Columns,
  Corpus,
  embedded_corpus,
  parallel_corpus,
  table_classes,
  table_corpus,
  text_corpus,
)
from tfm_jax.text.tokenizers import Tokenizer, TokenizerConfig, from_path, load_tokenizer, train_tokenizer

log = logging.getLogger(__name__)

_EVAL_SEED = 0  # held-out masks are the same in every run
_SLOW = 5  # seconds of counting that are worth a file
_PRETRAINING = TaskConfig()
_COMPLETE = Vocabulary(1 << 16, sentinel_ids=tuple(range(1 << 15, 1 << 16)))  # lacks nothing

SOURCES: dict[str, Callable[[DataConfig, TaskConfig], Corpus]] = {
  "embedded": lambda c, task: embedded_corpus(),
  "text": lambda c, task: text_corpus(c.path, c.eval_path, c.eval_fraction, c.document, c.errors),
  "parallel": lambda c, task: parallel_corpus(
    c.path, c.target_path, c.eval_path, c.eval_target_path, c.eval_fraction, c.errors
  ),
  "tsv": lambda c, task: table_corpus(c.path, c.eval_path, c.eval_fraction, _columns(task), c.errors),
}


@dataclass(frozen=True)
class Prepared:
  """Everything that training needs of its data."""

  tokenizer: Tokenizer
  vocabulary: Vocabulary
  objective: Objective
  token_file: TokenFile
  corpus: Corpus
  fingerprints: dict[str, str]  # data, tokenizer
  former_fingerprints: dict[str, str]  # what earlier releases noted for the same
  counts: dict[str, int]  # what the corpus read, skipped and replaced
  seed: int
  packing: bool

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the labels, in the order of their numbers; none where documents have no labels."""
    return self.corpus.classes

  def train(self, batch_size: int) -> Dataset:
    """The training rows, shuffled anew in each epoch."""
    return self._dataset(self.token_file.train, batch_size, self.seed, shuffle=True)

  def evaluation(self, batch_size: int) -> Dataset | None:
    """The held-out rows, always in the same order; None when no text is held out."""
    split = self.token_file.evaluation
    return self._dataset(split, batch_size, _EVAL_SEED, shuffle=False) if split.documents else None

  def unigram_entropy(self, dataset: Dataset) -> float:
    """`unigram_entropy` of the held-out rows; remembered where they are so many that counting takes a while."""
    objective = self.objective
    key = [1, self.fingerprints["data"], dataclasses.asdict(objective.config), objective.seq_len, objective.target_len]
    known = recall("entropies", [*key, self.packing])
    if isinstance(known, float):
      return known
    begin = time.monotonic()
    entropy = unigram_entropy(dataset)
    if time.monotonic() - begin > _SLOW:
      remember("entropies", [*key, self.packing], entropy)
    return entropy

  def _dataset(self, split: Split, batch_size: int, seed: int, shuffle: bool) -> Dataset:
    dataset = Dataset(split, self.objective, batch_size, seed, self.packing, shuffle)
    log.info(
      "%s: %s documents, %s tokens, %s bytes of text, %s rows", split.name,
      *(f"{n:,}" for n in (split.documents, split.num_tokens, split.text_bytes, dataset.num_rows)),
    )  # fmt: skip
    if dataset.truncated:
      log.warning(
        "%s: %s texts are longer than their row and were cut; raise data.seq_len (or data.target_len)",
        split.name, f"{dataset.truncated:,}",
      )  # fmt: skip
    return dataset


def objective_fields(objective: ObjectiveConfig, data: DataConfig, vocabulary: Vocabulary) -> Fields:
  """The arrays of a batch, from the config alone: no corpus is read."""
  return make_objective(objective, vocabulary, data.seq_len, data.target_len).fields


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
  """What objectives need of a tokenizer."""
  ids = {name: getattr(tokenizer, name) for name in ("unk_id", "bos_id", "eos_id", "mask_id")}
  # GPT-2 has no padding. Rows need some id where their segment is 0, best one that stands for no text.
  ids["pad_id"] = next((id for id in (tokenizer.pad_id, tokenizer.eos_id) if id >= 0), 0)
  sentinels, specials = tuple(tokenizer.sentinel_ids.tolist()), tuple(tokenizer.special_ids.tolist())
  return Vocabulary(tokenizer.vocab_size, **ids, sentinel_ids=sentinels, special_ids=specials)


def prepare(
  data: DataConfig,
  tokenizer: TokenizerConfig,
  objective: ObjectiveConfig,
  seed: int,
  stored_tokenizer: epath.PathLike | None = None,
  workers: int | None = None,
  task: TaskConfig = _PRETRAINING,
) -> Prepared:
  """Reads the corpus, trains or loads the tokenizer, writes the token file: once, later calls open them.

  stored_tokenizer: the directory of a run's own tokenizer, which then stands, whatever the config says.
  workers: processes that tokenise (None: the cores). The result does not depend on it.
  task: says which columns of a table are what.

  Raises:
    UserError: an unknown source or objective, a corpus that is missing, empty or undecodable, an impossible
      vocabulary, or an objective that the corpus or the tokenizer cannot serve.
  """
  if data.source not in SOURCES:
    raise UserError(f"data.source={data.source!r} is unknown: choose one of {', '.join(SOURCES)}")
  # mistakes in the settings are said before the corpus is read, and before it is tokenised
  make_objective(objective, _COMPLETE, data.seq_len, data.target_len)
  corpus = SOURCES[data.source](data, task)
  documents = Documents(corpus.sides, len(corpus.classes))
  make_objective(objective, _COMPLETE, data.seq_len, data.target_len, documents).check()
  log.info("%s", corpus.description)

  if stored_tokenizer is not None:
    made = load_tokenizer(stored_tokenizer)
  elif tokenizer.path:
    made = from_path(tokenizer)
  else:
    made = _cached_tokenizer(tokenizer, corpus)
  vocabulary = vocabulary_of(made)
  built = make_objective(objective, vocabulary, data.seq_len, data.target_len, documents)
  built.check()

  fingerprint, former = (
    _digest(FORMAT, of_corpus, made.fingerprint, built.adds_bos, built.adds_eos)
    for of_corpus in (corpus.fingerprint, corpus.former_fingerprint or corpus.fingerprint)
  )
  encoder = Encoder(made, built.adds_bos, built.adds_eos)
  token_file = build_token_file(cache_dir() / "tokens" / fingerprint, corpus, encoder, workers)
  counts: dict[str, int] = token_file.manifest["counts"]
  log.info("corpus: %s", ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
  _log_unknown(token_file)
  if not token_file.evaluation.documents:
    log.warning("nothing is held out, so there is no evaluation: %s", _why_nothing_is_held_out(data))
  if counts.get("evaluation_cut_lines"):  # earlier releases held out nothing of such a text
    former = fingerprint
  if not token_file.train.num_tokens:
    raise UserError(f"data.source={data.source} has no text to train on: check data.path and data.eval_fraction")
  fingerprints = {"data": fingerprint, "tokenizer": made.fingerprint}
  return Prepared(
    made, vocabulary, built, token_file, corpus, fingerprints, fingerprints | {"data": former}, counts, seed,
    data.packing,
  )  # fmt: skip


def classes_of(data: DataConfig, task: TaskConfig) -> tuple[str, ...]:
  """The names of the labels as `Prepared.classes` has them: only the table at `data.path` is read. Raises UserError."""
  if data.source != "tsv":
    raise UserError(f"data.source={data.source} has no labels: set data.source=tsv")
  return table_classes(data.path, _columns(task), data.errors)


def _columns(task: TaskConfig) -> Columns:
  return Columns(task.text, task.pair, task.label)


def _cached_tokenizer(config: TokenizerConfig, corpus: Corpus) -> Tokenizer:
  """The tokenizer trained on this corpus with this config."""
  directory = cache_dir() / "tokenizers" / _digest(FORMAT, corpus.fingerprint, dataclasses.asdict(config))
  made = None
  if directory.exists():
    try:
      made = load_tokenizer(directory)
    except UserError as damage:
      log.warning("%s: it is trained again", damage)
      shutil.rmtree(directory)
  if made is None:
    log.info("training a %s tokenizer on the training text", config.kind or "sentencepiece")
    begin = time.monotonic()
    made = train_tokenizer(config, itertools.chain.from_iterable(corpus.train()))
    log.info("tokenizer: %s pieces, trained in %.1f s", f"{made.vocab_size:,}", time.monotonic() - begin)
    with atomic_directory(directory) as temporary:
      made.save(temporary)
  if made.vocab_size < config.vocab_size:
    log.warning(
      "tokenizer.vocab_size=%d: this text has pieces for %d only, and so many ids the vocabulary has",
      config.vocab_size, made.vocab_size,
    )  # fmt: skip
  return made


def _why_nothing_is_held_out(data: DataConfig) -> str:
  if not data.eval_fraction:
    return "data.eval_fraction is 0 and data.eval_path is empty"
  return (
    f"data.eval_fraction={data.eval_fraction:g} of {data.path or data.source} is less than one document; raise it, or "
    "set data.eval_path"
  )


def _log_unknown(token_file: TokenFile) -> None:
  """Text that the vocabulary cannot express is kept as the unknown token, and said."""
  for name, sides in token_file.manifest["splits"].items():
    unknown = sum(side["unknown_tokens"] for side in sides)
    if unknown:
      log.warning("%s: %s tokens are unknown to the tokenizer", name, f"{unknown:,}")


def _digest(*parts: Any) -> str:
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
