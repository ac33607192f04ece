"""The run directory: one running process at a time, each (split, step) once, atomic writes."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfm_jax.errors import UserError
from tfm_jax.runtime import run_directory
from tfm_jax.runtime.run_directory import RunDirectory


def values_of(run, *keys):
  return [tuple(record[key] for key in keys) for record in run.read_metrics()]


def write_records(run, records, resume_step=None):
  writer = run.open_metrics(resume_step)
  for record in records:
    writer.write(record)
  writer.close()


def train_records(first, last):
  return [{"step": step, "split": "train", "loss": step / 7} for step in range(first, last + 1)]


@pytest.fixture(params=["local", "object store"])
def run(request, tmp_path, monkeypatch):
  """A run directory, on a file system or as in an object store, which can neither append nor lock."""
  if request.param == "object store":
    monkeypatch.setattr(RunDirectory, "is_local", False)
  run = RunDirectory(tmp_path / "run")
  run.create()
  return run


# Files.


def test_config_and_starts(run):
  assert not run.exists
  with pytest.raises(UserError, match=r"no run in .*run: it has no config.json"):
    run.read_config()
  assert run.starts() == []
  run.write_config({"seed": 1, "model": {"dtype": "bfloat16"}, "files": ["a", "b"]})
  run.append_start({"devices": 8})
  run.append_start({"devices": 4})
  again = RunDirectory(run.path)
  assert again.exists
  assert again.read_config() == {"seed": 1, "model": {"dtype": "bfloat16"}, "files": ["a", "b"]}
  assert again.starts() == [{"devices": 8}, {"devices": 4}]
  assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "run.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  run = RunDirectory(tmp_path)
  run.write_config({"seed": 1})

  def fail(_):
    raise OSError("disk full")

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match="disk full"):
    run.write_config({"seed": 2})
  assert run.read_config() == {"seed": 1}


def test_a_damaged_config_is_named(tmp_path):
  (tmp_path / "config.json").write_text('{"seed": ')
  with pytest.raises(UserError, match=r"config\.json is damaged"):
    RunDirectory(tmp_path).read_config()


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  RunDirectory("~/run").create()
  assert (tmp_path / "run").is_dir()


def test_an_unwritable_directory_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
    with pytest.raises(UserError, match=r"cannot write to the work directory .*choose another --workdir") as error:
      RunDirectory(path).create()
    assert "\n" not in str(error.value)


def test_only_process_0_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  run = RunDirectory(tmp_path / "run")
  with run.locked():
    run.write_config({"seed": 1})
    run.append_start({})
    write_records(run, train_records(1, 3))
  assert not run.path.exists()


# Metrics.


def test_records_are_read_as_numbers(run):
  record = {"step": np.int64(3), "split": "train", "loss": np.float32(0.1), "accuracy": jax.numpy.float32(0.5)}
  write_records(run, [record])
  (read,) = run.read_metrics()
  assert read == {"step": 3, "split": "train", "loss": float(np.float32(0.1)), "accuracy": 0.5}


def test_values_that_are_not_finite_become_null(run):
  write_records(run, [{"step": 1, "split": "train", "loss": float("nan"), "grad_norm": np.float32("inf")}])
  json.loads((run.path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
  assert values_of(run, "loss", "grad_norm") == [(None, None)]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.integers(0, 9), resume=st.none() | st.integers(0, 9), cut=st.integers(0, 60))
def test_after_a_resume_each_split_and_step_occurs_once(run, written, resume, cut):
  records = train_records(1, written) + [{"step": written, "split": "eval", "loss": 1.0}]
  write_records(run, records)
  path = run.path / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 10, "split": "train", "loss": 0.123456789, "x": 1}'[:cut])
  kept = [record for record in records if resume is not None and record["step"] <= resume]
  after = train_records((-1 if resume is None else resume) + 1, 12)
  write_records(run, after, resume)
  assert run.read_metrics() == kept + after


def test_records_are_on_disk_after_sync(run):
  writer = run.open_metrics()
  writer.write({"step": 1, "split": "train", "loss": 1.0})
  writer.sync()
  assert values_of(RunDirectory(run.path), "step") == [(1,)]
  writer.write({"step": 2, "split": "train", "loss": 1.0})
  writer.sync()
  assert values_of(RunDirectory(run.path), "step") == [(1,), (2,)]
  writer.close()


def test_sync_reaches_the_disk_and_only_when_needed(tmp_path, monkeypatch):
  synced = []
  writer = RunDirectory(tmp_path).open_metrics()
  monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "metrics.jsonl").read_text()))
  writer.write({"step": 1})
  writer.sync()
  writer.sync()
  assert synced == ['{"step": 1}\n']
  writer.close()


@pytest.mark.parametrize("damage", ['{"step": 2, "split"', "5", '{"split": "train"}', '{"step": 2}', "\0\0\0"])
def test_damage_before_the_last_line_is_named(run, damage):
  whole = '{"step": 1, "split": "train"}'
  (run.path / "metrics.jsonl").write_text(f"{whole}\n{damage}\n{whole}\n")
  with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 "):
    run.open_metrics(3)


def test_no_metrics_yet(run):
  assert run.read_metrics() == []


# The lock.

HOLDER = """
import sys
from tfm_jax.runtime.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).locked():
  print("held", flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """A real process that holds the lock of tmp_path."""
  command = [sys.executable, "-c", HOLDER, str(tmp_path)]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()


def test_a_second_live_run_is_refused_and_a_killed_one_replaced(tmp_path, holder):
  run = RunDirectory(tmp_path)
  with (
    pytest.raises(UserError, match=f"pid {holder.pid} on host {socket.gethostname()}, since 20"),
    run.locked(),
  ):
    pass
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with run.locked():
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_run_that_ends_frees_the_lock(tmp_path, holder):
  holder.communicate("")
  assert holder.returncode == 0
  assert (tmp_path / "lock").read_text() == ""
  with RunDirectory(tmp_path).locked():
    pass


def test_the_same_process_is_refused_too(run):
  with run.locked(), pytest.raises(UserError, match=f"pid {os.getpid()}"), RunDirectory(run.path).locked():
    pass
  with run.locked():  # and an error inside the block frees it
    pass


@pytest.mark.parametrize(
  ("change", "free"),
  [
    ({}, False),
    ({"host": "elsewhere", "pid": 2**22 + 1}, False),
    ({"started": 1}, True),  # the pid is used again by another process
    ({"pid": 2**22 + 1}, True),
  ],
)
def test_whose_lock_is_stale(run, change, free):
  (run.path / "lock").write_text(json.dumps(run_directory._this_process() | {"since": "today"} | change))
  if free:
    with run.locked():
      pass
  else:
    with pytest.raises(UserError, match=r"another run is using .*delete .*lock"), run.locked():
      pass


@pytest.mark.parametrize("content", ["", '{"host": "a', "[]"])
def test_an_incomplete_lock_is_free(run, content):
  (run.path / "lock").write_text(content)
  with run.locked():
    assert json.loads((run.path / "lock").read_text())["pid"] == os.getpid()


def test_a_lock_that_was_taken_away_is_not_released(run):
  other = json.dumps({"host": "elsewhere", "pid": 1, "started": 1})
  with run.locked():
    (run.path / "lock").write_text(other)
  assert (run.path / "lock").read_text() == other


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run = RunDirectory("runs/mine")
  assert str(run.path) == str(tmp_path / "runs" / "mine") and run.checkpoints.is_absolute()
  assert str(RunDirectory("gs://bucket/run").path) == "gs://bucket/run"
