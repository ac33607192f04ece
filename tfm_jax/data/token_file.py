"""The token file: a corpus as flat arrays of ids and document offsets, memory-mapped, with a manifest.

A directory that contains

  manifest.json        lengths, checksums and counts
  tokenizer/           the tokenizer
  SPLIT.SIDE.tokens    uint16 or uint32
  SPLIT.SIDE.offsets   int64 [documents + 1], where documents begin among the tokens
  SPLIT.SIDE.bytes     int64 [documents + 1], where documents begin among the bytes of their text

It is written under another name and renamed when it is complete; after a kill, the next process goes on (`journal`).
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tfm_jax.data.encode import CHUNK, Encoded, Encoder, encode_documents
from tfm_jax.data.journal import Journal, resumable_directory
from tfm_jax.objectives.plan import Side, Split
from tfm_jax.text.corpora.table import Corpus

log = logging.getLogger(__name__)

FORMAT = 1  # part of the fingerprint: raise it when the bytes that are written change
SPLITS = ("train", "evaluation")
_VERIFIED = 1 << 30  # bytes: smaller files are checked against their checksum each time (about a second per GiB)
_SAVED = 64  # chunks between entries of the journal: about 16 million characters


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
  with resumable_directory(directory) as temporary:
    encoder.tokenizer.save(temporary / "tokenizer")
    journals = {name: Journal(temporary, name, [FORMAT, CHUNK]) for name in SPLITS}
    splits = {name: _write_split(temporary, journals[name], name, corpus, encoder, workers) for name in SPLITS}
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
    for journal in journals.values():
      journal.remove()
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
  directory: Path, journal: Journal, name: str, corpus: Corpus, encoder: Encoder, workers: int | None
) -> list[dict[str, Any]]:
  """Writes the files of a split, from where the journal says, and returns its part of the manifest."""
  if journal.done:
    corpus.counts.update(journal.state["counts"])
    manifest: list[dict[str, Any]] = journal.state["manifest"]
    return manifest
  with contextlib.ExitStack() as files:  # closes all files, even if closing one fails on a full disk
    states = journal.state.get("sides", [{}] * corpus.sides)
    writers = [_SideWriter(directory, f"{name}.{side}", journal, files, state) for side, state in enumerate(states)]
    written = sum(writer.text_bytes for writer in writers)
    with tqdm(desc=f"tokenising ({name})", unit="B", unit_scale=True, disable=None, initial=written) as bar:
      encoded_chunks = encode_documents(
        _documents(corpus, name), encoder, directory / "tokenizer", workers, journal.chunks
      )
      for number, chunk in enumerate(encoded_chunks, journal.chunks + 1):
        for writer, encoded in zip(writers, chunk, strict=True):
          writer.write(encoded)
          bar.update(int(encoded.text_bytes.sum()))
        if number % _SAVED == 0:
          journal.save(number, {"sides": [writer.state() for writer in writers]})
    manifest = [writer.manifest() for writer in writers]
    counts = {key: count for key, count in corpus.counts.items() if key.startswith(name)}
    journal.save(0, {"manifest": manifest, "counts": counts}, done=True)
  return manifest


class _File:
  """A file being written that tracks its length and checksum; `length`: what a former process wrote."""

  def __init__(self, directory: Path, name: str, journal: Journal, files: contextlib.ExitStack, length: int):
    self.name, self.length, self._hash, self._file = name, length, hashlib.sha256(), journal.open(name, files)
    if length:
      with (directory / name).open("rb") as written:
        while piece := written.read(1 << 20):
          self._hash.update(piece)

  def write(self, array: np.ndarray) -> None:
    self._file.write(array.data)
    self._hash.update(array.data)
    self.length += len(array)

  def manifest(self) -> dict[str, Any]:
    return {"file": self.name, "length": self.length, "sha256": self._hash.hexdigest()}


class _SideWriter:
  """Writes the files of one side of a split; state: what `state` returned in a former process, or empty."""

  def __init__(self, directory: Path, name: str, journal: Journal, files: contextlib.ExitStack, state: dict[str, Any]):
    lengths = state.get("lengths", {})
    self._files = {
      kind: _File(directory, f"{name}.{kind}", journal, files, lengths.get(kind, 0))
      for kind in ("tokens", "offsets", "bytes")
    }
    self.text_bytes, self._unknown = state.get("text_bytes", 0), state.get("unknown", 0)
    if not state:
      for kind in ("offsets", "bytes"):
        self._files[kind].write(np.zeros(1, np.int64))

  def write(self, encoded: Encoded) -> None:
    begin, last = self._files["tokens"].length, encoded.last
    self._files["offsets"].write((begin + np.cumsum(encoded.lengths))[last])
    self._files["bytes"].write((self.text_bytes + np.cumsum(encoded.text_bytes))[last])
    self._files["tokens"].write(encoded.tokens)
    self.text_bytes += int(encoded.text_bytes.sum())
    self._unknown += encoded.unknown

  def state(self) -> dict[str, Any]:
    lengths = {kind: file.length for kind, file in self._files.items()}
    return {"lengths": lengths, "text_bytes": self.text_bytes, "unknown": self._unknown}

  def manifest(self) -> dict[str, Any]:
    files = {kind: file.manifest() for kind, file in self._files.items()}
    return {**files, "text_bytes": self.text_bytes, "unknown_tokens": self._unknown}


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
