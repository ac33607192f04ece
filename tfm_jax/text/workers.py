"""What pools of worker processes share."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


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
