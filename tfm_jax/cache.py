"""The user's cache folder: corpora, tokenizers, token files; each a directory, there whole or not at all."""

import contextlib
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

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
