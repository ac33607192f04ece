"""The cache: where it is, and that work in it is complete or absent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfm_jax.cache import atomic_directory, cache_dir
from tfm_jax.errors import UserError


def test_the_cache_folder(monkeypatch, tmp_path):
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "mine"))
  assert cache_dir() == tmp_path / "mine"
  monkeypatch.delenv("TFM_CACHE_DIR")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert cache_dir() == tmp_path / "tfm_jax"


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
  final = tmp_path / "a" / "result"
  with pytest.raises(KeyError), atomic_directory(final) as temporary:
    (temporary / "half").write_text("half")
    raise KeyError
  assert list(final.parent.iterdir()) == []
  with atomic_directory(final) as temporary:
    (temporary / "file").write_text("whole")
    assert not final.exists()
  assert (final / "file").read_text() == "whole"
  with atomic_directory(final) as temporary:  # another process finishes first
    (temporary / "file").write_text("late")
  assert (final / "file").read_text() == "whole"
  assert list(final.parent.iterdir()) == [final]


def test_a_killed_process_leaves_nothing_for_long(tmp_path):
  final = tmp_path / "result"
  code = (
    "import os, signal, pathlib\nfrom tfm_jax.cache import atomic_directory\n"
    f"with atomic_directory(pathlib.Path({str(final)!r})) as t:\n"
    "  (t / 'half').write_text('half')\n  os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  root = str(Path(__file__).parents[2])
  assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}).returncode == -9
  assert not final.exists() and len(list(tmp_path.iterdir())) == 1
  with atomic_directory(final) as temporary, atomic_directory(tmp_path / "other"):
    (temporary / "file").write_text("whole")
    with atomic_directory(final):  # does not remove the files of a live process
      assert (temporary / "file").exists()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "result"]


def test_an_unwritable_cache_is_named(tmp_path):
  (tmp_path / "file").write_bytes(b"")
  with pytest.raises(UserError, match="TFM_CACHE_DIR"), atomic_directory(tmp_path / "file" / "result"):
    pass
