"""The run directory: the one place that knows which file of a run lies where.

    config.json  run.json  tokenizer/  metrics.jsonl  tensorboard/  checkpoints/  lock

Everything goes through `etils.epath`, so a `gs://` work directory differs in nothing that a caller sees. Only
process 0 writes; on the others each writing method does nothing.
"""

import contextlib
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
from tfm_jax.training.agreement import exchange

try:
  import fcntl
except ImportError:  # no such module on Windows: there the check and the writing of the lock are two steps
  fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]


class RunDirectory:
  """A work directory, local or remote.

  Args:
    path: the directory; `~` is expanded. It need not exist before `create`.
  """

  def __init__(self, path: epath.PathLike) -> None:
    self.path = epath.Path(path).expanduser()
    if self.is_local:  # Orbax takes absolute paths only
      self.path = epath.Path(os.path.abspath(self.path))
    self.tokenizer = self.path / "tokenizer"
    self.tensorboard = self.path / "tensorboard"
    self.checkpoints = self.path / "checkpoints"
    self.predictions = self.path / "predictions.jsonl"
    self._config = self.path / "config.json"
    self._starts = self.path / "run.json"
    self._metrics = self.path / "metrics.jsonl"
    self._lock = self.path / "lock"

  @property
  def writes(self) -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0

  @property
  def is_local(self) -> bool:
    """Whether it is on a mounted file system: only there can files be appended to, synced and locked."""
    return "://" not in str(self.path)

  # Creation and the lock.

  def create(self) -> None:
    """Makes the directory and tries to write in it; UserError if that is impossible."""
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

    The lock is the content of a file: host, pid, and when that process started. A lock of this host whose
    process is gone is taken over. UserError if a live run holds it, or any of another host (it may live).
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
    """UserError if this process does not see the directory that process 0 has locked; called by all processes.

    Each would otherwise write its part of the checkpoints somewhere else, and none of them could be restored.
    """
    wanted = exchange([str(self.path), self._lock.read_text()] if self.writes else None)
    if not wanted or self.writes:
      return
    path, holder = wanted[0]
    if not self._lock.exists() or self._lock.read_text() != holder:
      raise UserError(
        f"{self.path}, as host {socket.gethostname()} sees it, is not the work directory {path} of process 0: choose a "
        f"--workdir on gs:// or on a file system that all hosts share"
      )

  def _acquire(self) -> None:
    """Writes our lock, unless a live one is there."""
    with self._alone():
      holder = self._holder()
      if holder is not None and _may_live(holder):
        raise UserError(
          f"another run is using {self.path}: pid {holder.get('pid')} on host {holder.get('host')}, since "
          f"{holder.get('since')}; stop it or choose another --workdir (surely dead? delete {self._lock})"
        )
      # In place: a rename would take the file from under a process that waits for it.
      self._lock.write_text(json.dumps(_this_process() | {"since": time.strftime("%Y-%m-%d %H:%M:%S %z")}))

  def _release(self) -> None:
    """Empties the lock if it is still ours (a file that is removed could be locked twice)."""
    with self._alone():
      holder = self._holder() or {}
      if {key: holder.get(key) for key in _this_process()} == _this_process():
        self._lock.write_text("")

  def _holder(self) -> Row | None:
    """Who holds the lock; None for nobody, and for a file torn while it was written."""
    try:
      holder = json.loads(self._lock.read_text())
    except (FileNotFoundError, ValueError):
      return None
    return holder if isinstance(holder, dict) else None

  @contextlib.contextmanager
  def _alone(self) -> Iterator[None]:
    """Makes look-then-write one step among the processes of this host."""
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
    """Whether a run was started here."""
    return bool(self._config.exists())

  def write_config(self, config: Mapping[str, Any]) -> None:
    """Writes the resolved configuration, atomically."""
    if self.writes:
      self._write_json(self._config, dict(config))

  def read_config(self) -> dict[str, Any]:
    """The stored configuration; UserError if there is no run here or the file is damaged."""
    config: dict[str, Any] | None = self._read_json(self._config)
    if config is None:
      raise UserError(f"no run in {self.path}: it has no config.json; check --workdir")
    return config

  def forget(self) -> None:
    """Removes what a start left that ended before its first checkpoint.

    The configuration goes before the tokenizer: a kill in between leaves no run, rather than one without its tokenizer.
    """
    for path in (self._starts, self._config, self._metrics):
      path.unlink(missing_ok=True)
    for folder in (self.tokenizer, self.tensorboard):
      folder.rmtree(missing_ok=True)

  def stored_tokenizer(self) -> epath.Path | None:
    """The directory of the run's tokenizer; None if it never had one. UserError if it is gone."""
    if self.tokenizer.exists():
      return self.tokenizer
    if any("tokenizer" in entry.get("fingerprints", {}) for entry in self.starts()):
      raise UserError(f"{self.tokenizer} is missing: put the tokenizer of the run back there, or choose another run")
    return None

  def origin(self) -> Row:
    """What was noted of the import that this run, or one that it started from, came from; empty for none."""
    return next((entry["origin"] for entry in self.starts() if entry.get("origin")), {})

  def append_start(self, entry: Mapping[str, Any]) -> None:
    """Adds one entry to run.json: the circumstances of this start."""
    if self.writes:
      self._write_json(self._starts, [*self.starts(), dict(entry)])

  def write_predictions(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes what the model predicts of the held-out rows, one object per line, atomically."""
    if self.writes:
      self._replace(self.predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

  def starts(self) -> list[dict[str, Any]]:
    """The entries of run.json, oldest first; empty before the first start."""
    return self._read_json(self._starts) or []

  def _read_json(self, path: epath.Path) -> Any:
    """The content of a JSON file, None if it is not there."""
    try:
      return json.loads(path.read_text())
    except FileNotFoundError:
      return None
    except ValueError as error:
      raise UserError(f"{path} is damaged ({error}); restore it or choose another --workdir") from error

  def _write_json(self, path: epath.Path, value: Any) -> None:
    """Writes a JSON file so that a reader sees the old one or the new one."""
    self._replace(path, json.dumps(value, indent=2) + "\n")

  def _replace(self, path: epath.Path, text: str) -> None:
    """Replaces a file's content in one step (an object store writes whole objects anyway)."""
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
    """Opens metrics.jsonl for a run that goes on after `resume_step`.

    Rows of later steps and a torn last line are cut, so that each (split, step) stands once. None is a fresh
    start: what an earlier attempt left is cut whole.
    """
    keep = [row for row in self.read_metrics() if resume_step is not None and row["step"] <= resume_step]
    text = "".join(_line(row) for row in keep)
    if self.writes:
      self._replace(self._metrics, text)
    return MetricsWriter(self._metrics, text, local=self.is_local, enabled=self.writes)

  def read_metrics(self) -> list[Row]:
    """The rows of metrics.jsonl in order; a torn last line is left out, UserError for damage elsewhere."""
    try:
      lines = self._metrics.read_text().split("\n")
    except FileNotFoundError:
      return []
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line end is torn, or empty
      try:
        row = json.loads(line)
        rows.append({"step": int(row["step"]), **row})
      except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{self._metrics}, line {number} is not a row of metrics; remove that line") from error
    return rows


class MetricsWriter:
  """Appends rows to metrics.jsonl. They are surely on disk after `sync`, which precedes every checkpoint.

  An object store cannot append: there, rows gather in memory and `sync` writes the whole object anew.
  """

  def __init__(self, path: epath.Path, text: str, local: bool, enabled: bool = True) -> None:
    self._path, self._enabled = path, enabled
    self._file: IO[str] | None = open(path, "a", encoding="utf-8") if local and enabled else None
    self._text, self._synced = [text], True

  def write(self, row: Mapping[str, Any]) -> None:
    """Adds one row. Array scalars become numbers; what is not finite becomes null, as JSON has no NaN."""
    if not self._enabled:
      return
    line = _line(row)
    if self._file is not None:
      self._file.write(line)
      self._file.flush()  # a kill of the process then loses nothing; only a crash of the machine needs sync
    else:
      self._text.append(line)
    self._synced = False

  def sync(self) -> None:
    """Returns when every row written so far is on disk (or in the object store)."""
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


def _line(row: Mapping[str, Any]) -> str:
  """One row as a line of JSON."""
  return json.dumps({key: _plain(value) for key, value in row.items()}, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
  """A value that JSON has: array scalars become Python numbers."""
  if hasattr(value, "item"):
    value = value.item()
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync(file: IO[str]) -> None:
  """Flushes a file to the disk itself."""
  file.flush()
  os.fsync(file.fileno())


def _this_process() -> Row:
  """What identifies this process: a pid alone is used again."""
  return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _may_live(holder: Row) -> bool:
  """Whether the process that wrote a lock may still run; one on another host may."""
  if holder.get("host") != socket.gethostname():
    return True
  started = _started(int(holder.get("pid", 0)))
  return started is not None and started == holder.get("started")


def _started(pid: int) -> int | None:
  """When a process of this host started, in ticks since boot (0 without /proc); None if it is gone."""
  try:
    # The name, in parentheses, may hold spaces: count the fields after it. Field 22 is the start time.
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
