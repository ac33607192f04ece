"""What the processes of a run agree on: values, whose turn it is, and that a mistake of one ends them all.

Everything here is small messages through the service that `jax.distributed` runs for its own ends. No device takes
part, so that a process may come hours after the others (tokenising takes long). With one process, all of it does
nothing. JAX is imported late: a command that fails on its flags need not wait for it.
"""

import atexit
import contextlib
import itertools
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfm_jax.errors import UserError

WITHOUT_LIMIT = 30 * 86400.0  # seconds: who has died is noticed by the service, who has failed by `watch_others`
SHORTLY = 10.0  # seconds in which the others surely come, if they fail as this process does

_FOLDER = "tfm_jax"  # of our keys
_numbers = itertools.count()  # of the exchanges: all processes make the same ones in the same order
_watching = threading.Event()
_ending = threading.Lock()


class FailedTogether(UserError):
  """A mistake that at least one process found, raised by all of them: each may clean up and end in its own time.

  Args:
    failures: process -> what it has to say.
    process: this process. It repeats its own mistake, if it found one, else that of the first that did.
  """

  def __init__(self, failures: Mapping[int, str], process: int) -> None:
    first = min(failures)
    told = failures[first] if first == 0 else f"process {first}: {failures[first]}"
    own = failures.get(process)
    super().__init__(told if own is None or process == 0 else own)
    # Process 0 tells of the first mistake. The others tell of their own, unless the first is the same.
    self.silent = process != 0 and (own is None or (process != first and own == failures[first]))


def process_index() -> int:
  """The number of this process; 0 if it is the only one."""
  state = _state()
  return state.process_id if state else 0


def process_count() -> int:
  """How many processes `jax.distributed` has joined; 1 without it. Starts no backend of JAX."""
  state = _state()
  return state.num_processes if state else 1


def _state() -> Any:
  """What JAX knows of the other processes, None if there are none.

  There is no public door to the service. Orbax and JAX's own libraries take this one.
  """
  if "jax" not in sys.modules:
    return None
  from jax._src import distributed

  state = distributed.global_state
  return state if state.client is not None and state.num_processes > 1 else None


def exchange(value: Any = None, failure: str | None = None, limit: float = WITHOUT_LIMIT) -> dict[int, Any]:
  """What each process gives, by process: called by all of them, it returns when all have called it.

  Args:
    value: anything that JSON holds; None: nothing.
    failure: this process found a mistake. Whatever the others exchange, they hear of it.
    limit: seconds to wait for the others.

  Raises:
    FailedTogether: a process reported a failure.
    TimeoutError: the others did not come in time.
  """
  state = _state()
  if state is None:
    return {} if value is None else {0: value}
  folder = f"{_FOLDER}/exchange/{next(_numbers)}/"
  if value is not None or failure is not None:
    state.client.key_value_set(f"{folder}{state.process_id}", json.dumps([failure, value]))
  try:
    state.client.wait_at_barrier(folder, int(limit * 1000))
  except Exception as error:
    if "DEADLINE_EXCEEDED" in str(error):
      raise TimeoutError(f"not all processes came within {limit:.0f} s") from error
    raise
  given = {int(key.rpartition("/")[2]): json.loads(text) for key, text in state.client.key_value_dir_get(folder)}
  failures = {process: said for process, (said, _) in sorted(given.items()) if said is not None}
  if failures:
    raise FailedTogether(failures, state.process_id)
  return {process: value for process, (_, value) in sorted(given.items())}


def differing(values: Mapping[str, Any]) -> list[str]:
  """The keys under which this process has something else than process 0; called by all processes."""
  own = json.loads(json.dumps(dict(values)))
  first = exchange(own if process_index() == 0 else None)[0]
  return [key for key in {**first, **own} if first.get(key) != own.get(key)]


