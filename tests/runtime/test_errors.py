"""Errors that a user can cause, with the real command: one line on stderr, exit status 2, no files left behind."""

import contextlib
import gzip
import json
import os
import subprocess
import sys

import pytest

from tests.support.launching import ROOT, tiny, train
from tfm_jax.errors import UserError
from tfm_jax.training.compiled import memory
from tfm_jax.training.loop import fit


def one_line(done, *named):
  """The error of a finished process is one line with these words, and status 2."""
  errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert done.returncode == 2, done.stderr
  assert len(errors) == 1 and done.stderr.rstrip().splitlines()[-1] == errors[0], done.stderr
  assert "Traceback" not in done.stderr
  for word in named:
    assert word in errors[0], errors[0]


@pytest.mark.parametrize(
  ("flag", "named"),
  [
    ("--config.train.stepz=3", "config.train.steps"),
    ("--config.train.steps=three", "a whole number"),
    ("--train.steps=3", "--config.train.steps"),
    ("--config.tokenizer.path=nowhere.model", "nowhere.model"),
    ("--config.optimizer.epsilon=0", "optimizer.epsilon=0.0"),
    ("--config.sharding.context=8", "sharding.context=8"),
  ],
)
def test_the_command_prints_an_error_in_one_line(experiment, tmp_path, flag, named):
  done = train(f"--config={experiment}", f"--workdir={tmp_path / 'run'}", flag)
  one_line(done, named)
  assert not (tmp_path / "run").exists()


def test_missing_config_file():
  one_line(train("--config=configs/bert_bas.py"), "configs/bert_base.py")
  one_line(train(), "--config")


def test_a_config_that_is_not_python():
  one_line(train("--config=README.md"), "README.md is not a Python file")


@pytest.mark.parametrize(
  "command",
  [
    ["train.py", "--help"],
    ["train.py"],
    ["-m", "tfm_jax.compare"],
    ["-m", "tfm_jax.compare.calibration"],
    ["-m", "tfm_jax.compare.scaling"],
    ["-m", "tfm_jax.hf", "import"],
    ["-m", "tfm_jax.plot"],
    ["-m", "tfm_jax.tasks"],
    ["-m", "tfm_jax.tasks.attention"],
    ["-m", "tfm_jax.tasks.sweep"],
  ],
  ids=" ".join,
)
def test_an_environment_that_is_not_activated(command):
  """A Python without site-packages, as that of the system is."""
  done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and not done.stdout
  assert done.stderr == (
    f'error: jax is not installed for {sys.executable}: run "source .venv/bin/activate" first '
    f'("make install" sets it up)\n'
  )


def test_help():
  done = train("--help=optimizer")
  assert done.returncode == 0 and "--config.optimizer.learning_rate=0.0001" in done.stdout
  assert not done.stderr


def refused(experiment, tmp_path, named, family="gpt", **overrides):
  """`fit` refuses these settings, and leaves no work directory."""
  with pytest.raises(UserError, match=named) as caught:
    fit(tiny(experiment, family, **overrides), tmp_path / "run")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_missing_and_empty_text(experiment, tmp_path):
  refused(experiment, tmp_path, r"nothing\.txt", data__path=str(tmp_path / "nothing.txt"))
  (tmp_path / "empty.txt").write_text("\n \n")
  refused(experiment, tmp_path, "data.path|empty", data__path=str(tmp_path / "empty.txt"))


def test_undecodable_text_is_named_by_file_and_line(experiment, tmp_path):
  path = tmp_path / "bad.txt.gz"
  path.write_bytes(gzip.compress(b"fine\nfine\nnot \xff fine\n" + b"more text of this kind\n" * 50))
  refused(experiment, tmp_path, r"bad\.txt\.gz.*3", data__path=str(path))
  result = fit(tiny(experiment, data__path=str(path), data__errors="replace", train__steps=1), tmp_path / "replaced")
  assert result["loss"] > 0


def test_parallel_files_of_different_length(experiment, tmp_path):
  (tmp_path / "a").write_text("one\ntwo\nthree\n")
  (tmp_path / "b").write_text("eins\nzwei\n")
  paths = {"data__path": str(tmp_path / "a"), "data__target_path": str(tmp_path / "b")}
  refused(experiment, tmp_path, "3.*2|2.*3", "transformer", data__source="parallel", **paths)


