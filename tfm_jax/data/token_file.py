"""The token file: a corpus as flat arrays of ids and document offsets, memory-mapped, with a manifest.

A directory with `manifest.json`, the `tokenizer/`, and for each split and side `SPLIT.SIDE.tokens` (uint16 or
uint32) and `SPLIT.SIDE.offsets` (int64, documents + 1). It has its final name only when it is complete.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tfm_jax.cache import atomic_directory
from tfm_jax.data.encode import Encoder, encode_documents
from tfm_jax.text.corpora import Corpus

log = logging.getLogger(__name__)

FORMAT = 1  # part of the fingerprint: raise it when the bytes that are written change
SPLITS = ("train", "evaluation")
_VERIFIED = 1 << 30  # bytes: files up to this size are checked against their checksum each time (a second a GiB)


class Damaged(Exception):
  """A token file that does not agree with its manifest."""


@dataclass(frozen=True)
class Side:
  """One side of a split: the stream of its documents."""

  tokens: np.ndarray  # [tokens], memory-mapped
  offsets: np.ndarray  # int64 [documents + 1], memory-mapped
  text_bytes: int  # of the UTF-8 text that the tokens stand for


@dataclass(frozen=True)
class Split:
  """The training or the held-out part: one side, or source and target."""

  name: str
  sides: tuple[Side, ...]

  @property
  def documents(self) -> int:
    return len(self.sides[0].offsets) - 1

  @property
  def num_tokens(self) -> int:
    return sum(len(side.tokens) for side in self.sides)

  @property
  def text_bytes(self) -> int:
    return sum(side.text_bytes for side in self.sides)


@dataclass(frozen=True)
class TokenFile:
  """An opened token file."""

  directory: Path
  manifest: dict[str, Any]
  train: Split
  evaluation: Split


def build_token_file(directory: Path, corpus: Corpus, encoder: Encoder, workers: int | None = None) -> TokenFile:
  """Opens the token file in `directory`; makes it from the corpus when it is missing or damaged."""
  if directory.exists():
    try:
      return open_token_file(directory)
    except Damaged as damage:
      log.warning("%s: it is made again", damage)
      shutil.rmtree(directory)
  with atomic_directory(directory) as temporary:
    encoder.tokenizer.save(temporary / "tokenizer")
    splits = {
      name: _write_split(temporary, name, _documents(corpus, name), corpus.sides, encoder, workers) for name in SPLITS
    }
    manifest = {
      "format": FORMAT,
      "corpus": corpus.name,
      "corpus_fingerprint": corpus.fingerprint,
      "tokenizer_fingerprint": encoder.tokenizer.fingerprint,
      "vocab_size": encoder.tokenizer.vocab_size,
      "dtype": encoder.dtype.name,
      "counts": dict(corpus.counts),
      "splits": splits,
    }
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
  return open_token_file(directory)


def open_token_file(directory: Path) -> TokenFile:
  """Memory-maps a token file. Raises Damaged when a file is missing or has another length or checksum."""
  try:
    manifest = json.loads((directory / "manifest.json").read_text())
    if manifest["format"] != FORMAT:
      raise Damaged(f"{directory}: format {manifest['format']}, not {FORMAT}")
    dtype = np.dtype(manifest["dtype"])
    splits = {name: _open_split(directory, name, sides, dtype) for name, sides in manifest["splits"].items()}
    return TokenFile(directory, manifest, splits["train"], splits["evaluation"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise Damaged(f"{directory}: {error}") from error


def _documents(corpus: Corpus, split: str) -> Iterator[tuple[str, ...]]:
  return corpus.train() if split == "train" else corpus.evaluation()


def _write_split(
  directory: Path,
  name: str,
  documents: Iterable[tuple[str, ...]],
  sides: int,
  encoder: Encoder,
  workers: int | None,
) -> list[dict[str, Any]]:
  """Writes the files of a split and returns its part of the manifest."""
  writers = [_SideWriter(directory, f"{name}.{side}") for side in range(sides)]
  try:
    with tqdm(desc=f"tokenising ({name})", unit="B", unit_scale=True, disable=None) as bar:
      for chunk in encode_documents(documents, encoder, directory / "tokenizer", workers):
        for writer, encoded in zip(writers, chunk, strict=True):
          writer.write(encoded.tokens, encoded.lengths, encoded.last)
          writer.text_bytes += encoded.text_bytes
          writer.unknown += encoded.unknown
          bar.update(encoded.text_bytes)
  finally:
    for writer in writers:
      writer.close()
  return [writer.manifest() for writer in writers]


class _File:
  """A file that knows its length and checksum."""

  def __init__(self, path: Path):
    self.name, self.length, self._hash, self._file = path.name, 0, hashlib.sha256(), path.open("wb")

  def write(self, array: np.ndarray) -> None:
    self._file.write(array.data)
    self._hash.update(array.data)
    self.length += len(array)

  def close(self) -> None:
    self._file.close()

  def manifest(self) -> dict[str, Any]:
    return {"file": self.name, "length": self.length, "sha256": self._hash.hexdigest()}


class _SideWriter:
  """The tokens and offsets of one side."""

  def __init__(self, directory: Path, name: str):
    self._tokens, self._offsets = _File(directory / f"{name}.tokens"), _File(directory / f"{name}.offsets")
    self._offsets.write(np.zeros(1, np.int64))
    self.text_bytes = self.unknown = 0

  def write(self, tokens: np.ndarray, lengths: np.ndarray, last: np.ndarray) -> None:
    self._offsets.write((self._tokens.length + np.cumsum(lengths))[last])
    self._tokens.write(tokens)

  def close(self) -> None:
    self._tokens.close()
    self._offsets.close()

  def manifest(self) -> dict[str, Any]:
    files = {"tokens": self._tokens.manifest(), "offsets": self._offsets.manifest()}
    return {**files, "text_bytes": self.text_bytes, "unknown_tokens": self.unknown}


def _open_split(directory: Path, name: str, sides: list[dict[str, Any]], dtype: np.dtype) -> Split:
  opened = []
  for side in sides:
    tokens, offsets = (
      _map(directory, side["tokens"], dtype),
      _map(directory, side["offsets"], np.dtype(np.int64)),
    )
    if offsets[0] != 0 or offsets[-1] != len(tokens):
      raise Damaged(f"{directory}: the offsets of {name} do not end with its tokens")
    opened.append(Side(tokens, offsets, side["text_bytes"]))
  return Split(name, tuple(opened))


def _map(directory: Path, entry: dict[str, Any], dtype: np.dtype) -> np.ndarray:
  """A read-only array over a file, whose length and (when it is not very large) checksum were compared."""
  path = directory / entry["file"]
  size = path.stat().st_size
  if size != entry["length"] * dtype.itemsize:
    raise Damaged(f"{path} has {size} bytes, not {entry['length'] * dtype.itemsize}")
  if size == 0:
    return np.zeros(0, dtype)  # an empty file cannot be mapped
  array = np.memmap(path, dtype, mode="r")
  if size <= _VERIFIED and hashlib.sha256(array.data).hexdigest() != entry["sha256"]:
    raise Damaged(f"{path} does not have the checksum of its manifest")
  return array.view(np.ndarray)
