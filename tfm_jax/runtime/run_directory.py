"""The run directory. No other module knows the files of a run by name.

    config.json  run.json  tokenizer/  metrics.jsonl  best.json  curves.html  tensorboard/  checkpoints/  lock

All access goes through `etils.epath`, so callers need not distinguish local directories from `gs://`. Only process 0
writes; in the others, the methods that write do nothing.
"""

import contextlib
import difflib
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.runtime.agreement import exchange

try:
  import fcntl
except ImportError:  # Windows: without it, checking and writing the lock are not one atomic step
  fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]


class RunDirectory:
  """A work directory, local or remote.

  Args:
    path: the directory; `~` is expanded. `create` makes it.
  """

  def __init__(self, path: epath.PathLike) -> None:
    self.path = epath.Path(path).expanduser()
    if self.is_local:  # Orbax requires absolute paths
      self.path = epath.Path(os.path.abspath(self.path))
    self.tokenizer = self.path / "tokenizer"
    self.tensorboard = self.path / "tensorboard"
    self.checkpoints = self.path / "checkpoints"
    self.predictions = self.path / "predictions.jsonl"
    self.curves = self.path / "curves.html"
    self._config = self.path / "config.json"
    self._starts = self.path / "run.json"
    self._metrics = self.path / "metrics.jsonl"
    self._best = self.path / "best.json"
    self._lock = self.path / "lock"

  @property
  def writes(self) -> bool:
    """Whether this process writes: process 0 does."""
    return jax.process_index() == 0

  @property
  def is_local(self) -> bool:
    """Whether it is on a mounted file system, whose files can be appended to, synced and locked."""
    return "://" not in str(self.path)

  # Creation and the lock.

  def create(self) -> None:
    """Makes the directory and checks that it is writable. Raises UserError."""
    if not self.writes:
      return
    probe = self.path / f".probe.{os.getpid()}"
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      probe.write_text("")
      probe.unlink()
    except OSError as error:
      reason = error.strerror or str(error)
      raise UserError(f"cannot write to the work directory {self.path}: {reason}; choose another --workdir") from error

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Creates the directory and holds its lock while the `with` block runs.

    The lock is the content of a file: host, pid, and start time of the process. A lock of a process that has ended is
    taken over if it was on this host.

    Raises:
      UserError: a running process holds the lock, or one on another host, which may be running.
    """
    self.create()
    if not self.writes:
      yield
      return
    self._acquire()
    try:
      yield
    finally:
      self._release()

  def check_shared(self) -> None:
    """UserError if this process does not see the directory that process 0 has locked. All processes must call it.

    Otherwise the processes would write their parts of a checkpoint to different places, and none could be restored.
    """
    locked = exchange([str(self.path), self._lock.read_text()] if self.writes else None)
    if not locked or self.writes:
      return
    path, holder = locked[0]
    if not self._lock.exists() or self._lock.read_text() != holder:
      raise UserError(
        f"{self.path} on host {socket.gethostname()} is not the work directory {path} of process 0: choose a "
        f"--workdir on gs:// or on a file system that all hosts share"
      )

  def _acquire(self) -> None:
    """Writes the lock. Raises UserError if another process holds it."""
    with self._exclusively():
      holder = self._holder()
      if holder is not None and _may_live(holder):
        raise UserError(
          f"another run is using {self.path}: pid {holder.get('pid')} on host {holder.get('host')}, since "
          f"{holder.get('since')}; stop it or choose another --workdir (if it is surely dead, delete {self._lock})"
        )
      # In place: a rename would replace the file that another process may be waiting for.
      self._lock.write_text(json.dumps(_this_process() | {"since": time.strftime("%Y-%m-%d %H:%M:%S %z")}))

  def _release(self) -> None:
    """Empties the lock if it is still ours (two processes could both lock a file that is removed)."""
    with self._exclusively():
      holder = self._holder() or {}
      if {key: holder.get(key) for key in _this_process()} == _this_process():
        self._lock.write_text("")

  def _holder(self) -> Record | None:
    """The process that holds the lock; None if there is none, or the file is incomplete."""
    try:
      holder = json.loads(self._lock.read_text())
    except (FileNotFoundError, ValueError):
      return None
    return holder if isinstance(holder, dict) else None

  @contextlib.contextmanager
  def _exclusively(self) -> Iterator[None]:
    """Excludes the other processes of this host, so that reading and then writing the lock is atomic."""
    if not self.is_local or fcntl is None:
      yield
      return
    with open(self._lock, "a") as file:
      with contextlib.suppress(OSError):  # some network file systems have no flock
        fcntl.flock(file, fcntl.LOCK_EX)
      yield

  # The JSON files.

  @property
  def exists(self) -> bool:
    """Whether the directory holds a run."""
    return bool(self._config.exists())

  def write_config(self, config: Mapping[str, Any]) -> None:
    """Writes the resolved configuration, atomically."""
    if self.writes:
      self._write_json(self._config, dict(config))

  def read_config(self) -> dict[str, Any]:
    """The stored configuration. Raises UserError if the directory holds no run or the file is damaged."""
    config: dict[str, Any] | None = self._read_json(self._config)
    if config is None:
      raise UserError(f"no run in {self.path}: it has no config.json{self._neighbour()}")
    return config

  def _neighbour(self) -> str:
    """The run beside this directory whose name is most like its own, for messages; empty if there is none."""
    if not self.is_local or not self.path.parent.is_dir():
      return ""
    runs = [path.name for path in self.path.parent.iterdir() if (path / self._config.name).exists()]
    similar = difflib.get_close_matches(self.path.name, runs, n=1)
    return f"; did you mean {self.path.parent / similar[0]}?" if similar else ""

  def forget(self) -> None:
    """Removes the files of a run that ended before its first checkpoint.

    The configuration is removed before the tokenizer: if the process is killed in between, the directory holds no run,
    rather than a run without its tokenizer.
    """
    for path in (self._starts, self._config, self._metrics, self._best, self.curves):
      path.unlink(missing_ok=True)
    for folder in (self.tokenizer, self.tensorboard):
      folder.rmtree(missing_ok=True)

  def stored_tokenizer(self) -> epath.Path | None:
    """The directory of the run's tokenizer; None if the run never had one. Raises UserError if it is missing."""
    if self.tokenizer.exists():
      return self.tokenizer
    if any("tokenizer" in entry.get("fingerprints", {}) for entry in self.starts()):
      raise UserError(f"{self.tokenizer} is missing: put the tokenizer of the run back there, or choose another run")
    return None

  def origin(self) -> Record:
    """The import from which this run, or a run that it was initialised from, descends; empty if there is none."""
    return next((entry["origin"] for entry in self.starts() if entry.get("origin")), {})

  def append_start(self, entry: Mapping[str, Any]) -> None:
    """Appends an entry to run.json that describes this start."""
    if self.writes:
      self._write_json(self._starts, [*self.starts(), dict(entry)])

  def write_predictions(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the predictions for the held-out rows, one JSON object per line, atomically."""
    if self.writes:
      self._replace(self.predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

  def write_best(self, best: Mapping[str, Any] | None) -> None:
    """Writes which evaluation is the best, by which metric, atomically; None: removes the file."""
    if not self.writes:
      return
    if best is None:
      self._best.unlink(missing_ok=True)
    else:
      self._write_json(self._best, dict(best))

  def read_best(self) -> Record | None:
    """What `write_best` wrote last; None if no metric decides. Raises UserError if the file is damaged."""
    best: Record | None = self._read_json(self._best)
    return best

  def write_curves(self, text: str) -> None:
    """Writes the page with the run's curves, atomically."""
    if self.writes:
      self._replace(self.curves, text)

  def starts(self) -> list[dict[str, Any]]:
    """The entries of run.json, oldest first; empty before the first start."""
    return self._read_json(self._starts) or []

  def _read_json(self, path: epath.Path) -> Any:
    """The content of a JSON file; None if it does not exist."""
    try:
      return json.loads(path.read_text())
    except FileNotFoundError:
      return None
    except ValueError as error:
      raise UserError(f"{path} is damaged ({error}); restore it or choose another --workdir") from error

  def _write_json(self, path: epath.Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    self._replace(path, json.dumps(value, indent=2) + "\n")

  def _replace(self, path: epath.Path, text: str) -> None:
    """Replaces the content of a file atomically (object stores always do)."""
    if not self.is_local:
      path.write_text(text)
      return
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
      file.write(text)
      _sync(file)
    os.replace(temporary, path)

  # Metrics.

  def open_metrics(self, resume_step: int | None = None) -> "MetricsWriter":
    """Opens metrics.jsonl for a run that continues after `resume_step`; None: for a new run.

    Records of later steps and an incomplete last line are removed, so that each (split, step) occurs once. For a new
    run, all records are.
    """
    keep = [record for record in self.read_metrics() if resume_step is not None and record["step"] <= resume_step]
    text = "".join(_line(record) for record in keep)
    if self.writes:
      self._replace(self._metrics, text)
    return MetricsWriter(self._metrics, text, local=self.is_local, enabled=self.writes)

  def read_metrics(self) -> list[Record]:
    """The records of metrics.jsonl in order, without an incomplete last line. Raises UserError for other damage."""
    try:
      lines = self._metrics.read_text().split("\n")
    except FileNotFoundError:
      return []
    records = []
    for number, line in enumerate(lines[:-1], 1):  # the rest after the last line end is incomplete, or empty
      try:
        record = json.loads(line)
        records.append({"step": int(record["step"]), "split": str(record["split"]), **record})
      except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{self._metrics}, line {number} is not a record of metrics; remove that line") from error
    return records


class MetricsWriter:
  """Appends records to metrics.jsonl. `sync`, which precedes every checkpoint, makes sure that they are on disk.

  Object stores cannot append: for them, records are kept in memory and `sync` writes the whole object again.
  """

  def __init__(self, path: epath.Path, text: str, local: bool, enabled: bool = True) -> None:
    self._path, self._enabled = path, enabled
    self._file: IO[str] | None = open(path, "a", encoding="utf-8") if local and enabled else None
    self._text, self._synced = [text], True

  def write(self, record: Mapping[str, Any]) -> None:
    """Adds one record. Array scalars become numbers; values that are not finite become null, as JSON has no NaN."""
    if not self._enabled:
      return
    line = _line(record)
    if self._file is not None:
      self._file.write(line)
      self._file.flush()  # then killing the process loses nothing; only a crash of the machine does, before sync
    else:
      self._text.append(line)
    self._synced = False

  def sync(self) -> None:
    """Returns when all records written so far are on disk (or in the object store)."""
    if self._synced:
      return
    if self._file is not None:
      _sync(self._file)
    else:
      self._path.write_text("".join(self._text))
    self._synced = True

  def close(self) -> None:
    """Syncs and closes the file."""
    self.sync()
    if self._file is not None:
      self._file.close()


def _line(record: Mapping[str, Any]) -> str:
  """One record as a line of JSON."""
  return json.dumps({key: _plain(value) for key, value in record.items()}, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
  """A value that JSON can represent: array scalars become Python numbers."""
  if hasattr(value, "item"):
    value = value.item()
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync(file: IO[str]) -> None:
  """Flushes a file to the disk itself."""
  file.flush()
  os.fsync(file.fileno())


def _this_process() -> Record:
  """Identifies this process; its pid alone may be reused."""
  return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _may_live(holder: Record) -> bool:
  """Whether the process that wrote a lock may still be running; on another host, it may."""
  if holder.get("host") != socket.gethostname():
    return True
  started = _started(int(holder.get("pid", 0)))
  return started is not None and started == holder.get("started")


def _started(pid: int) -> int | None:
  """The start time of a process of this host, in ticks since boot (0 without /proc); None if it has ended."""
  try:
    # The name, in parentheses, may contain spaces: count the fields after it. Field 22 is the start time.
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
  except (FileNotFoundError, ProcessLookupError):
    if Path("/proc/self/stat").exists():
      return None
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass
  return 0
