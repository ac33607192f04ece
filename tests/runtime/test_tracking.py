"""Tracking: records reach metrics.jsonl, TensorBoard and the console; numbers are readable."""

import io
import logging
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tfm_jax.errors import UserError
from tfm_jax.runtime.reporting.tracking import (
  LINE_SECONDS,
  Console,
  Tracker,
  check_wandb,
)
from tfm_jax.runtime.reporting.units import human_bytes, human_count, human_seconds
from tfm_jax.runtime.run_directory import RunDirectory


def events(directory):
  """All TensorBoard events of a directory: a record is length, checksum, bytes, checksum."""
  out = []
  for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
    data, start = path.read_bytes(), 0
    while start < len(data):
      size = int.from_bytes(data[start : start + 8], "little")
      out.append(Event.FromString(data[start + 12 : start + 12 + size]))
      start += size + 16
  return out


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def lines(caplog):
  caplog.set_level(logging.INFO, logger="tfm_jax")
  return lambda: [record.getMessage() for record in caplog.records]


def test_a_record_reaches_metrics_and_tensorboard(tmp_path):
  run = RunDirectory(tmp_path)
  with Tracker(run, total_steps=2) as tracker:
    tracker.log("eval", 0, {"loss": 5.0})
    tracker.log("train", 1, {"loss": np.float32(4.0), "grad_norm": 1.5})
  assert run.read_metrics() == [
    {"step": 0, "split": "eval", "loss": 5.0},
    {"step": 1, "split": "train", "loss": 4.0, "grad_norm": 1.5},
  ]
  scalars = [
    (event.step, v.tag, v.simple_value) for event in events(tmp_path / "tensorboard") for v in event.summary.value
  ]
  assert scalars == [(0, "eval/loss", 5.0), (1, "train/loss", 4.0), (1, "train/grad_norm", 1.5)]


def test_a_resume_cuts_records_and_purges_events(tmp_path):
  run = RunDirectory(tmp_path)
  with Tracker(run, 4) as tracker:
    for step in (1, 2, 3):
      tracker.log("train", step, {"loss": 1.0})
  with Tracker(run, 4, resume_step=2) as tracker:
    tracker.log("train", 3, {"loss": 2.0})
  assert [(row["step"], row["loss"]) for row in run.read_metrics()] == [(1, 1.0), (2, 1.0), (3, 2.0)]
  starts = [event.step for event in events(tmp_path / "tensorboard") if event.session_log.status == SessionLog.START]
  assert starts == [3]
  (tmp_path / "tensorboard" / "events.out.tfevents.1.earlier").write_bytes(b"")
  with Tracker(run, 4) as tracker:  # a fresh start
    tracker.log("train", 1, {"loss": 3.0})
  assert [event.step for event in events(tmp_path / "tensorboard") if event.summary.value] == [1]
  assert not (tmp_path / "tensorboard" / "events.out.tfevents.1.earlier").exists()


def test_records_are_on_disk_after_sync(tmp_path):
  tracker = Tracker(RunDirectory(tmp_path), 2)
  tracker.log("train", 1, {"loss": 1.0})
  tracker.sync()
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
  assert any(event.summary.value for event in events(tmp_path / "tensorboard"))
  tracker.close()


def test_other_processes_track_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(RunDirectory, "writes", False)
  with Tracker(RunDirectory(tmp_path / "run"), 2) as tracker:
    tracker.log("train", 1, {"loss": 1.0})
    tracker.sync()
  assert not (tmp_path / "run").exists()


def test_a_remote_directory_has_no_tensorboard_and_says_so(tmp_path, monkeypatch, lines):
  monkeypatch.setattr(RunDirectory, "is_local", False)
  run = RunDirectory(tmp_path)
  with Tracker(run, 2) as tracker:
    tracker.log("train", 1, {"loss": 1.0})
  assert not run.tensorboard.exists()
  assert any("no TensorBoard" in line for line in lines())
  assert len(run.read_metrics()) == 1


def test_lines_come_at_a_readable_pace(lines):
  now = [0.0]
  console = Console(total_steps=1000, clock=lambda: now[0])
  for step in range(1, 101):
    now[0] += LINE_SECONDS / 20
    console.log("train", step, {"loss": 2.0, "learning_rate": 3e-4, "tokens_per_second": 12345.0, "grad_norm": 1.234})
  assert len(lines()) == 5  # the first, and one in twenty
  assert lines()[0] == "train step 1/1000  loss 2  lr 0.0003  grad_norm 1.23  tokens/s 12.3k"
  assert lines()[1].startswith("train step 21/1000  loss 2  ") and lines()[1].endswith("  tokens/s 12.3k  ETA 8m10s")
  console.log("eval", 100, {"loss": 3.25, "perplexity": math.exp(3.25)})
  assert lines()[-1] == "eval step 100/1000  loss 3.25  perplexity 25.79"
  console.log("train", 1000, {"loss": 1.0})  # the last step is always shown
  assert lines()[-1] == "train step 1000/1000  loss 1"
  console.close()


