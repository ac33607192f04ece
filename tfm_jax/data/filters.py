"""Documents that are left out of a corpus: unwanted ones by simple rules, and exact and near duplicates.

Each document gets one byte, the reason why it is left out (0: it stays), in a file of the cache, and reading the corpus
skips documents by it. Texts are read twice, and never held all at once; the work goes on where it was killed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tfm_jax.cache import cache_dir
from tfm_jax.data import minhash
from tfm_jax.data.config import FILTERS, SourceConfig
from tfm_jax.data.encode import CHUNK
from tfm_jax.data.journal import Journal, resumable_directory
from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import Corpus, Counts, Document
from tfm_jax.text.workers import map_in_workers

log = logging.getLogger(__name__)

REASONS = (
  "kept",
  "too_short",
  "too_long",
  "few_letters",
  "repeated_lines",
  "unwanted",
  "duplicates",
  "near_duplicates",
)
_EXACT, _NEAR = REASONS.index("duplicates"), REASONS.index("near_duplicates")
_PARTS = ("evaluation", "train")  # in this order, so that text like the held-out one is not trained on
_FORMAT = 2  # part of the fingerprint: raise it when the reasons change
_SAVED = 64  # chunks between entries of the journal

_Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]


def filtered(corpus: Corpus, config: SourceConfig, workers: int | None = None) -> Corpus:
  """The corpus without the documents that the config leaves out; itself, if it leaves out none.

  Of duplicates the first stays; held-out documents come first, so that nothing like them is trained on.

  Args:
    corpus: the documents.
    config: the rules.
    workers: processes that read the texts; None: one per core.

  Raises:
    UserError: while reading, if no document is left to train on.
  """
  settings = {key: getattr(config, key) for key in FILTERS}
  if settings == {key: getattr(SourceConfig, key) for key in FILTERS}:
    return corpus
  digest = hashlib.sha256(json.dumps([_FORMAT, corpus.fingerprint, settings]).encode()).hexdigest()[:16]

  def read(part: str, counts: Counts) -> Iterator[Document]:
    directory = cache_dir() / "decisions" / digest
    reasons = _decided(directory, part)
    if reasons is None:
      _decide(directory, corpus, config, workers)
      reasons = np.load(directory / f"{part}.left_out")
    totals = np.bincount(reasons, minlength=len(REASONS)).tolist()
    for reason, count in enumerate(totals):
      if reason:
        counts[f"filter_{REASONS[reason]}"] = count  # the embedded corpus counts its own duplicates
    if part == "train" and len(reasons) and not totals[0]:
      most = max(totals)
      key, label = rules[REASONS[totals.index(most)]]
      raise UserError(
        f"{config.path or config.source}: no document is left to train on; of {len(reasons):,}, {most:,} are left out "
        f"as {label}: change data.{key}"
      )
    for number, document in enumerate(corpus.read(part, counts)):
      if not reasons[number]:
        yield document

  rules = {  # reason -> (key of `data`, label)
    "too_short": ("min_characters", f"shorter than {config.min_characters:,} characters"),
    "too_long": ("max_characters", f"longer than {config.max_characters:,} characters"),
    "few_letters": ("min_letters", f"less than {config.min_letters:.0%} letters"),
    "repeated_lines": ("max_repeated_lines", f"more than {config.max_repeated_lines:.0%} repeated lines"),
    "unwanted": ("unwanted", "with a match of data.unwanted"),
    "duplicates": ("duplicates", "exact duplicates"),
    "near_duplicates": ("similarity", f"near duplicates (similarity {config.similarity:g})"),
  }
  labels = {f"filter_{name}": f"{label}, left out" for name, (_, label) in rules.items()}
  return dataclasses.replace(
    corpus, read=read, fingerprint=digest, former_fingerprint="", left_out={**corpus.left_out, **labels}
  )


def reason(text: str, config: SourceConfig) -> int:
  """The first rule that leaves out a text, as an index of `REASONS`; 0: none does."""
  if len(text) < config.min_characters:
    return 1
  if config.max_characters and len(text) > config.max_characters:
    return 2
  if config.min_letters:
    visible = len("".join(text.split()))
    if sum(map(str.isalpha, text)) < config.min_letters * visible:
      return 3
  if config.max_repeated_lines < 1:
    lines = [line.strip() for line in text.split("\n") if line and not line.isspace()]
    if len(lines) - len(set(lines)) > config.max_repeated_lines * len(lines):
      return 4
  if config.unwanted and re.search(config.unwanted, text):
    return 5
  return 0


def _examined(chunk: list[Document], config: SourceConfig) -> _Chunk:
  """The reasons uint8 [n], digests uint64 [n, 2] and, for near duplicates, signatures uint32 [n, 128] of documents."""
  texts = ["\n".join(document) for document in chunk]
  reasons = np.array([reason(text, config) for text in texts], np.uint8)
  plain = (hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest() for text in texts)
  digests = np.frombuffer(b"".join(plain), np.uint64).reshape(-1, 2)
  near = config.duplicates == "near"
  return reasons, digests, minhash.signatures(texts) if near else np.zeros((0, minhash.FUNCTIONS), np.uint32)


def _decided(directory: Path, part: str) -> np.ndarray | None:
  """The stored reasons of a part; None if there are none, or a file is lost or damaged: all are then removed."""
  try:
    with (directory / f"{part}.left_out").open("rb") as file:
      reasons: np.ndarray = np.load(file)
      return reasons
  except (FileNotFoundError, EOFError, ValueError) as error:
    if directory.exists():
      log.warning("looking again for what to leave out: %s is damaged (%s)", directory, error)
      shutil.rmtree(directory)
    return None


def _decide(final: Path, corpus: Corpus, config: SourceConfig, workers: int | None) -> None:
  """Writes the reasons of all documents of both parts. Raises UserError for text that cannot be read."""
  log.info("looking for duplicates and unwanted text")
  with resumable_directory(final) as directory:
    journals = [Journal(directory, part, [_FORMAT, CHUNK]) for part in _PARTS]
    for part, journal in zip(_PARTS, journals, strict=True):
      _examine(directory, part, journal, corpus, config, workers)
    reasons = [np.fromfile(directory / f"{part}.reasons", np.uint8) for part in _PARTS]
    every, sizes = np.concatenate(reasons), [len(each) for each in reasons]
    if config.duplicates != "keep":
      every[minhash.repeated(_joined(directory, "digests", np.uint64, 2, sizes), every == 0)] = _EXACT
    if config.duplicates == "near":
      signed = _joined(directory, "signatures", np.uint32, minhash.FUNCTIONS, sizes)
      every[minhash.near_duplicates(signed, every == 0, config.similarity)] = _NEAR
      del signed
    for part, found in zip(_PARTS, np.split(every, sizes[:1]), strict=True):
      with (directory / f"{part}.left_out").open("wb") as file:
        np.save(file, found)
    for journal in journals:  # first: what they describe is removed next
      journal.remove()
    for ending in ("reasons", "digests", "signatures"):
      for part in _PARTS:
        (directory / f"{part}.{ending}").unlink()


def _examine(
  directory: Path, part: str, journal: Journal, corpus: Corpus, config: SourceConfig, workers: int | None
) -> None:
  """Writes what `_examined` finds about every document of a part, from where the journal says."""
  if journal.done:
    return
  with contextlib.ExitStack() as files:
    opened = [journal.open(f"{part}.{kind}", files) for kind in ("reasons", "digests", "signatures")]
    chunks = itertools.islice(_chunks(corpus.read(part, {})), journal.chunks, None)
    examined = map_in_workers(functools.partial(_examined, config=config), chunks, workers, "examining")
    with tqdm(desc=f"examining ({part})", unit=" documents", unit_scale=True, disable=None) as bar:
      for number, arrays in enumerate(examined, journal.chunks + 1):
        for file, array in zip(opened, arrays, strict=True):
          file.write(array.data)
        bar.update(len(arrays[0]))
        if number % _SAVED == 0:
          journal.save(number, {})
    journal.save(0, {}, done=True)


def _chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
  """Lists of documents of about CHUNK characters."""
  chunk: list[Document] = []
  size = 0
  for document in documents:
    chunk.append(document)
    size += sum(map(len, document))
    if size >= CHUNK:
      yield chunk
      chunk, size = [], 0
  if chunk:
    yield chunk


def _joined(directory: Path, kind: str, dtype: type, columns: int, sizes: Sequence[int]) -> np.ndarray:
  """The numbers about the documents of both parts, one after the other, memory-mapped [documents, columns]."""
  first, second = (directory / f"{part}.{kind}" for part in _PARTS)
  os.truncate(first, sizes[0] * columns * np.dtype(dtype).itemsize)  # a killed process may have joined them already
  with first.open("ab") as end, second.open("rb") as source:
    shutil.copyfileobj(source, end)
  if not sum(sizes):
    return np.zeros((0, columns), dtype)
  return np.memmap(first, dtype, mode="r").view(np.ndarray).reshape(-1, columns)
