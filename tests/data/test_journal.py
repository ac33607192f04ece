"""A preparation that was killed goes on, and ends with the bytes of an uninterrupted one."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.support.launching import ROOT
from tfm_jax.data import encode, journal, token_file
from tfm_jax.data.encode import Encoder
from tfm_jax.data.journal import Journal, resumable_directory
from tfm_jax.data.token_file import build_token_file
from tfm_jax.errors import UserError
from tfm_jax.text.corpora.table import Corpus
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer

TEXTS = [f"Document {n}: {'so it goes on ' * (n % 9)}\nand ends.\n" for n in range(300)]


def read(part, counts):
  counts["blank"] = 2
  yield from ((text,) for text in (TEXTS[:260] if part == "train" else TEXTS[260:]))


CORPUS = Corpus("made up", "", "f00d", read)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
  return Encoder(train_tokenizer(TokenizerConfig(kind="byte"), TEXTS), bos=True, eos=True)


class Counting:
  """Encoding that counts its calls and is interrupted at one of them."""

  def __init__(self, encode_chunk, stop=None):
    self.encode_chunk, self.stop, self.calls = encode_chunk, stop, 0

  def __call__(self, encoder, chunk):
    self.calls += 1
    if self.calls == self.stop:
      raise KeyboardInterrupt
    return self.encode_chunk(encoder, chunk)


@pytest.mark.parametrize("stop", [1, 7, 12, 20, 24])
def test_an_interrupted_token_file_goes_on_and_ends_with_the_same_bytes(tmp_path, encoder, monkeypatch, stop):
  """Interrupted early, in the middle, and in the held-out part; what was written after the last entry is cut off."""
  monkeypatch.setattr(encode, "CHUNK", 1000)
  monkeypatch.setattr(token_file, "_SAVED", 3)
  every = Counting(Encoder.encode)
  monkeypatch.setattr(Encoder, "encode", lambda self, chunk: every(self, chunk))
  whole = build_token_file(tmp_path / "whole", CORPUS, encoder, workers=0)
  assert every.calls == 24
  chunks = Counting(every.encode_chunk, stop)
  monkeypatch.setattr(Encoder, "encode", lambda self, chunk: chunks(self, chunk))
  with pytest.raises(KeyboardInterrupt):
    build_token_file(tmp_path / "t", CORPUS, encoder, workers=0)
  partial = tmp_path / ".t.partial"
  done = [file for file in partial.glob("*.journal.json") if json.loads(file.read_text())["done"]]
  for file in partial.glob("*.tokens"):
    if file.name.split(".")[0] not in [journal.name.split(".")[0] for journal in done]:
      with file.open("ab") as end:
        end.write(b"torn")
  again = Counting(chunks.encode_chunk)
  monkeypatch.setattr(Encoder, "encode", lambda self, chunk: again(self, chunk))
  opened = build_token_file(tmp_path / "t", CORPUS, encoder, workers=0)
  assert opened.manifest == whole.manifest
  assert chunks.calls - 1 + again.calls < every.calls + 3  # at most the chunks since the last entry twice
  assert sorted(path.name for path in tmp_path.iterdir()) == ["t", "whole"]
  names = sorted(path.name for path in (tmp_path / "whole").iterdir())
  assert sorted(path.name for path in (tmp_path / "t").iterdir()) == names
  for name in names:
    if (tmp_path / "whole" / name).is_file():
      assert (tmp_path / "t" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_other_chunks_begin_anew(tmp_path):
  first = Journal(tmp_path, "train", [1, 100])
  first.save(5, {"a": 1})
  assert Journal(tmp_path, "train", [1, 100]).chunks == 5
  assert Journal(tmp_path, "train", [1, 200]).chunks == 0
  (tmp_path / "train.journal.json").write_text("{")
  assert Journal(tmp_path, "train", [1, 100]).chunks == 0


def test_wrong_data_leave_nothing_and_an_interruption_leaves_its_files(tmp_path):
  with pytest.raises(UserError, match="wrong text"), resumable_directory(tmp_path / "t") as directory:
    (directory / "file").touch()
    raise UserError("wrong text")
  assert list(tmp_path.iterdir()) == []
  for error in (KeyboardInterrupt(), OSError(errno.EIO, "damaged disk")):
    with pytest.raises(type(error)), resumable_directory(tmp_path / "t") as directory:
      (directory / "file").touch()
      raise error
    with resumable_directory(tmp_path / "t") as directory:
      assert (directory / "file").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["t", "file"]
    shutil.rmtree(tmp_path / "t")


def test_a_full_disk_names_what_is_gone_on_with(tmp_path):
  with pytest.raises(UserError) as error, resumable_directory(tmp_path / "t") as directory:
    (directory / "file").touch()
    raise OSError(errno.ENOSPC, "No space left on device")
  assert str(error.value).startswith(f"cannot write {directory}: No space left on device; free some space")
  assert (directory / "file").exists() and [path.name for path in tmp_path.iterdir()] == [".t.partial"]


def test_two_processes_do_not_share_a_directory(tmp_path):
  with resumable_directory(tmp_path / "t") as one:
    (one / "one").touch()
    with resumable_directory(tmp_path / "t") as other:
      assert other != one
      (other / "other").touch()
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["other"]
  assert [path.name for path in (tmp_path / "t").iterdir()] == ["other"]  # the first that was complete


def test_what_nobody_goes_on_with_is_removed_after_weeks(tmp_path):
  (tmp_path / ".finished.partial").symlink_to(tmp_path / "elsewhere")  # there is nothing behind the name any more
  for name, age in (("old", journal._STALE + 60), ("new", 60.0)):
    (tmp_path / f".{name}.partial").mkdir()
    os.utime(tmp_path / f".{name}.partial", (time.time() - age,) * 2)
  with resumable_directory(tmp_path / "t"):
    pass
  assert sorted(path.name for path in tmp_path.iterdir()) == [".finished.partial", ".new.partial", "t"]


KILLED = """
import os, signal, sys
from tfm_jax.data import token_file
from tfm_jax.data.__main__ import main
from tfm_jax.runtime.command import Flags, set_up_logging

