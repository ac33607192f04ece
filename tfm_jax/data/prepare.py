"""From the config to data sets: corpus, tokenizer and token file, all cached under fingerprints."""

import dataclasses
import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from tfm_jax.cache import atomic_directory, cache_dir, recall, remember
from tfm_jax.data.config import DataConfig, MixtureSource, SourceConfig, check_data, eval_key, source_name
from tfm_jax.data.dataset import Dataset, unigram_entropy
from tfm_jax.data.encode import Encoder
from tfm_jax.data.filters import filtered
from tfm_jax.data.mixture import MixedDataset, scaled
from tfm_jax.data.pieces import piece_kinds
from tfm_jax.data.summary import corpus_block, mixture_block
from tfm_jax.data.token_file import FORMAT, TokenFile, build_token_file
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import Documents, Fields, Objective, ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import Split
from tfm_jax.objectives.table import make_objective
from tfm_jax.text.corpora.table import (
  Corpus,
  arrow_corpus,
  embedded_corpus,
  joined,
  parallel_corpus,
  parquet_corpus,
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


def _lines(c: SourceConfig, json_lines: bool = False) -> Corpus:
  return text_corpus(
    c.path, c.eval_path, c.eval_fraction, c.document, c.errors, c.field, c.target_field, json_lines=json_lines
  )


SOURCES: dict[str, Callable[[SourceConfig], Corpus]] = {
  "embedded": lambda c: embedded_corpus(),
  "text": _lines,
  "jsonl": lambda c: _lines(c, json_lines=True),
  "parquet": lambda c: parquet_corpus(c.path, c.eval_path, c.eval_fraction, c.field, c.target_field, c.errors),
  "arrow": lambda c: arrow_corpus(c.path, c.split, c.eval_split, c.eval_fraction, c.field, c.target_field, c.errors),
  "parallel": lambda c: parallel_corpus(
    c.path, c.target_path, c.eval_path, c.eval_target_path, c.eval_fraction, c.errors
  ),
  "tfds": lambda c: tfds_corpus(c.path, c.split, c.eval_split, c.eval_fraction, c.field, c.target_field, c.errors),
}


@dataclass(frozen=True)
class Source:
  """A source of text that is ready to train on."""

  config: SourceConfig
  corpus: Corpus
  token_file: TokenFile
  fingerprint: str

  @property
  def counts(self) -> dict[str, int]:
    """What the corpus read, skipped and replaced."""
    counts: dict[str, int] = self.token_file.manifest["counts"]
    return counts

  @property
  def name(self) -> str:
    """In a mixture, what its held-out metrics are named by."""
    return source_name(self.config)


@dataclass(frozen=True)
class Prepared:
  """Everything that training needs of its data."""

  tokenizer: Tokenizer
  vocabulary: Vocabulary
  objective: Objective
  sources: tuple[Source, ...]  # more than one: a mixture
  weights: tuple[float, ...]  # the shares of the sources among the training rows
  fingerprints: dict[str, str]  # data, tokenizer
  former_fingerprints: dict[str, str]  # what earlier releases stored for the same data and tokenizer
  seed: int
  packing: bool

  @property
  def corpus(self) -> Corpus:
    """That of the only, or of the first source."""
    return self.sources[0].corpus

  @property
  def token_file(self) -> TokenFile:
    """That of the only, or of the first source."""
    return self.sources[0].token_file

  @property
  def counts(self) -> dict[str, int]:
    """What the only, or the first source counted."""
    return self.sources[0].counts

  def train(self, batch_size: int) -> Dataset:
    """The training rows, shuffled anew in each epoch."""
    splits = [source.token_file.train for source in self.sources]
    datasets = self._datasets(splits, batch_size, self.seed, shuffle=True)
    names = [source.name for source in self.sources]
    return datasets[0] if len(datasets) == 1 else MixedDataset(datasets, self.weights, True, names)

  def evaluation(self, batch_size: int) -> Dataset | None:
    """The held-out rows, always in the same order; None when no text is held out. Of a mixture, in its shares."""
    return next(iter(self.evaluations(batch_size).values()), None)

  def at_length(self, seq_len: int) -> "Prepared":
    """The same data in rows of another length."""
    old = self.objective
    return dataclasses.replace(self, objective=type(old)(old.config, old.vocabulary, seq_len, 0, old.documents))

  def evaluations(self, batch_size: int) -> dict[str, Dataset]:
    """The held-out rows by the split of their metrics: "eval", and of the sources of a mixture "eval_NAME"."""
    held_out = [n for n, source in enumerate(self.sources) if source.token_file.evaluation.documents]
    splits = [self.sources[n].token_file.evaluation for n in held_out]
    datasets = self._datasets(splits, batch_size, _EVAL_SEED, shuffle=False)
    if not datasets:
      return {}
    if len(self.sources) == 1:
      return {"eval": datasets[0]}
    names = [self.sources[n].name for n in held_out]
    mixed = MixedDataset(datasets, [self.weights[n] for n in held_out], False, names)
    own = {f"eval_{name}": dataset for name, dataset in zip(names, datasets, strict=True)}
    return {"eval": mixed} | own

  def unigram_entropy(self, dataset: Dataset, split: str = "eval") -> float:
    """`unigram_entropy` of the held-out rows of a split; remembered if counting takes long."""
    objective = self.objective
    key = [1, self.fingerprints["data"], dataclasses.asdict(objective.config), objective.seq_len, objective.target_len]
    key += [self.packing] if split == "eval" else [self.packing, split]
    known = recall("entropies", key)
    if isinstance(known, float):
      return known
    begin = time.monotonic()
    entropy = unigram_entropy(dataset)
    if time.monotonic() - begin > _SLOW:
      remember("entropies", key, entropy)
    return entropy

  def _datasets(self, splits: Sequence[Split], batch_size: int, seed: int, shuffle: bool) -> list[Dataset]:
    """A data set per split, whose rows are numbered through."""
    datasets: list[Dataset] = []
    for split in splits:
      first = sum(dataset.num_rows for dataset in datasets)
      datasets.append(Dataset(split, self.objective, batch_size, seed, self.packing, shuffle, first))
    return datasets


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
  workers: processes that read and tokenise (None: the cores). The result does not depend on it.

  Raises:
    UserError: an unknown source or objective, a corpus that is missing, empty or undecodable, an impossible
      vocabulary, or an objective that the corpus or the tokenizer cannot serve.
  """
  # Settings are checked before the corpus is read, and before it is tokenised.
  configs = sources_of(data)
  if stored_tokenizer is None:
    check_tokenizer(tokenizer)
  make_objective(objective, _COMPLETE, data.seq_len, data.target_len)
  corpora = [open_corpus(config, workers) for config in configs]
  if len({corpus.sides for corpus in corpora}) > 1:
    raise UserError("data.mixture: some sources have pairs of texts and others single texts, which cannot be mixed")
  documents = Documents(corpora[0].sides)
  make_objective(objective, _COMPLETE, data.seq_len, data.target_len, documents).check()
  for config in configs:
    log.info("reading data.source=%s: %s", config.source, config.path or "the documentation of this installation")

  loaded = find_tokenizer(tokenizer, joined(corpora), stored_tokenizer)
  vocabulary = vocabulary_of(loaded)
  built = make_objective(objective, vocabulary, data.seq_len, data.target_len, documents)
  built.check()
  encoder = Encoder(loaded, built.adds_bos, built.adds_eos)
  sources = tuple(_tokenised(config, corpus, encoder, workers) for config, corpus in zip(configs, corpora, strict=True))
  rows = [_log_corpus(source, built, data.packing) for source in sources]
  weights = scaled(
    [c.weight if isinstance(c, MixtureSource) and c.weight else n for c, n in zip(configs, rows, strict=True)],
    data.mixture_temperature,
  )
  if len(sources) > 1:
    log.info("%s", mixture_block([source.name for source in sources], rows, weights))
  if not any(source.token_file.evaluation.documents for source in sources):
    log.warning("%s", nothing_held_out(data))

  first = sources[0]
  data_fingerprint = former = first.fingerprint
  if len(sources) > 1:
    data_fingerprint = former = _digest("mixture", [source.fingerprint for source in sources], weights)
  elif first.corpus.former_fingerprint and not first.counts.get("evaluation_cut_lines"):
    # Earlier releases held out nothing of a text that is cut within a line.
    former = _fingerprint(first.corpus.former_fingerprint, encoder)
  return Prepared(
    tokenizer=loaded,
    vocabulary=vocabulary,
    objective=built,
    sources=sources,
    weights=tuple(weights),
    fingerprints={"data": data_fingerprint, "tokenizer": loaded.fingerprint},
    former_fingerprints={"data": former, "tokenizer": loaded.fingerprint},
    seed=seed,
    packing=data.packing,
  )


def sources_of(data: DataConfig) -> Sequence[SourceConfig]:
  """The sources that are read: those of the mixture, or the only one. Raises UserError for an impossible value."""
  configs: Sequence[SourceConfig] = data.mixture or (data,)
  for config in configs:
    if config.source not in SOURCES:
      raise UserError(f"data.source={config.source!r} is unknown: choose one of {', '.join(SOURCES)}")
  check_data(data)
  return configs


def open_corpus(config: SourceConfig, workers: int | None = None) -> Corpus:
  """The documents of a source, without those that are left out; `workers` as in `prepare`. Raises UserError."""
  return filtered(SOURCES[config.source](config), config, workers)


def _tokenised(config: SourceConfig, corpus: Corpus, encoder: Encoder, workers: int | None) -> Source:
  """A source with its token file. Raises UserError if it has no text to train on."""
  fingerprint = _fingerprint(corpus.fingerprint, encoder)
  token_file = build_token_file(cache_dir() / "tokens" / fingerprint, corpus, encoder, workers)
  if not token_file.train.num_tokens:
    place = f" ({config.path})" if isinstance(config, MixtureSource) else ""
    raise UserError(
      f"data.source={config.source}{place} has no text to train on: check data.path and data.eval_fraction"
    )
  return Source(config, corpus, token_file, fingerprint)


def _fingerprint(corpus: str, encoder: Encoder) -> str:
  return _digest(FORMAT, corpus, encoder.tokenizer.fingerprint, encoder.bos, encoder.eos)


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


def _log_corpus(source: Source, objective: Objective, packing: bool) -> int:
  """Logs what the run reads, and warns of what the user may not expect; returns the number of training rows."""
  token_file = source.token_file
  splits = (token_file.train, token_file.evaluation)
  plans = [objective.plan(split, packing) if split.documents else None for split in splits]
  rows = [plan.num_rows if plan else 0 for plan in plans]
  log.info("%s", corpus_block(source.corpus, splits, rows, source.counts, objective.row_tokens))
  for split, plan in zip(splits, plans, strict=True):
    if plan and plan.truncated:
      cut = f"{plan.truncated:,} texts are longer than their row and were cut"
      log.warning("%s: %s; raise data.seq_len (or data.target_len)", split.name, cut)
  for name, sides in token_file.manifest["splits"].items():
    unknown = sum(side["unknown_tokens"] for side in sides)
    if unknown:  # text that the vocabulary cannot express
      log.warning("%s: %s tokens are unknown to the tokenizer", name, f"{unknown:,}")
  return rows[0]


def nothing_held_out(data: DataConfig) -> str:
  """Why a run has no evaluation."""
  what = "nothing is held out, so there is no evaluation:"
  if data.mixture:
    return f"{what} raise eval_fraction in a section of data.mixture, or set its {eval_key(data.mixture[0])[5:]}"
  if not data.eval_fraction:
    return f"{what} data.eval_fraction is 0 and {eval_key(data)} is empty"
  return (
    f"{what} data.eval_fraction={data.eval_fraction:g} of {data.path or data.source} is less than one document; "
    f"raise it, or set {eval_key(data)}"
  )


def _digest(*parts: Any) -> str:
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
