"""The token file: a corpus as flat arrays of ids and document offsets, memory-mapped, with a manifest.

A directory that contains

  manifest.json        lengths, checksums and counts
  tokenizer/           the tokenizer
  SPLIT.SIDE.tokens    uint16 or uint32
  SPLIT.SIDE.offsets   int64 [documents + 1], where documents begin among the tokens
  SPLIT.SIDE.bytes     int64 [documents + 1], where documents begin among the bytes of their text

It is written under a temporary name and renamed when it is complete.
"""

import contextlib
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
from tfm_jax.data.encode import Encoded, Encoder, encode_documents
from tfm_jax.objectives.plan import Side, Split
from tfm_jax.text.corpora.table import Corpus

log = logging.getLogger(__name__)

FORMAT = 1  # part of the fingerprint: raise it when the bytes that are written change
SPLITS = ("train", "evaluation")
_VERIFIED = 1 << 30  # bytes: smaller files are checked against their checksum each time (about a second per GiB)


class Damaged(Exception):
  """The token file does not match its manifest."""


@dataclass(frozen=True)
class TokenFile:
  """An opened token file."""

  directory: Path
  manifest: dict[str, Any]
  train: Split
  evaluation: Split


def build_token_file(directory: Path, corpus: Corpus, encoder: Encoder, workers: int | None = None) -> TokenFile:
  """Opens the token file in `directory`, after building it from the corpus if it is missing or damaged."""
  if directory.exists():
    try:
      return open_token_file(directory)
    except Damaged as damage:
      log.warning("%s: it is built again", damage)
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
  """Memory-maps a token file. Raises Damaged if a file is missing or has a wrong length or checksum."""
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
  with contextlib.ExitStack() as files:  # closes all files, even if closing one fails on a full disk
    writers = [_SideWriter(directory, f"{name}.{side}", files) for side in range(sides)]
    with tqdm(desc=f"tokenising ({name})", unit="B", unit_scale=True, disable=None) as bar:
      for chunk in encode_documents(documents, encoder, directory / "tokenizer", workers):
        for writer, encoded in zip(writers, chunk, strict=True):
          writer.write(encoded)
          bar.update(int(encoded.text_bytes.sum()))
  return [writer.manifest() for writer in writers]


class _File:
  """A file being written that tracks its length and checksum."""

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
  """Writes the files of one side of a split."""

  def __init__(self, directory: Path, name: str, files: contextlib.ExitStack):
    opened = ((kind, _File(directory / f"{name}.{kind}")) for kind in ("tokens", "offsets", "bytes"))
    self._files = {kind: files.enter_context(contextlib.closing(file)) for kind, file in opened}
    for kind in ("offsets", "bytes"):
      self._files[kind].write(np.zeros(1, np.int64))
    self._text_bytes = self._unknown = 0

  def write(self, encoded: Encoded) -> None:
    begin, last = self._files["tokens"].length, encoded.last
    self._files["offsets"].write((begin + np.cumsum(encoded.lengths))[last])
    self._files["bytes"].write((self._text_bytes + np.cumsum(encoded.text_bytes))[last])
    self._files["tokens"].write(encoded.tokens)
    self._text_bytes += int(encoded.text_bytes.sum())
    self._unknown += encoded.unknown

  def manifest(self) -> dict[str, Any]:
    files = {kind: file.manifest() for kind, file in self._files.items()}
    return {**files, "text_bytes": self._text_bytes, "unknown_tokens": self._unknown}


def _open_split(directory: Path, name: str, sides: list[dict[str, Any]], dtype: np.dtype) -> Split:
  opened = []
  for side in sides:
    tokens = _map(directory, side["tokens"], dtype)
    offsets, byte_offsets = (_map(directory, side[kind], np.dtype(np.int64)) for kind in ("offsets", "bytes"))
    if offsets[0] != 0 or offsets[-1] != len(tokens) or len(byte_offsets) != len(offsets):
      raise Damaged(f"{directory}: the offsets of {name} do not end with its tokens")
    opened.append(Side(tokens, offsets, byte_offsets))
  return Split(name, tuple(opened))


def _map(directory: Path, entry: dict[str, Any], dtype: np.dtype) -> np.ndarray:
  """A read-only array over a file, after comparing its length and (if it is below `_VERIFIED` bytes) its checksum."""
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
