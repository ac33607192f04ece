"""A worker's side of the conversation: one JSON object per line on stdin, one answer per line on stdout.

Nothing here imports anything but Python itself: workers of other interpreters use it too.
"""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
  """Answers requests until stdin ends or a request says quit.

  A request is {"do": name of the function, ...its arguments}. The answer is what the function returns, or {"error":
  text} if it raises. What libraries print on stdout goes to stderr.
  """
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  for line in sys.stdin:
    request = json.loads(line)
    name = request.pop("do")
    if name == "quit":
      return
    try:
      answer = functions[name](**request)
    except Exception as error:
      traceback.print_exc()
      kind = "" if type(error).__name__ == "UserError" else f"{type(error).__name__}: "
      answer = {"error": kind + " ".join(str(error).split())}
    print(json.dumps(answer), file=answers, flush=True)


def peak_bytes() -> int:
  """Peak resident memory of this process since `reset_peak`; 0 where the system does not tell."""
  try:
    lines = Path("/proc/self/status").read_text().splitlines()
  except OSError:
    return 0
  return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def reset_peak() -> None:
  """Starts the measurement of peak memory anew, where the system can."""
  with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")


class Clock:
  """The seconds of each step of a run whose results arrive one step late.

  A step is dispatched before the loss of the step before it is fetched, as a training loop does, so that no device
  waits for the host.
  """

  def __init__(self) -> None:
    self.losses: list[float] = []
    self.seconds: list[float] = []
    self._waiting: Any = None
    self._begin = time.perf_counter()

  def dispatched(self, loss: Any) -> None:
    """A step has been dispatched; `loss` becomes a number when it is done."""
    waiting, self._waiting = self._waiting, loss
    if waiting is not None:
      self._arrive(waiting)

  def finish(self) -> dict[str, list[float]]:
    """The losses and the seconds of all steps, after the last one."""
    self._arrive(self._waiting)
    return {"losses": self.losses, "seconds": self.seconds}

  def _arrive(self, loss: Any) -> None:
    self.losses.append(float(loss))
    now = time.perf_counter()
    self.seconds.append(now - self._begin)
    self._begin = now
