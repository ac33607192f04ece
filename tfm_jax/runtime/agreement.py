"""Coordination of the processes of a run: exchanging values, taking turns, and ending together when one fails.

All of it is small messages through the coordination service of `jax.distributed`. Devices take no part, so a process
may arrive hours after the others (tokenising takes long). With a single process, these functions do nothing. JAX is
imported late, so that a command that fails on its flags need not wait for it.
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

WITHOUT_LIMIT = 30 * 86400.0  # seconds; JAX's service notices processes that died, `watch_others` those that failed
SHORTLY = 10.0  # seconds within which the other processes arrive if they fail in the same way as this one

_FOLDER = "tfm_jax"  # prefix of our keys in the service
_numbers = itertools.count()  # numbers the exchanges: all processes make the same ones in the same order
_watching = threading.Event()
_ending = threading.Lock()


class FailedTogether(UserError):
  """A UserError of at least one process, raised in all of them, so that each can clean up and exit.

  Args:
    failures: process -> its error message.
    process: the index of this process. Its message is its own, or else that of the first process that failed.
  """

  def __init__(self, failures: Mapping[int, str], process: int) -> None:
    first = min(failures)
    message = failures[first] if first == 0 else f"process {first}: {failures[first]}"
    own = failures.get(process)
    super().__init__(message if own is None or process == 0 else own)
    # Process 0 prints the first failure. The others print their own, unless it is the same.
    self.silent = process != 0 and (own is None or (process != first and own == failures[first]))


def process_index() -> int:
  """The index of this process; 0 if it is the only one."""
  state = _state()
  return state.process_id if state else 0


def process_count() -> int:
  """The number of processes that `jax.distributed` has joined; 1 without it. Does not start a backend."""
  state = _state()
  return state.num_processes if state else 1


def _state() -> Any:
  """JAX's state of the coordination service; None if this is the only process.

  JAX has no public function for it. Orbax and JAX's own libraries use this one.
  """
  if "jax" not in sys.modules:
    return None
  from jax._src import distributed

  state = distributed.global_state
  return state if state.client is not None and state.num_processes > 1 else None


def exchange(value: Any = None, failure: str | None = None, limit: float = WITHOUT_LIMIT) -> dict[int, Any]:
  """Process -> its value. All processes must call it, and it returns once all of them have.

  Args:
    value: anything that JSON can represent; None: this process contributes nothing.
    failure: the error message of this process, if it failed. The exchange then fails in all processes.
    limit: seconds to wait for the others.

  Raises:
    FailedTogether: a process reported a failure.
    TimeoutError: the others did not call it in time.
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
      raise TimeoutError(f"not all processes arrived within {limit:.0f} s") from error
    raise
  entries = {int(key.rpartition("/")[2]): json.loads(text) for key, text in state.client.key_value_dir_get(folder)}
  failures = {process: message for process, (message, _) in sorted(entries.items()) if message is not None}
  if failures:
    raise FailedTogether(failures, state.process_id)
  return {process: value for process, (_, value) in sorted(entries.items())}


def differing(values: Mapping[str, Any]) -> list[str]:
  """The keys whose values differ from those of process 0. All processes must call it."""
  own = json.loads(json.dumps(dict(values)))
  first = exchange(own if process_index() == 0 else None)[0]
  return [key for key in {**first, **own} if first.get(key) != own.get(key)]


@contextlib.contextmanager
def together(limit: float = WITHOUT_LIMIT) -> Iterator[None]:
  """If a process raises a UserError in the block, all processes raise it at the end of the block, as FailedTogether.

  Args:
    limit: seconds that a process that failed waits for the others to reach the end of the block. Use `SHORTLY` if
      devices work together in the block: processes that did not fail would otherwise wait forever for the one that
      did. After that time it raises its own error, and `give_up` ends the others.
  """
  if process_count() == 1:
    yield
    return
  try:
    yield
  except FailedTogether:
    raise  # all processes know of it
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
  """Runs the block in one process per file system first, and in the others afterwards, so that these find its results.

  Processes mark the folder to find out which of them share it. A UserError is raised in all of them.
  """
  if process_count() == 1:
    yield
    return
  process = process_index()
  token = exchange(secrets.token_hex(8) if process == 0 else None)[0]
  mark = folder / f".process.{token}.{process}"
  with contextlib.suppress(OSError):  # a read-only folder may hold all that is needed
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


# Failures of one process while the others are elsewhere.


def watch_others() -> None:
  """From now on, a failure of another process ends this one, even while it waits for its devices; see `give_up`."""
  if process_count() == 1 or _watching.is_set():
    return
  _watching.set()
  stop = threading.Event()
  thread = threading.Thread(target=_watch, args=(_state(), stop), name="watch_others", daemon=True)

  def leave() -> None:
    stop.set()
    thread.join()  # before JAX shuts the service down

  atexit.register(leave)
  thread.start()


def _watch(state: Any, stop: threading.Event) -> None:
  """Checks every second whether another process failed (a blocking request would outlive the interpreter)."""
  while not stop.wait(1.0):
    try:
      failures = state.client.key_value_dir_get(f"{_FOLDER}/failed/")
    except Exception:
      return  # the service is gone: JAX itself ends this process
    if failures:
      process, status, reason = json.loads(failures[0][1])
      if process != state.process_id:
        _end(state, status, f"error: process {process} on {reason}\n" if state.process_id == 0 else "")


def give_up(status: int, reason: str, message: str = "") -> None:
  """Ends all processes, because this one cannot continue. Returns if this process does not watch others.

  Args:
    status: the exit status of all processes.
    reason: what process 0 prints, in one line.
    message: what this process prints, unless it is already ending: a device that fails because another process has
      ended is not worth a message.
  """
  state = _state()
  if state is None or not _watching.is_set():
    print(message, end="", file=sys.stderr)
    return
  failure = json.dumps([state.process_id, status, f"{socket.gethostname()}: {' '.join(reason.split())}"])
  _end(state, status, message, failure)


def _end(state: Any, status: int, message: str, failure: str = "") -> None:
  """Ends this process at once, with the others: an orderly exit would wait for threads that wait for devices."""
  _ending.acquire()  # never released: another thread of this process has nothing to add
  print(message, end="", file=sys.stderr)
  with contextlib.suppress(Exception):
    if failure:
      state.client.key_value_set(f"{_FOLDER}/failed/{state.process_id}", failure)
    # Wait until all processes know the reason: otherwise they report that the first one to exit is missing.
    state.client.wait_at_barrier(f"{_FOLDER}/ending", int(SHORTLY * 1000))
    state.client.key_value_set(f"{_FOLDER}/ended/{state.process_id}", "")
    deadline = time.monotonic() + SHORTLY
    # The service runs in process 0, which therefore exits last.
    while state.process_id == 0 and time.monotonic() < deadline:
      if len(state.client.key_value_dir_get(f"{_FOLDER}/ended/")) == state.num_processes:
        break
      time.sleep(0.05)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
