"""SIGTERM and SIGINT end a run after its current step, with a checkpoint, instead of losing what was computed."""

import os
import signal
import threading
from types import FrameType, TracebackType

from tfm_jax.training.agreement import process_count


class Interruption:
  """While it is entered, the first SIGTERM or SIGINT ends the run; the second one acts as usual.

  Several processes have to stop after the same step, whichever of them the signal reaches. JAX's preemption service
  sees to that: it has handled SIGTERM since `jax.distributed` began, and chooses a step that none of them has passed,
  about a second later. Until a process is signalled, asking it costs less than a microsecond and sends nothing. It
  knows SIGTERM only, so a SIGINT is passed on as that; a second SIGTERM does nothing.
  """

  def __init__(self) -> None:
    self._signal: int | None = None
    self._steps = 0  # since this start: the service counts from there
    self._several = process_count() > 1
    self._previous: dict[int, object] = {}

  def __enter__(self) -> "Interruption":
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def after_step(self) -> int | None:
    """The signal that ends the run now, else None; to be asked once after each step, by all processes."""
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
  """A signal ended a run after a step; the checkpoint of that step is complete."""

  def __init__(self, number: int, step: int) -> None:
    super().__init__(
      f"{signal.Signals(number).name} after step {step}: its checkpoint is complete, the same command goes on from it"
    )
    self.number = number
