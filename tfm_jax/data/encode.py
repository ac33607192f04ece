"""Documents to token ids on all cores, in order, in bounded memory."""

import itertools
import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.table import Tokenizer, load_tokenizer
from tfm_jax.text.workers import deaf_to_interrupts

log = logging.getLogger(__name__)

CHUNK = 1 << 18  # approximate number of characters that a worker gets at once; longer documents are cut into parts
_FEW = 12  # a text of fewer chunks is tokenised without workers


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
) -> Iterator[tuple[Encoded, ...]]:
  """The encoded chunks in order, the same for any number of workers.

  Args:
    documents: one text per side.
    encoder: used in this process.
    tokenizer_directory: the same tokenizer as saved, which workers load.
    workers: processes; None: one per core, or none if the text is small; 0 or 1: this process alone.
  """
  stream = chunks(documents)
  head = list(itertools.islice(stream, _FEW))
  if workers is None:
    workers = _cores() if len(head) == _FEW else 0
  stream = itertools.chain(head, stream)
  if workers <= 1:
    yield from map(encoder.encode, stream)
  else:
    yield from _in_workers(stream, encoder, tokenizer_directory, workers)


def _in_workers(
  stream: Iterator[list[Part]], encoder: Encoder, tokenizer_directory: Path, workers: int
) -> Iterator[tuple[Encoded, ...]]:
  """Encodes in worker processes, with at most three chunks per worker in flight. If they die, this process goes on."""
  context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
  arguments = (str(tokenizer_directory), encoder.bos, encoder.eos)
  pool = ProcessPoolExecutor(workers, context, _start_worker, arguments)
  waiting: deque[list[Part]] = deque()
  futures: deque[Future[tuple[Encoded, ...]]] = deque()
  try:
    for chunk in stream:
      waiting.append(chunk)
      with deaf_to_interrupts():
        futures.append(pool.submit(_work, chunk))
      if len(futures) > 3 * workers:
        encoded = futures.popleft().result()
        waiting.popleft()
        yield encoded
    while futures:
      encoded = futures.popleft().result()
      waiting.popleft()
      yield encoded
  except BrokenProcessPool:
    log.warning("a worker process died (a script without `if __name__ == '__main__'`?): tokenising on one core")
    yield from map(encoder.encode, itertools.chain(waiting, stream))
  finally:
    pool.shutdown(cancel_futures=True)


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


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_worker_encoder: Encoder


def _start_worker(tokenizer_directory: str, bos: bool, eos: bool) -> None:
  """Loads the tokenizer once per process. The process ends with its parent, even if that is killed."""
  global _worker_encoder
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each core has a worker already
  parent = multiprocessing.parent_process()
  if parent is not None:
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
  _worker_encoder = Encoder(load_tokenizer(tokenizer_directory), bos, eos)


def _work(chunk: list[Part]) -> tuple[Encoded, ...]:
  return _worker_encoder.encode(chunk)