token_file._SAVED = 1
save, saved = token_file.Journal.save, 0

def counting(self, chunks, state, done=False):
  global saved
  save(self, chunks, state, done)
  saved += 1
  if saved == int(sys.argv[2]):
    os.kill(os.getpid(), signal.SIGKILL)

token_file.Journal.save = counting
if __name__ == "__main__":
  set_up_logging()
  main(Flags({"config": "configs/quickstart.py"}, {"data.path": sys.argv[1], "tokenizer.kind": "byte"}))
"""


@pytest.mark.slow
def test_a_preparation_killed_at_40_percent_goes_on(tmp_path):
  """With worker processes, which end with the killed one."""
  text = tmp_path / "text.txt"
  text.write_text("".join(f"Paragraph {n} is here, and it is long enough.\n\n" for n in range(150_000)))
  (tmp_path / "killed.py").write_text(KILLED)
  command = [sys.executable, str(tmp_path / "killed.py"), str(text)]

  def prepare(cache: str, stop: int) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"TFM_CACHE_DIR": str(tmp_path / cache), "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, str(stop)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)

  assert prepare("killed", 11).returncode == -signal.SIGKILL  # of about 28 chunks
  (partial,) = (tmp_path / "killed" / "tokens").glob(".*.partial")
  assert json.loads((partial / "train.journal.json").read_text())["chunks"] == 11
  done = prepare("killed", 0)
  assert done.returncode == 0 and "going on after 11 parts" in done.stderr, done.stderr
  assert prepare("whole", 0).returncode == 0
  (first,), (second,) = ([*(tmp_path / name / "tokens").iterdir()] for name in ("killed", "whole"))
  assert (first / "manifest.json").read_text() == (second / "manifest.json").read_text()
  for name in ("train.0.tokens", "train.0.offsets", "evaluation.0.tokens"):
    assert (first / name).read_bytes() == (second / name).read_bytes()
