"""Documents to token ids on all cores, in order, in bounded memory."""

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.table import Tokenizer, load_tokenizer
from tfm_jax.text.workers import map_in_workers

CHUNK = 1 << 18  # approximate number of characters that a worker gets at once; longer documents are cut into parts


@dataclass(frozen=True)
class Part:
  """A document, or a part of a long one: one text per side."""

  texts: tuple[str, ...]
  first: bool = True  # the document begins with this part
  last: bool = True  # the document ends with this part


@dataclass(frozen=True)
class Encoded:
  """One side of a chunk: the concatenated tokens of its parts, with their lengths and counts."""

  tokens: np.ndarray  # uint16 or uint32 [n]
  lengths: np.ndarray  # int64 [parts]
  last: np.ndarray  # bool [parts]: whether a document ends with the part
  text_bytes: np.ndarray  # int64 [parts], UTF-8
  unknown: int  # number of tokens that are unk_id


@dataclass(frozen=True)
class Encoder:
  """A tokenizer, and the special tokens that are added to each document."""

  tokenizer: Tokenizer
  bos: bool
  eos: bool

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.uint32)

  def encode(self, chunk: list[Part]) -> tuple[Encoded, ...]:
    """The tokens of each side of a chunk. Raises UserError for ids outside of the vocabulary."""
    return tuple(self._side(chunk, side) for side in range(len(chunk[0].texts)))

  def _side(self, chunk: list[Part], side: int) -> Encoded:
    texts = [part.texts[side] for part in chunk]
    tokenizer, none = self.tokenizer, np.zeros(0, np.int32)
    bos = np.array([tokenizer.bos_id], np.int32) if self.bos and tokenizer.bos_id >= 0 else none
    eos = np.array([tokenizer.eos_id], np.int32) if self.eos and tokenizer.eos_id >= 0 else none
    arrays: list[np.ndarray] = []
    lengths = np.zeros(len(chunk), np.int64)
    for i, (part, ids) in enumerate(zip(chunk, tokenizer.encode_batch(texts), strict=True)):
      pieces = (bos if part.first else none, ids, eos if part.last else none)
      lengths[i] = sum(map(len, pieces))
      arrays.extend(pieces)
    tokens = np.concatenate(arrays)
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= tokenizer.vocab_size):
      raise UserError(
        f"the tokenizer produced ids {tokens.min()} to {tokens.max()}, outside of its vocabulary of "
        f"{tokenizer.vocab_size}: the files at tokenizer.path do not belong together"
      )
    last = np.array([part.last for part in chunk])
    size = np.array([len(text.encode()) for text in texts], np.int64)
    return Encoded(tokens.astype(self.dtype), lengths, last, size, int(np.sum(tokens == tokenizer.unk_id)))


def chunks(documents: Iterable[tuple[str, ...]]) -> Iterator[list[Part]]:
  """Lists of parts of about CHUNK characters in total. The cuts depend only on the documents."""
  chunk: list[Part] = []
  size = 0
  for part in itertools.chain.from_iterable(map(_parts, documents)):
    chunk.append(part)
    size += sum(map(len, part.texts))
    if size >= CHUNK:
      yield chunk
      chunk, size = [], 0
  if chunk:
    yield chunk


def encode_documents(
  documents: Iterable[tuple[str, ...]],
  encoder: Encoder,
  tokenizer_directory: Path,
  workers: int | None = None,
  skip: int = 0,
) -> Iterator[tuple[Encoded, ...]]:
  """The encoded chunks in order, the same for any number of workers.

  Args:
    documents: one text per side.
    encoder: used in this process.
    tokenizer_directory: the same tokenizer as saved, which workers load.
    workers: processes; None: one per core, or none if the text is small; 0 or 1: this process alone.
    skip: chunks at the beginning that are read, and not encoded.
  """
  stream = itertools.islice(chunks(documents), skip, None)
  arguments = (str(tokenizer_directory), encoder.bos, encoder.eos)
  return map_in_workers(_work, stream, workers, "tokenising", encoder.encode, _start_worker, arguments)


def _parts(document: tuple[str, ...]) -> Iterator[Part]:
  """The parts of a document. Long documents of one side are cut, after line ends if they have any."""
  if len(document) > 1 or len(document[0]) <= 2 * CHUNK:
    yield Part(document)
    return
  text, begin = document[0], 0
  while begin < len(text):
    end = begin + CHUNK
    if end < len(text):
      end = text.rfind("\n", begin, end) + 1 or end
    yield Part((text[begin:end],), first=begin == 0, last=end >= len(text))
    begin = end


_worker_encoder: Encoder


def _start_worker(tokenizer_directory: str, bos: bool, eos: bool) -> None:
  """Loads the tokenizer once per process."""
  global _worker_encoder
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each core has a worker already
  _worker_encoder = Encoder(load_tokenizer(tokenizer_directory), bos, eos)


def _work(chunk: list[Part]) -> tuple[Encoded, ...]:
  return _worker_encoder.encode(chunk)
