"""The user's cache folder: directories (tokenizers, token files, ...) and small values, all written atomically."""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfm_jax.errors import UserError, disk_is_full

log = logging.getLogger(__name__)


def cache_dir() -> Path:
  """`TFM_CACHE_DIR`, or else `tfm_jax` in the user's cache folder. It may not exist yet."""
  folder = os.environ.get("TFM_CACHE_DIR")
  if folder:
    return Path(folder).expanduser().absolute()
  return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "tfm_jax"


@contextlib.contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
  """A temporary directory beside `final` to write to, which is renamed to `final` when the block succeeds.

  So `final` is never incomplete: an exception removes the temporary directory, and those of killed processes are
  removed by the next call. If another process has finished `final` in the meantime, its directory is kept.

  Raises:
    UserError: the folder cannot be written to, or its disk is full.
  """
  final = Path(final)
  temporary = final.with_name(f".{final.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
  try:
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final)
    temporary.mkdir()
  except OSError as error:
    raise UserError(f"cannot write to the cache {final.parent}: {error.strerror}; set TFM_CACHE_DIR") from error
  try:
    yield temporary
    try:
      temporary.rename(final)
    except OSError:
      if not final.is_dir():
        raise
  except OSError as error:
    if not disk_is_full(error):
      raise
    raise UserError(
      f"cannot write {final}: {error.strerror}; free some space, or choose another disk (for the cache: TFM_CACHE_DIR)"
    ) from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def recall(name: str, key: Any) -> Any:
  """The value that `remember` stored under a name and a key; None if there is none, or it is damaged."""
  try:
    return json.loads(_memory(name, key).read_text())
  except (OSError, ValueError):
    return None


def remember(name: str, key: Any, value: Any) -> None:
  """Stores a small value for `recall`. Key and value must be valid JSON. A read-only cache only logs a warning."""
  file = _memory(name, key)
  temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(value))
    temporary.replace(file)
  except OSError as error:
    log.warning("cannot write to the cache %s: %s; set TFM_CACHE_DIR", file.parent, error.strerror)


def _memory(name: str, key: Any) -> Path:
  return cache_dir() / name / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"


def _sweep(final: Path) -> None:
  """Removes the temporary directories of `final` that ended processes of this host left."""
  for stale in final.parent.glob(f".{final.name}.{socket.gethostname()}.*.tmp"):
    pid = stale.name.split(".")[-3]
    if pid.isdecimal() and not _alive(int(pid)):
      log.info("removing %s, which a killed process left unfinished", stale)
      shutil.rmtree(stale, ignore_errors=True)


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except OSError:  # it exists and belongs to another user
    return True
  return True