@contextlib.contextmanager
def together(limit: float = WITHOUT_LIMIT) -> Iterator[None]:
  """A UserError that one process meets in the block ends the block in all of them, as FailedTogether.

  Args:
    limit: seconds that a process that failed waits for the others. `SHORTLY` where devices work together in the block:
      there, who did not fail as well waits in vain for the one that did, which then raises its own error, and
      `give_up` ends the others.
  """
  if process_count() == 1:
    yield
    return
  try:
    yield
  except FailedTogether:
    raise  # all know of it
  except UserError as error:
    try:
      exchange(failure=str(error), limit=limit)
    except TimeoutError:
      raise error from error.__cause__
    except FailedTogether as failed:
      raise failed from error
  exchange()


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
  """What the processes do once for every folder they share: the first of those that see the same folder, then the rest.

  The rest finds what the first has made. Whether the folder is on a disk of each host or on one that they share, is
  found out by leaving marks there. A UserError is met together.
  """
  if process_count() == 1:
    yield
    return
  process = process_index()
  token = exchange(secrets.token_hex(8) if process == 0 else None)[0]
  mark = folder / f".process.{token}.{process}"
  with contextlib.suppress(OSError):  # of a folder that cannot be written to nothing is wanted but what is there
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
  exchange()
  seen = [int(path.suffix[1:]) for path in folder.glob(f".process.{token}.*")]
  exchange()
  with contextlib.suppress(OSError):
    mark.unlink()
  for first in (True, False):
    with together():
      if first == (min(seen, default=process) == process):
        yield


# Failures that do not come in step.


def watch_others() -> None:
  """From now on the failure of another process ends this one, even while it waits for its devices; see `give_up`."""
  if process_count() == 1 or _watching.is_set():
    return
  _watching.set()
  stop = threading.Event()
  thread = threading.Thread(target=_watch, args=(_state(), stop), name="watch_others", daemon=True)

  def leave() -> None:
    stop.set()
    thread.join()  # before JAX ends the service

  atexit.register(leave)
  thread.start()


def _watch(state: Any, stop: threading.Event) -> None:
  """Looks for a failure of another process every second (a blocked request would outlive the interpreter)."""
  while not stop.wait(1.0):
    try:
      said = state.client.key_value_dir_get(f"{_FOLDER}/failed/")
    except Exception:
      return  # the service is gone: JAX itself ends this process
    if said:
      process, status, reason = json.loads(said[0][1])
      if process != state.process_id:
        _end(state, status, f"error: process {process} on {reason}\n" if state.process_id == 0 else "")


def give_up(status: int, reason: str, told: str = "") -> None:
  """Ends all processes with this exit status, as this one cannot go on; returns where no other one is watched.

  Args:
    status: the exit status.
    reason: what process 0 tells, in one line.
    told: what this process prints, unless it is ending already: a device that fails because another process has
      ended is no news.
  """
  state = _state()
  if state is None or not _watching.is_set():
    print(told, end="", file=sys.stderr)
    return
  failure = json.dumps([state.process_id, status, f"{socket.gethostname()}: {' '.join(reason.split())}"])
  _end(state, status, told, failure)


def _end(state: Any, status: int, told: str, failure: str = "") -> None:
  """Ends this process at once, with the others: an orderly end would wait for those who wait for a device."""
  _ending.acquire()  # for good: the other thread of this process has nothing to add
  print(told, end="", file=sys.stderr)
  with contextlib.suppress(Exception):
    if failure:
      state.client.key_value_set(f"{_FOLDER}/failed/{state.process_id}", failure)
    # Nobody goes before all have heard, or else the first to go is what the others tell of.
    state.client.wait_at_barrier(f"{_FOLDER}/ending", int(SHORTLY * 1000))
    state.client.key_value_set(f"{_FOLDER}/ended/{state.process_id}", "")
    deadline = time.monotonic() + SHORTLY
    # The service is a part of process 0.
    while state.process_id == 0 and time.monotonic() < deadline:
      if len(state.client.key_value_dir_get(f"{_FOLDER}/ended/")) == state.num_processes:
        break
      time.sleep(0.05)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