def test_impossible_vocabulary(experiment, tmp_path):
  refused(experiment, tmp_path, "tokenizer.vocab_size", tokenizer__kind="sentencepiece", tokenizer__vocab_size=100)


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    ({"train__batch_size": 6, "sharding__strategy": "fsdp"}, "train.batch_size=6"),
    ({"sharding__model": 5, "sharding__strategy": "tp"}, "sharding.model=5"),
    (
      {"model__num_heads": 3, "model__head_dim": 8, "sharding__model": 2, "sharding__strategy": "tp"},
      "sharding.model=2",
    ),
    ({"data__seq_len": 2048}, "data.seq_len=2048"),
    ({"init_from": "nowhere"}, "init_from=nowhere"),
    ({"objective__name": "mlm"}, "objective.name='mlm'"),
    ({"data__source": "web"}, "data.source"),
  ],
)
def test_settings_that_do_not_fit(experiment, tmp_path, overrides, named):
  refused(experiment, tmp_path, named.replace(".", r"\."), **overrides)


def test_no_memory_for_a_single_row(experiment, tmp_path, monkeypatch):
  monkeypatch.setattr(memory, "device_limit", lambda device: 10_000)
  refused(experiment, tmp_path, "not even one row")


@contextlib.contextmanager
def small_disk(folder, size):
  """A file system of that many bytes, mounted at a folder."""
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
  if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
    pytest.skip("only root can mount a small file system, and not in every container")
  try:
    yield folder
  finally:
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", [4096, 16384, 32768])
def test_a_full_disk_under_the_cache(experiment, tmp_path, monkeypatch, size):
  """It fills up at the tokenizer, or while the text is tokenised."""
  with small_disk(tmp_path / "disk", size) as disk:
    monkeypatch.setenv("TFM_CACHE_DIR", str(disk))
    refused(experiment, tmp_path, r"cannot write .*disk.*No space left on device; .*TFM_CACHE_DIR")
    assert not list(disk.rglob("*.tmp"))


@pytest.mark.slow
def test_a_full_disk_under_the_checkpoints(experiment, tmp_path):
  with small_disk(tmp_path / "disk", 2 << 20) as disk:
    done = train(f"--config={experiment}", f"--workdir={disk / 'run'}", "--config.checkpoint.keep=0")
  one_line(done, "was not saved in", "No space left on device")
  assert done.stderr.count("No space left") == 1


@pytest.mark.slow
def test_a_full_disk_under_the_metrics(experiment, tmp_path):
  """After the first checkpoint, the metrics are the only file that is written."""
  with small_disk(tmp_path / "disk", 1 << 20) as disk:
    flags = (f"--config={experiment}", f"--workdir={disk / 'run'}", "--config.train.steps=1")
    assert train(*flags).returncode == 0
    left = os.statvfs(disk)
    (disk / "filler").write_bytes(b"x" * left.f_bavail * left.f_frsize)
    done = train(*flags[:2], "--config.train.steps=3")
  one_line(done, "cannot write", "No space left on device; free some space")


def test_an_unwritable_work_directory(experiment, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write"):
    fit(tiny(experiment), tmp_path / "file" / "run")


def test_other_settings_in_a_directory_that_holds_a_run(experiment, tmp_path):
  fit(tiny(experiment, train__steps=1), tmp_path / "run")
  before = (tmp_path / "run" / "metrics.jsonl").read_text()
  with pytest.raises(UserError, match=r"other settings of optimizer\.learning_rate, seed"):
    fit(tiny(experiment, train__steps=1, seed=3, optimizer__learning_rate=1.0), tmp_path / "run")
  assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_second_live_run_in_the_directory(experiment, tmp_path):
  fit(tiny(experiment, train__steps=1), tmp_path / "run")
  lock = tmp_path / "run" / "lock"
  from tfm_jax.runtime.run_directory import RunDirectory

  with RunDirectory(tmp_path / "run").locked():
    holder = json.loads(lock.read_text())
    assert holder["pid"] == os.getpid()
    with pytest.raises(UserError, match="another run is using"):
      fit(tiny(experiment, train__steps=2), tmp_path / "run")
