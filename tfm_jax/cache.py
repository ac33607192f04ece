"""The user's cache folder: corpora, tokenizers, token files, each a directory, and small values; there whole or not."""

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
  """`TFM_CACHE_DIR`, or else `tfm_jax` in the user's cache folder. It need not exist yet."""
  chosen = os.environ.get("TFM_CACHE_DIR")
  if chosen:
    return Path(chosen).expanduser().absolute()
  return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "tfm_jax"


@contextlib.contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
  """A temporary sibling of `final` to write into; it takes the name `final` when the block ends well.

  Nothing that was begun and not finished ever bears the final name: an exception removes the sibling, and
  what a killed process left is swept the next time. If another process finished `final` meanwhile, its
  directory stays and this one is dropped.

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
  """The value that `remember` stored in the folder NAME under this key; None if there is none, or it is damaged."""
  try:
    return json.loads(_memory(name, key).read_text())
  except (OSError, ValueError):
    return None


def remember(name: str, key: Any, value: Any) -> None:
  """Stores a small value, for `recall`. Both are what JSON can write. A cache that cannot be written stays as it is."""
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
  """Removes the temporary siblings of `final` whose process, on this host, is dead."""
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
  except OSError:  # it exists and belongs to somebody else
    return True
  return True
