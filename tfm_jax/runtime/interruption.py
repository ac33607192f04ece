"""SIGTERM and SIGINT end a run after its current step, with a checkpoint, so that no work is lost."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

from tfm_jax.runtime.agreement import process_count


class Interruption:
  """A context in which the first SIGTERM or SIGINT asks the run to end, and the second one acts as usual.

  Several processes have to stop after the same step, whichever of them receives the signal. JAX's preemption service
  takes care of that: it handles SIGTERM from the start of `jax.distributed`, and chooses a step that no process has
  passed yet, about a second later. Until a signal arrives, asking the service takes less than a microsecond and sends
  nothing. It handles only SIGTERM, so a SIGINT is forwarded as one; a second SIGTERM does nothing.
  """

  def __init__(self) -> None:
    self._signal: int | None = None
    self._steps = 0  # since this process started, as the service counts them
    self._several = process_count() > 1
    self._previous: dict[int, object] = {}

  def __enter__(self) -> "Interruption":
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def after_step(self) -> int | None:
    """The signal that ends the run now, or None. All processes must call it once after each step."""
    if not self._several:
      return self._signal
    from jax.experimental import multihost_utils  # late: commands import this module before they need JAX

    self._steps += 1
    return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(self._steps) else None

  def _handle(self, number: int, frame: FrameType | None) -> None:
    self._signal = number
    signal.signal(number, self._previous[number])  # type: ignore[arg-type]
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)

  def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)  # type: ignore[arg-type]


class Interrupted(Exception):
  """A signal ended the run.

  Args:
    number: the signal.
    step: the step after which the run ended, whose checkpoint is complete; None: the signal ended it at once.
    saved: the step of the last checkpoint of a run that was ended at once; None: there is none.
  """

  def __init__(self, number: int, step: int | None, saved: int | None = None) -> None:
    name = signal.Signals(number).name
    if step is not None:
      text = f"{name} after step {step}: its checkpoint is complete; the same command resumes from it"
    elif saved is not None:
      text = f"{name}: ended at once; the same command resumes from the checkpoint of step {saved}"
    else:
      text = f"{name} before the first checkpoint: nothing is saved, and the same command starts anew"
    super().__init__(text)
    self.number = number


class _Stop(KeyboardInterrupt):
  """Raised by a signal where it arrives; like Python's own, it is no `Exception` that a library could catch."""


_AGAIN = 0.05  # seconds until a signal whose exception was lost is sent again


@contextlib.contextmanager
def ended_at_once(last_checkpoint: Callable[[], int | None]) -> Iterator[None]:
  """Until `Interruption` takes over, SIGINT and SIGTERM end the block at once, as Interrupted.

  Several processes leave both signals to JAX, and other threads than the main one receive none.

  Python ignores what is raised in a destructor or in a callback of its garbage collector, and JAX has such a callback:
  a signal that arrives there would be lost. It is sent again a little later.

  Args:
    last_checkpoint: the step of the last checkpoint, for the message.
  """
  if process_count() > 1 or threading.current_thread() is not threading.main_thread():
    yield
    return

  def stop(number: int, frame: FrameType | None) -> None:
    raise _Stop(number)

  def unraisable(lost: "sys.UnraisableHookArgs") -> None:
    if isinstance(lost.exc_value, _Stop):
      threading.Timer(_AGAIN, os.kill, (os.getpid(), lost.exc_value.args[0])).start()
    else:
      report(lost)

  report, sys.unraisablehook = sys.unraisablehook, unraisable
  previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield
  except _Stop as signalled:
    raise Interrupted(signalled.args[0], None, last_checkpoint()) from None
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
    sys.unraisablehook = report
