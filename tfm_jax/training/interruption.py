"""SIGTERM and SIGINT end a run after its current step, with a checkpoint, instead of losing what was computed."""

import signal
import threading
from types import FrameType, TracebackType


class Interruption:
  """While it is entered, the first SIGTERM or SIGINT sets `signal`; the second one acts as usual."""

  def __init__(self) -> None:
    self.signal: int | None = None
    self._previous: dict[int, object] = {}

  def __enter__(self) -> "Interruption":
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def _handle(self, number: int, frame: FrameType | None) -> None:
    self.signal = number
    signal.signal(number, self._previous[number])  # type: ignore[arg-type]

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
