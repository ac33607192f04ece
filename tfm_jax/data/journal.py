"""Long preparations that go on where they were killed: files that only grow, and a journal of how far they are good."""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tfm_jax.cache import atomic_directory
from tfm_jax.errors import UserError, disk_is_full

log = logging.getLogger(__name__)

_LOCK = ".lock"
_STALE = 14 * 24 * 3600.0  # seconds after which an abandoned preparation is removed


@contextlib.contextmanager
def resumable_directory(final: Path) -> Iterator[Path]:
  """As `atomic_directory`, but what a killed or interrupted process leaves is handed to the next one, which goes on.

  An error of the data removes the directory, and one of the disk leaves it. If another process is at work on `final`,
  this one works in a temporary directory of its own.

  Raises:
    UserError: the folder cannot be written to, or its disk is full.
  """
  partial = final.with_name(f".{final.name}.partial")
  with contextlib.ExitStack() as stack:
    lock = _locked(partial)
    if lock is None:
      yield stack.enter_context(atomic_directory(final))
      return
    stack.callback(os.close, lock)
    _sweep(partial)
    try:
      with atomic_directory(final) as temporary:
        try:
          yield partial
        except UserError:
          shutil.rmtree(partial, ignore_errors=True)
          raise
        except OSError as error:
          if disk_is_full(error):
            raise UserError(
              f"cannot write {partial}: {error.strerror}; free some space, and the same command goes on from what is "
              f"there; or choose another disk (TFM_CACHE_DIR)"
            ) from error
          raise
        (partial / _LOCK).unlink()
        temporary.rmdir()
        partial.rename(temporary)  # and then to `final`
    finally:
      with contextlib.suppress(OSError):
        os.utime(partial)


def _locked(partial: Path) -> int | None:
  """Makes the directory and locks it until the process ends; None: another process has it, or there are no locks."""
  try:
    import fcntl
  except ImportError:  # Windows
    return None
  lock = None
  try:
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.path.samestat(os.fstat(lock), os.stat(partial / _LOCK)):  # the owner may have renamed it in between
      return lock
  except OSError:
    pass
  if lock is not None:
    os.close(lock)
  return None


def _sweep(partial: Path) -> None:
  """Removes the preparations beside this one that nobody has gone on with for long."""
  for other in partial.parent.glob(".*.partial"):
    with contextlib.suppress(OSError):  # another process may have finished it in the meantime
      if other != partial and time.time() - other.stat().st_mtime > _STALE:
        log.info("removing %s, which was left unfinished long ago", other)
        shutil.rmtree(other, ignore_errors=True)


class Journal:
  """How far the files of one part of a preparation are good: after so many chunks, they are so long.

  Args:
    directory: where the files are.
    name: of the part.
    key: what the chunks depend on besides the text; with another one, the part begins anew.

  Attributes:
    chunks: how many chunks are written.
    state: what was saved with them.
    done: whether the part is complete.
  """

  def __init__(self, directory: Path, name: str, key: Any):
    self._directory, self._path, self._key = directory, directory / f"{name}.journal.json", key
    self._files: dict[str, BinaryIO] = {}
    try:
      content = json.loads(self._path.read_text())
      if content["key"] != json.loads(json.dumps(key)):
        content = {}
    except (OSError, ValueError, KeyError, TypeError):
      content = {}
    self.chunks: int = content.get("chunks", 0)
    self.state: dict[str, Any] = content.get("state", {})
    self.done: bool = content.get("done", False)
    self._sizes: dict[str, int] = content.get("sizes", {})
    if self.chunks and not self.done:
      log.info("%s: going on after %d parts that an interrupted preparation wrote", name, self.chunks)

  def open(self, name: str, files: contextlib.ExitStack) -> BinaryIO:
    """A file that is written at its end, cut to the length that it had when the journal was saved."""
    path = self._directory / name
    path.touch()
    os.truncate(path, self._sizes.get(name, 0))
    self._files[name] = file = files.enter_context(path.open("ab"))
    return file

  def save(self, chunks: int, state: dict[str, Any], done: bool = False) -> None:
    """Notes that the files are good up to here."""
    for file in self._files.values():
      file.flush()
      os.fsync(file.fileno())
    sizes = {name: file.tell() for name, file in self._files.items()}
    content = {"key": self._key, "chunks": chunks, "state": state, "sizes": sizes, "done": done}
    temporary = self._path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(self._path)

  def remove(self) -> None:
    """Removes the journal of a complete preparation."""
    self._path.unlink(missing_ok=True)
