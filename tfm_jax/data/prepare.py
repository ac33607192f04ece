"""From the config to data sets: corpus, tokenizer and token file, all cached under fingerprints."""

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
from tfm_jax.data.config import DataConfig, check_data, eval_key
from tfm_jax.data.dataset import Dataset, unigram_entropy
from tfm_jax.data.encode import Encoder
from tfm_jax.data.pieces import piece_kinds
from tfm_jax.data.summary import corpus_block
from tfm_jax.data.token_file import FORMAT, TokenFile, build_token_file
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import Documents, Fields, Objective, ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import Split
from tfm_jax.objectives.table import make_objective
from tfm_jax.text.corpora.table import (
  Corpus,
  embedded_corpus,
  parallel_corpus,
  text_corpus,
  tfds_corpus,
)
from tfm_jax.text.tokenizers.table import (
  OWN_SIZE,
  Tokenizer,
  TokenizerConfig,
  check_tokenizer,
  from_path,
  load_tokenizer,
  train_tokenizer,
  training_version,
)

log = logging.getLogger(__name__)

_EVAL_SEED = 0  # held-out masks are the same in every run
_SLOW = 5  # seconds: counting that takes longer is remembered
_COMPLETE = Vocabulary(1 << 16, sentinel_ids=tuple(range(1 << 15, 1 << 16)))  # has every special token

