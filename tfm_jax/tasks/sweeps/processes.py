"""Running the runs of a sweep: so many processes at a time, which end with the sweep whatever ends it."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from tfm_jax.cache import cache_dir
from tfm_jax.errors import UserError
from tfm_jax.runtime.interruption import Interrupted
from tfm_jax.tasks.sweeps.runs import FAILED, FINISHED, INTERRUPTED, LOG, RUNNING, SweepRun
from tfm_jax.tasks.sweeps.worker import RESULT

try:
  import fcntl
except ImportError:  # Windows: two sweeps in one folder are not noticed
  fcntl = None  # type: ignore[assignment]

_POLL_SECONDS = 0.1
_MEMORY = 0.9  # of a GPU, for all processes that share it


class SweepInterrupted(Interrupted):
  """A signal ended the sweep; its runs have written their checkpoints."""

  def __init__(self, number: int) -> None:
    name = signal.Signals(number).name
    Exception.__init__(
      self, f"{name}: the runs in progress were ended; the same command goes on from their checkpoints"
    )
    self.number = number


@dataclasses.dataclass
class _Started:
  run: SweepRun
  process: "subprocess.Popen[bytes]"
  slot: int
  begin: float
  log_from: int  # where the log of this start begins


def run_all(
  config: str,
  take: Callable[[], SweepRun | None],
  ended: Callable[[SweepRun], None],
  jobs: int,
  lock: "IO[str] | None" = None,
) -> None:
  """Runs what `take` gives until it gives nothing and all have ended.

  Args:
    config: the experiment file.
    take: the next run; None: there is none, at least not before another one ends.
    ended: is called after each end.
    jobs: processes at a time.
    lock: an open file that the processes keep open.

  Raises:
    SweepInterrupted: SIGINT or SIGTERM arrived. Both are passed on to the processes, each time.
  """
  active: list[_Started] = []
  with _signals() as received, _killed_in_the_end(active):
    passed = 0
    while True:
      while not received and len(active) < jobs:
        run = take()
        if run is None:
          break
        slot = min(set(range(jobs)) - {one.slot for one in active})
        active.append(_start(config, run, slot, jobs, lock))
      if not active:
        break
      time.sleep(_POLL_SECONDS)
      for one in active if len(received) > passed else ():
        one.process.send_signal(signal.SIGTERM)
      passed = len(received)
      for one in [one for one in active if one.process.poll() is not None]:
        active.remove(one)
        _finish(one, bool(received))
        ended(one.run)
  if received:
    raise SweepInterrupted(received[0])


def _start(config: str, run: SweepRun, slot: int, jobs: int, lock: "IO[str] | None") -> _Started:
  """Starts a run. A signal from the terminal reaches the sweep alone, which passes it on."""
  run.prepare()
  run.status, run.error = RUNNING, ""
  flags = [f"--config={config}", f"--workdir={run.folder}", *run.flags()]
  command = [sys.executable, "-m", "tfm_jax.tasks.sweeps.worker", *flags]
  path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
  environment = os.environ | {"PYTHONPATH": path} | _devices(slot, jobs) | _program_cache(slot)
  with (run.folder / LOG).open("ab") as log:
    begins = log.seek(0, os.SEEK_END)
    process = subprocess.Popen(
      command,
      env=environment,
      stdin=subprocess.PIPE,
      stdout=log,
      stderr=log,
      start_new_session=True,
      pass_fds=[lock.fileno()] if lock else [],
    )
  return _Started(run, process, slot, time.monotonic(), begins)


def _devices(slot: int, jobs: int) -> dict[str, str]:
  """Variables that divide the GPUs of this host among several processes; none if there are no GPUs."""
  named = os.environ.get("CUDA_VISIBLE_DEVICES")
  if named is None:
    named = ",".join(str(i) for i, _ in enumerate(f for f in Path("/dev").glob("nvidia*") if f.name[6:].isdigit()))
  gpus = [gpu for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
  if jobs == 1 or not gpus:
    return {}
  variables = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot::jobs]) or gpus[slot % len(gpus)]}
  if jobs > len(gpus):
    variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{_MEMORY / -(-jobs // len(gpus)):.3f}"
  return variables


def _program_cache(slot: int) -> dict[str, str]:
  """Variables for a cache of compiled programs of this slot: JAX's is not safe to write side by side."""
  if not slot:
    return {}
  folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache_dir() / "xla")
  seconds = os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")  # as `use_compilation_cache`
  return {
    "JAX_COMPILATION_CACHE_DIR": f"{folder}-job{slot}",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": seconds,
  }


def _finish(one: _Started, interrupted: bool) -> None:
  """What the end of a process means for its run."""
  run, status = one.run, one.process.returncode
  if one.process.stdin:
    one.process.stdin.close()
  run.seconds = time.monotonic() - one.begin
  if status == 0 and (run.folder / RESULT).exists():
    run.look()
  if run.status != FINISHED:
    run.status = INTERRUPTED if interrupted else FAILED
    run.error = "" if interrupted else _error(run.folder / LOG, one.log_from, status)


def _error(log: Path, start: int, status: int) -> str:
  """Why a process failed, in one line."""
  with log.open("rb") as file:
    file.seek(start)
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
  if status == 2 and lines and lines[-1].startswith("error: "):
    return lines[-1].removeprefix("error: ")
  last = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)), "")
  last = (last or (lines[-1] if lines else "no output"))[:400]
  return f"killed by {signal.Signals(-status).name}: {last}" if status < 0 else f"exit status {status}: {last}"


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
  """A list of the SIGINTs and SIGTERMs that arrive in the block."""
  received: list[int] = []

  def note(number: int, frame: FrameType | None) -> None:
    received.append(number)

  previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield received
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def _killed_in_the_end(active: list[_Started]) -> Iterator[None]:
  """Ends what still runs when an error ends the block."""
  try:
    yield
  finally:
    for one in active:
      one.process.terminate()
    for one in active:
      one.process.wait()


@contextlib.contextmanager
def locked(folder: Path) -> "Iterator[IO[str] | None]":
  """Makes the folder of a sweep and holds its lock, an open file; the processes of runs hold it too.

  If a sweep was killed, its runs are still writing their checkpoints: the lock waits for them.

  Raises:
    UserError: another sweep is at work there, or the folder cannot be written.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("a+", encoding="utf-8")
  except OSError as error:
    raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error
  with file:
    if not hasattr(fcntl, "flock"):
      yield None
      return
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read().strip()
      if _lives(holder):
        raise UserError(f"another sweep (pid {holder}) is using {folder}: stop it, or choose another --out") from None
      print(f"waiting for the runs of the last start in {folder}, which are ending", file=sys.stderr)
      fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield file


def _lives(pid: str) -> bool:
  """Whether a process runs on this host."""
  try:
    os.kill(int(pid), 0)
  except (ValueError, ProcessLookupError):
    return False
  except PermissionError:
    pass
  return True