def test_a_terminal_has_a_bar(monkeypatch, lines):
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  console = Console(total_steps=100, start_step=40)
  console.log("train", 100, {"loss": 2.5, "tokens_per_second": 2e6})
  console.close()
  assert "100/100" in terminal.getvalue()
  assert "loss=2.5" in terminal.getvalue()
  assert "tokens/s=2M" in terminal.getvalue()
  assert lines() == []


@pytest.mark.parametrize(("step", "left"), [(50, False), (100, True)])
def test_a_run_that_ends_early_leaves_no_bar_behind(monkeypatch, step, left):
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  console = Console(total_steps=100)
  console.log("train", step, {"loss": 2.5})
  console.close()
  assert bool(terminal.getvalue().rpartition("\r")[2].strip()) == left  # what stands in the line


@pytest.mark.parametrize(
  ("count", "text"),
  [
    (0, "0"),
    (7, "7"),
    (999, "999"),
    (1000, "1k"),
    (12345, "12.3k"),
    (999_999, "1M"),
    (124_439_808, "124M"),
    (1.56e9, "1.56B"),
  ],
)
def test_counts(count, text):
  assert human_count(count) == text


@pytest.mark.parametrize(
  ("count", "text"),
  [(512, "512 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (3 << 20, "3 MiB"), (int(1.5 * 2**40), "1.5 TiB")],
)
def test_bytes(count, text):
  assert human_bytes(count) == text


@pytest.mark.parametrize(
  ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (200, "3m20s"), (18420, "5h07m"), (187_200, "2d04h")]
)
def test_durations(seconds, text):
  assert human_seconds(seconds) == text


@given(st.floats(1e-3, 1e15))
def test_a_count_is_right_to_three_digits(value):
  text = human_count(value)
  unit = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1)
  assert float(text.rstrip("kMBT")) * unit == pytest.approx(value, rel=0.0051, abs=0.0051)


class FakeWandb:
  """What is used of the package wandb."""

  class errors:
    class Error(Exception):
      pass

  def __init__(self):
    self.runs, self.logged, self.finished = [], [], 0

  def init(self, **settings):
    self.runs.append(settings)
    return self

  def log(self, record, step):
    self.logged.append((step, record))

  def finish(self):
    self.finished += 1


def test_records_reach_weights_and_biases_and_a_resumed_run_is_the_same_there(tmp_path, monkeypatch):
  fake = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", fake)
  run = RunDirectory(tmp_path / "mine")
  run.create()
  run.write_config({"seed": 3})
  run.append_start({"time": "now"})
  with Tracker(run, 3, wandb="project") as tracker:
    tracker.log("eval", 0, {"loss": 5.0})
    tracker.log("train", 1, {"loss": np.float32(4.0)})
  run.append_start({"time": "later"})
  (tmp_path / "mine").rename(tmp_path / "moved")
  run = RunDirectory(tmp_path / "moved")
  with Tracker(run, 3, 1, wandb="project") as tracker:
    tracker.log("train", 2, {"loss": 3.0})
  assert fake.logged == [(0, {"eval/loss": 5.0}), (1, {"train/loss": 4.0}), (2, {"train/loss": 3.0})]
  first, second = fake.runs
  assert first["id"] == second["id"] and fake.finished == 2
  assert (first["project"], first["name"], first["config"], first["resume"]) == (
    "project",
    "mine",
    {"seed": 3},
    "allow",
  )
  with Tracker(run, 3, 2):
    pass
  assert len(fake.runs) == 2
  other = RunDirectory(tmp_path / "other")
  other.create()
  other.write_config({"seed": 3})
  other.append_start({"id": "another", "time": "now"})
  with Tracker(other, 3, wandb="project"):
    pass
  assert fake.runs[2]["id"] != first["id"]


@pytest.mark.parametrize("kind", [FakeWandb.errors.Error, ValueError, TimeoutError])
def test_without_a_key_or_a_connection_a_run_says_what_to_do_and_leaves_its_records(tmp_path, monkeypatch, kind):
  fake = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", fake)
  run = RunDirectory(tmp_path)
  run.write_config({})
  with Tracker(run, 3) as tracker:
    tracker.log("train", 1, {"loss": 1.0})

  def fail(**settings):
    raise kind("api_key not configured\n(no-tty)")

  monkeypatch.setattr(fake, "init", fail)
  message = r"^train\.wandb=mine: api_key not configured \(no-tty\): run wandb login, or set WANDB_MODE=offline$"
  with pytest.raises(UserError, match=message):
    Tracker(run, 3, wandb="mine")
  assert len(run.read_metrics()) == 1


def test_without_the_package_a_run_says_how_to_install_it(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  check_wandb("")
  with pytest.raises(UserError, match=r"train\.wandb=project: wandb is not installed: pip install -e '\.\[wandb\]'"):
    check_wandb("project")