SOURCES: dict[str, Callable[[DataConfig], Corpus]] = {
  "embedded": lambda c: embedded_corpus(),
  "text": lambda c: text_corpus(c.path, c.eval_path, c.eval_fraction, c.document, c.errors, c.text_key),
  "jsonl": lambda c: text_corpus(
    c.path, c.eval_path, c.eval_fraction, c.document, c.errors, c.text_key, json_lines=True
  ),
  "parallel": lambda c: parallel_corpus(
    c.path, c.target_path, c.eval_path, c.eval_target_path, c.eval_fraction, c.errors
  ),
  "tfds": lambda c: tfds_corpus(c.path, c.split, c.eval_split, c.eval_fraction, c.field, c.target_field, c.errors),
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
  former_fingerprints: dict[str, str]  # what earlier releases stored for the same data and tokenizer
  counts: dict[str, int]  # what the corpus read, skipped and replaced
  seed: int
  packing: bool

  def train(self, batch_size: int) -> Dataset:
    """The training rows, shuffled anew in each epoch."""
    return self._dataset(self.token_file.train, batch_size, self.seed, shuffle=True)

  def evaluation(self, batch_size: int) -> Dataset | None:
    """The held-out rows, always in the same order; None when no text is held out."""
    split = self.token_file.evaluation
    return self._dataset(split, batch_size, _EVAL_SEED, shuffle=False) if split.documents else None

  def at_length(self, seq_len: int) -> "Prepared":
    """The same data in rows of another length."""
    old = self.objective
    return dataclasses.replace(self, objective=type(old)(old.config, old.vocabulary, seq_len, 0, old.documents))

  def unigram_entropy(self, dataset: Dataset) -> float:
    """`unigram_entropy` of the held-out rows; remembered if counting takes long."""
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
    return Dataset(split, self.objective, batch_size, seed, self.packing, shuffle)


def objective_fields(objective: ObjectiveConfig, data: DataConfig, vocabulary: Vocabulary) -> Fields:
  """The arrays of a batch, from the config alone: no corpus is read."""
  return make_objective(objective, vocabulary, data.seq_len, data.target_len).fields


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
  """The ids and sizes of a tokenizer that objectives read."""
  ids = {name: getattr(tokenizer, name) for name in ("unk_id", "bos_id", "eos_id", "mask_id")}
  # GPT-2 has no padding id. Rows need some id where their segment is 0, preferably one that stands for no text.
  ids["pad_id"] = next((id for id in (tokenizer.pad_id, tokenizer.eos_id) if id >= 0), 0)
  sentinels, specials = tuple(tokenizer.sentinel_ids.tolist()), tuple(tokenizer.special_ids.tolist())
  pieces = piece_kinds(tokenizer)
  return Vocabulary(tokenizer.vocab_size, **ids, sentinel_ids=sentinels, special_ids=specials, pieces=pieces)


def prepare(
  data: DataConfig,
  tokenizer: TokenizerConfig,
  objective: ObjectiveConfig,
  seed: int,
  stored_tokenizer: epath.PathLike | None = None,
  workers: int | None = None,
) -> Prepared:
  """Reads the corpus, trains or loads the tokenizer, writes the token file: once, later calls open them.

  stored_tokenizer: the directory of a run's own tokenizer, which is used whatever the config says.
  workers: processes that tokenise (None: the cores). The result does not depend on it.

  Raises:
    UserError: an unknown source or objective, a corpus that is missing, empty or undecodable, an impossible
      vocabulary, or an objective that the corpus or the tokenizer cannot serve.
  """
  # Settings are checked before the corpus is read, and before it is tokenised.
  if data.source not in SOURCES:
    raise UserError(f"data.source={data.source!r} is unknown: choose one of {', '.join(SOURCES)}")
  check_data(data)
  if stored_tokenizer is None:
    check_tokenizer(tokenizer)
  make_objective(objective, _COMPLETE, data.seq_len, data.target_len)
  corpus = SOURCES[data.source](data)
  documents = Documents(corpus.sides)
  make_objective(objective, _COMPLETE, data.seq_len, data.target_len, documents).check()
  log.info("reading data.source=%s: %s", data.source, data.path or "the documentation of this installation")

  loaded = find_tokenizer(tokenizer, corpus, stored_tokenizer)
  vocabulary = vocabulary_of(loaded)
  built = make_objective(objective, vocabulary, data.seq_len, data.target_len, documents)
  built.check()

  fingerprint, former = (
    _digest(FORMAT, of_corpus, loaded.fingerprint, built.adds_bos, built.adds_eos)
    for of_corpus in (corpus.fingerprint, corpus.former_fingerprint or corpus.fingerprint)
  )
  encoder = Encoder(loaded, built.adds_bos, built.adds_eos)
  token_file = build_token_file(cache_dir() / "tokens" / fingerprint, corpus, encoder, workers)
  counts: dict[str, int] = token_file.manifest["counts"]
  if not token_file.train.num_tokens:
    raise UserError(f"data.source={data.source} has no text to train on: check data.path and data.eval_fraction")
  _log_corpus(corpus, token_file, built, data)
  if counts.get("evaluation_cut_lines"):  # earlier releases held out nothing of such a text
    former = fingerprint
  fingerprints = {"data": fingerprint, "tokenizer": loaded.fingerprint}
  return Prepared(
    tokenizer=loaded,
    vocabulary=vocabulary,
    objective=built,
    token_file=token_file,
    corpus=corpus,
    fingerprints=fingerprints,
    former_fingerprints=fingerprints | {"data": former},
    counts=counts,
    seed=seed,
    packing=data.packing,
  )


def find_tokenizer(config: TokenizerConfig, corpus: Corpus, stored: epath.PathLike | None = None) -> Tokenizer:
  """The tokenizer of a run: the stored one, or that at `tokenizer.path`, or one trained on the corpus, which is cached.

  Args:
    config: what is read or trained.
    corpus: the text to train on.
    stored: the directory of a run's own tokenizer, which is used whatever the config says.

  Raises:
    UserError: there is no such tokenizer, or an impossible vocabulary.
  """
  if stored is not None:
    return load_tokenizer(stored)
  check_tokenizer(config)
  return from_path(config) if config.path else _cached_tokenizer(config, corpus)


def _cached_tokenizer(config: TokenizerConfig, corpus: Corpus) -> Tokenizer:
  """The tokenizer trained on this corpus with this config, from the cache if it was trained before."""
  key = [FORMAT, corpus.fingerprint, dataclasses.asdict(config), *training_version(config)]
  directory = cache_dir() / "tokenizers" / _digest(*key)
  tokenizer = None
  if directory.exists():
    try:
      tokenizer = load_tokenizer(directory)
    except UserError as damage:
      log.warning("%s: it is trained again", damage)
      shutil.rmtree(directory)
  if tokenizer is None:
    log.info("training a %s tokenizer on the training text", config.kind or "sentencepiece")
    begin = time.monotonic()
    tokenizer = train_tokenizer(config, itertools.chain.from_iterable(corpus.train()))
    log.info("tokenizer: %s pieces, trained in %.1f s", f"{tokenizer.vocab_size:,}", time.monotonic() - begin)
    with atomic_directory(directory) as temporary:
      tokenizer.save(temporary)
  if config.kind in OWN_SIZE:
    if config.vocab_size:
      log.info(
        "tokenizer.kind=%s has a size of its own: %d ids, instead of tokenizer.vocab_size=%d",
        config.kind,
        tokenizer.vocab_size,
        config.vocab_size,
      )
  elif tokenizer.vocab_size < config.vocab_size:
    log.warning(
      "tokenizer.vocab_size=%d: this text has only enough pieces for a vocabulary of %d, which is taken",
      config.vocab_size,
      tokenizer.vocab_size,
    )
  return tokenizer


def _log_corpus(corpus: Corpus, token_file: TokenFile, objective: Objective, data: DataConfig) -> None:
  """Logs what the run reads, and warns of what the user may not expect."""
  splits = (token_file.train, token_file.evaluation)
  plans = [objective.plan(split, data.packing) if split.documents else None for split in splits]
  rows = [plan.num_rows if plan else 0 for plan in plans]
  log.info("%s", corpus_block(corpus, splits, rows, token_file.manifest["counts"], objective.row_tokens))
  for split, plan in zip(splits, plans, strict=True):
    if plan and plan.truncated:
      cut = f"{plan.truncated:,} texts are longer than their row and were cut"
      log.warning("%s: %s; raise data.seq_len (or data.target_len)", split.name, cut)
  for name, sides in token_file.manifest["splits"].items():
    unknown = sum(side["unknown_tokens"] for side in sides)
    if unknown:  # text that the vocabulary cannot express
      log.warning("%s: %s tokens are unknown to the tokenizer", name, f"{unknown:,}")
  if not token_file.evaluation.documents:
    log.warning("%s", nothing_held_out(data))


def nothing_held_out(data: DataConfig) -> str:
  """Why a run has no evaluation."""
  what = "nothing is held out, so there is no evaluation:"
  if not data.eval_fraction:
    return f"{what} data.eval_fraction is 0 and {eval_key(data)} is empty"
  return (
    f"{what} data.eval_fraction={data.eval_fraction:g} of {data.path or data.source} is less than one document; "
    f"raise it, or set {eval_key(data)}"
  )


def _digest(*parts: Any) -> str:
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
