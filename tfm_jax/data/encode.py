"""Documents to token ids on all cores, in order, in bounded memory."""

import itertools
import logging
import multiprocessing
import os
import signal
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
from tfm_jax.text.tokenizers import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

CHUNK = 1 << 18  # characters that a worker gets at once, about; longer documents go in parts
_FEW = 12  # chunks that are not worth starting workers for


@dataclass(frozen=True)
class Part:
  """A document, or a part of a long one: a text for each side."""

  texts: tuple[str, ...]
  first: bool = True
  last: bool = True


@dataclass(frozen=True)
class Encoded:
  """One side of a chunk: the tokens of its parts in one array, with their lengths, and what was counted."""

  tokens: np.ndarray  # uint16 or uint32 [n]
  lengths: np.ndarray  # int64 [parts]
  last: np.ndarray  # bool [parts]: a document ends here
  text_bytes: np.ndarray  # int64 [parts], UTF-8
  unknown: int  # tokens that are unk_id


@dataclass(frozen=True)
class Encoder:
  """A tokenizer with what the stream adds to each document."""

  tokenizer: Tokenizer
  bos: bool
  eos: bool

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.uint32)

  def encode(self, chunk: list[Part]) -> tuple[Encoded, ...]:
    """Each side of a chunk."""
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
        f"the tokenizer gave ids {tokens.min()} to {tokens.max()}, outside of its vocabulary of "
        f"{tokenizer.vocab_size}: the files at tokenizer.path do not belong together"
      )
    last = np.array([part.last for part in chunk])
    size = np.array([len(text.encode()) for text in texts], np.int64)
    return Encoded(tokens.astype(self.dtype), lengths, last, size, int(np.sum(tokens == tokenizer.unk_id)))


def chunks(documents: Iterable[tuple[str, ...]]) -> Iterator[list[Part]]:
  """Parts of about CHUNK characters in all; the cuts depend on the documents alone."""
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
  """The encoded chunks in order, the same for any number of workers (None: the cores; 0: in this process)."""
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
  """At most three chunks a worker are under way. Where workers cannot live, this process does the rest."""
  context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
  arguments = (str(tokenizer_directory), encoder.bos, encoder.eos)
  pool = ProcessPoolExecutor(workers, context, _start_worker, arguments)
  waiting: deque[list[Part]] = deque()
  futures: deque[Future[tuple[Encoded, ...]]] = deque()
  try:
    for chunk in stream:
      waiting.append(chunk)
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
    log.warning("a worker ended (a script without `if __name__ == '__main__'`?): tokenising on one core")
    yield from map(encoder.encode, itertools.chain(waiting, stream))
  finally:
    pool.shutdown(cancel_futures=True)


def _parts(document: tuple[str, ...]) -> Iterator[Part]:
  """A document of one side longer than a chunk is cut after line ends, where there are any."""
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
  """Loads the tokenizer once a process; the process ends with its parent, a killed one too."""
  global _worker_encoder
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers for both
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker a core already
  parent = multiprocessing.parent_process()
  if parent is not None:
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
  _worker_encoder = Encoder(load_tokenizer(tokenizer_directory), bos, eos)


def _work(chunk: list[Part]) -> tuple[Encoded, ...]:
  return _worker_encoder.encode(chunk)
