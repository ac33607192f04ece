"""Pools of worker processes."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_FEW = 12  # fewer items are worked on without workers


def map_in_workers(
  function: Callable[[T], R],
  items: Iterator[T],
  workers: int | None = None,
  what: str = "working",
  here: Callable[[T], R] | None = None,
  start: Callable[..., None] | None = None,
  arguments: tuple[Any, ...] = (),
) -> Iterator[R]:
  """function(item) of each item, in order, with at most three items per worker in memory.

  Args:
    function: of a module, as workers import it.
    items: read as they are needed.
    workers: processes; None: one per core, or none for few items; 0 or 1: this process alone.
    what: the work, for the log. If workers die, this process goes on.
    here: the same function for this process; None: `function`.
    start: is called with `arguments` in each new worker.
    arguments: of `start`.
  """
  head = list(itertools.islice(items, _FEW))
  if workers is None:
    workers = _cores() if len(head) == _FEW else 0
  stream, alone = itertools.chain(head, items), here or function
  if workers <= 1:
    yield from map(alone, stream)
    return
  context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
  pool = ProcessPoolExecutor(workers, context, _start, (start, arguments))
  waiting: deque[T] = deque()
  futures: deque[Future[R]] = deque()
  try:
    for item in stream:
      waiting.append(item)
      with deaf_to_interrupts():
        futures.append(pool.submit(function, item))
      if len(futures) > 3 * workers:
        result = futures.popleft().result()
        waiting.popleft()
        yield result
    while futures:
      result = futures.popleft().result()
      waiting.popleft()
      yield result
  except BrokenProcessPool:
    log.warning("a worker process died (a script without `if __name__ == '__main__'`?): %s on one core", what)
    yield from map(alone, itertools.chain(waiting, stream))
  finally:
    pool.shutdown(cancel_futures=True)


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
  """Begins a worker, which ends with its parent, even if that is killed."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
  if start is not None:
    start(*arguments)


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
  """Processes that are started in the block never receive SIGINT, which Ctrl-C sends them too; the parent handles it.

  They inherit the mask, so this holds from their first instruction. Here, SIGINT and SIGTERM take effect after the
  block: a parent that left in the middle of a start would leave a child behind that prints a traceback. The mask is of
  one thread, and a process with others receives the signal in one of them; hence the handlers.
  """
  if not hasattr(signal, "pthread_sigmask"):  # Windows
    yield
    return
  received: list[int] = []

  def hold(number: int, frame: FrameType | None) -> None:
    received.append(number)

  held = {}
  if threading.current_thread() is threading.main_thread():  # the only one that Python's handlers run in
    for number in (signal.SIGINT, signal.SIGTERM):
      if callable(signal.getsignal(number)):  # a handler that JAX installed in C must stay: Python does not know it
        held[number] = signal.signal(number, hold)
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    for number, handler in held.items():
      signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if received:
      signal.raise_signal(received[0])
