"""A run that is killed at any moment and started again ends with the same result, bit for bit."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import pytest

from tests.support.launching import (
  ROOT,
  assert_same_state,
  environment,
  exact_rows,
  program_of,
  quick_fit,
  rows,
  state,
  tiny,
  train,
  write_experiment,
)
from tfm_jax.errors import UserError
from tfm_jax.runtime.interruption import Interrupted
from tfm_jax.runtime.reporting import tracking
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.config import from_dict, load, resolve, to_dict
from tfm_jax.training.start import check_fingerprints, check_resumable

# Runs train.py and kills itself, without a chance to clean up, at the n-th event of a kind that names a text: events
# are Python's audit events ("open", with a path), and "row", with a split and a step, before the row is written.
SUICIDE = """
import os, runpy, signal, sys
sys.path.insert(0, os.getcwd())
from tfm_jax.runtime.reporting.tracking import Tracker

event, text, count = sys.argv[1:4]
left = int(count)

def hook(name, arguments):
  global left
  if name == event and text in str(arguments[0]):
    left -= 1
    if left == 0:
      os.kill(os.getpid(), signal.SIGKILL)

write = Tracker.log
def log(self, split, step, metrics):
  sys.audit("row", f"{split} {step}.")
  write(self, split, step, metrics)

Tracker.log = log
sys.addaudithook(hook)
sys.argv = ["train.py", *sys.argv[4:]]
runpy.run_path("train.py", run_name="__main__")
"""

# Steps 1 to 12, evaluation at 0, 4, 8 and 12, checkpoints at 5, 10 and 12. Each entry kills another start of one run.
PLACES = (
  ("open", "run/tokenizer/", 1),  # before anything but the lock is written
  ("open", "run/config.json.", 1),  # the run does not exist yet
  ("open", "run/run.json.", 1),  # the run exists, but run.json does not
  ("row", "train 3.", 1),  # before the first checkpoint
  ("open", "commit_success", 1),  # during the first save
  ("open", "manifest.sha256.tmp", 1),  # after its commit, before its checksums
  ("open", "run/metrics.jsonl.", 1),  # resuming from 5, while later records are removed
  ("row", "train 8.", 1),  # between checkpoints
  ("row", "eval 8.", 1),  # in an evaluation
  ("open", "commit_success", 1),  # during the save of step 10
  ("row", "eval 12.", 1),  # in the last evaluation
  ("open", "commit_success", 1),  # during the last save, or that of step 10
)


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
  """An uninterrupted run in a process of its own, on one device."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  done = train(f"--config={experiment}", f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  return workdir


def same(workdir, reference):
  """Asserts that records and final state are those of an uninterrupted run."""
  actual, expected = exact_rows(workdir), exact_rows(reference)
  assert list(actual) == list(expected)
  assert actual == expected
  assert_same_state(state(workdir), state(reference))


def test_the_reference_is_complete(whole):
  evaluated = [("eval", step) for step in (0, 4, 8, 12)]
  assert sorted(exact_rows(whole)) == sorted(evaluated + [("train", step) for step in range(1, 13)])


@pytest.mark.slow
def test_killed_at_every_kind_of_place_in_a_row(experiment, whole, tmp_path):
  workdir = tmp_path / "run"
  flags = (f"--config={experiment}", f"--workdir={workdir}")
  expected = exact_rows(whole)
  for event, text, count in PLACES:
    command = [sys.executable, "-c", SUICIDE, event, text, str(count), *flags]
    killed = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    place = f"{event} {text} {count}: {killed.stderr[-2000:]}"
    assert killed.returncode == -signal.SIGKILL, place
    stored = Checkpoints(workdir / "checkpoints").latest() or 0
    actual = RunDirectory(workdir).read_metrics()
    kept = {(row["split"], row["step"]) for row in actual if 0 < row["step"] <= stored}
    assert kept == {key for key in expected if 0 < key[1] <= stored}, f"checkpoint {stored}, {place}"
  last = train(*flags)
  assert last.returncode == 0, last.stderr
  same(workdir, whole)


def signalled(pattern, number, *arguments, delay=0.0):
  """Sends a signal to train.py once a line of its log matches. Returns (exit status, log).

  SIGINT reaches its worker processes as well, as Ctrl-C does.
  """
  command = [sys.executable, "train.py", *arguments]
  log = []
  with subprocess.Popen(
    command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, process_group=0
  ) as process:
    for line in process.stderr:
      log.append(line)
      if re.search(pattern, line):
        time.sleep(delay)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        break
    log += process.stderr
    return process.wait(300), "".join(log)


def test_killed_from_outside(experiment, whole, tmp_path):
  flags = (f"--config={experiment}", f"--workdir={tmp_path / 'run'}")
  for pattern in ("checkpoint 5 is complete", "resuming from"):
    status, log = signalled(pattern, signal.SIGKILL, *flags)
    assert status == -signal.SIGKILL, log
  done = train(*flags)
  assert done.returncode == 0, done.stderr
  assert "resuming from the checkpoint" in done.stderr
  same(tmp_path / "run", whole)


def test_sigterm_saves_and_exits_143(experiment, whole, tmp_path):
  flags = (f"--config={experiment}", f"--workdir={tmp_path / 'run'}", "--config.checkpoint.every=0")
  status, log = signalled("train step 1/", signal.SIGTERM, *flags)
  assert status == 128 + signal.SIGTERM, log
  assert "Traceback" not in log
  step = int(re.fullmatch(r"SIGTERM after step (\d+): .*", log.splitlines()[-1])[1])
  assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [step]
  assert rows(tmp_path / "run")[-1]["step"] == step
  assert f"train, step {step}: " in (tmp_path / "run" / "curves.html").read_text()
  done = train(*flags)
  assert done.returncode == 0, done.stderr
  same(tmp_path / "run", whole)


@pytest.mark.parametrize(
  ("pattern", "number", "flags"),
  [
    ("reading data.source", signal.SIGINT, ()),
    ("parameters, without the padding", signal.SIGTERM, ()),  # it compiles
    ("building the embedded corpus", signal.SIGINT, ("--config.data.source=embedded", "--config.data.path=")),
  ],
)
def test_a_signal_before_the_first_step_is_one_line_and_leaves_nothing(experiment, tmp_path, pattern, number, flags):
  arguments = (f"--config={experiment}", f"--workdir={tmp_path / 'run'}", *flags)
  environ = {"TFM_CACHE_DIR": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
  with pytest.MonkeyPatch.context() as patch:
    for name, value in environ.items():
      patch.setenv(name, value)
    status, log = signalled(pattern, number, *arguments, delay=0.5 if flags else 0.0)  # 0.5: while workers start
  name = signal.Signals(number).name
  assert status == 128 + number and "Traceback" not in log, log
  expected = f"{name} before the first checkpoint: nothing is saved, and the same command starts anew"
  assert log.splitlines()[-1] == expected, log
  assert not (tmp_path / "run").exists()


def test_a_signal_before_a_resumed_run_trains_says_where_it_resumes(experiment, whole, tmp_path):
  shutil.copytree(whole, tmp_path / "run")
  flags = (f"--config={experiment}", f"--workdir={tmp_path / 'run'}", "--config.train.steps=20")
  status, log = signalled("parameters, without the padding", signal.SIGINT, *flags)
  last = max(Checkpoints(whole / "checkpoints").steps())
  assert status == 128 + signal.SIGINT and "Traceback" not in log, log
  assert log.splitlines()[-1] == f"SIGINT: ended at once; the same command resumes from the checkpoint of step {last}"
  same(tmp_path / "run", whole)


def interrupted(config, workdir, split, step):
  """Runs `fit`, with SIGTERM sent to this process when a certain record is written. Returns the step that was saved."""
  write = tracking.Tracker.log

  def log(self, *row):
    write(self, *row)
    if row[:2] == (split, step):
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as stopped:
    patch.setattr(tracking.Tracker, "log", log)
    quick_fit(config, workdir)
  assert stopped.value.number == signal.SIGTERM
  return Checkpoints(workdir / "checkpoints").latest()


VARIANTS = {
  "bert": {"train__microbatches": 2, "sharding__strategy": "tp", "sharding__model": 2},
  "gpt": {
    "sharding__strategy": "fsdp_tp",
    "optimizer__name": "adam",
    "model__dtype": "bfloat16",
    "model__remat": "full",
  },
  "t5": {"sharding__strategy": "fsdp", "optimizer__name": "adafactor", "optimizer__schedule": "rsqrt"},
}


@pytest.fixture(scope="module")
def variant(experiment, tmp_path_factory):
  """variant(family) -> (config, directory of an uninterrupted run), on eight devices."""
  experiments = {}

  def get(family):
    if family not in experiments:
      config = tiny(experiment, family, **VARIANTS[family])
      experiments[family] = config, tmp_path_factory.mktemp(family) / "run"
      quick_fit(*experiments[family])
    return experiments[family]

  return get


@pytest.mark.parametrize(
  "family", [pytest.param(name, marks=() if name == "bert" else pytest.mark.slow) for name in VARIANTS]
)
def test_every_family_and_strategy_resumes_bit_for_bit(family, variant, tmp_path):
  config, reference = variant(family)
  stored = interrupted(config, tmp_path / "run", "train", 6)
  with open(tmp_path / "run" / "metrics.jsonl", "a") as file:  # records after the last checkpoint, and a torn one
    file.write(f'{{"step": {stored + 1}, "split": "train", "loss": 1.0}}\n{{"step": {stored + 2}, "spl')
  quick_fit(config, tmp_path / "run")
  same(tmp_path / "run", reference)


def close(workdir, reference, rtol):
  actual, expected = exact_rows(workdir), exact_rows(reference)
  assert list(actual) == list(expected)
  for key in expected:
    for name, value in expected[key].items():
      if name not in ("accuracy",):  # a tie may go the other way
        assert actual[key][name] == pytest.approx(value, rel=rtol), (key, name)


@pytest.mark.slow
def test_resumes_under_another_strategy_and_device_count(experiment, variant, tmp_path):
  config, reference = variant("t5")
  workdir = tmp_path / "run"
  stored = interrupted(config, workdir, "train", 5)
  before = state(workdir)

  for strategy, devices in (("tp", 4), ("fsdp", 8), ("dp", 1), ("fsdp_tp", 4)):
    sharding = dataclasses.replace(type(config.sharding)(), strategy=strategy)
    resolved = dataclasses.replace(from_dict(RunDirectory(workdir).read_config()), sharding=sharding)
    abstract = program_of(resolved, 256 + 5 + 10, jax.devices()[:devices]).state._asdict()
    with Checkpoints(workdir / "checkpoints") as checkpoints:
      restored = checkpoints.restore(stored, abstract)
    for array, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
      assert array.sharding == expected.sharding
    assert_same_state(jax.device_get(restored), before)

  flags = [f"--config={experiment}:t5", "--config.optimizer.name=adafactor", "--config.optimizer.schedule=rsqrt"]
  for strategy, devices in (("tp", 2), ("dp", 1)):
    copy = tmp_path / f"{strategy}{devices}"
    shutil.copytree(workdir, copy)
    done = train(f"--workdir={copy}", f"--config.sharding.strategy={strategy}", *flags, devices=devices)
    assert done.returncode == 0, done.stderr
    assert f"resuming from the checkpoint of step {stored}" in done.stderr
    close(copy, reference, 1e-4)
    starts = json.loads((copy / "run.json").read_text())
    assert [start["devices"]["count"] for start in starts] == [8, devices]
    assert starts[-1]["mesh"]["model"] == (devices if strategy == "tp" else 1)


@pytest.mark.slow
def test_rows_are_on_disk_before_a_checkpoint_is_saved(experiment, tmp_path, monkeypatch):
  synced = {}
  sync = os.fsync

  def fsync(file):
    sync(file)
    synced[os.readlink(f"/proc/self/fd/{file}")] = os.fstat(file).st_size

  save, seen = Checkpoints.save, []

  def watched(self, step, trees):
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert rows(metrics.parent)[-1]["step"] == step
    assert synced[str(metrics)] == metrics.stat().st_size
    seen.append(step)
    save(self, step, trees)

  monkeypatch.setattr(os, "fsync", fsync)
  monkeypatch.setattr(Checkpoints, "save", watched)
  quick_fit(tiny(experiment), tmp_path / "run")
  assert seen == [5, 10, 12]


@pytest.mark.slow
def test_dropout_is_drawn_anew_each_step(experiment, tmp_path):
  """The batch and the parameters stay the same, so that only dropout can change the loss."""
  one = write_experiment(tmp_path / "one")
  (one.parent / "text.txt").write_text("abcdefgh")
  still = {"optimizer__learning_rate": 0.0, "data__eval_fraction": 0.0, "train__steps": 3}
  quick_fit(tiny(one, **still), tmp_path / "run")
  assert len({row["loss"] for row in rows(tmp_path / "run")}) == 3
  quick_fit(tiny(one, **still, model__dropout=0.0, model__attention_dropout=0.0), tmp_path / "none")
  assert len({row["loss"] for row in rows(tmp_path / "none")}) == 1


def test_a_finished_run_prints_its_result_again(experiment, whole, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  flags = (f"--config={experiment}", f"--workdir={workdir}")
  again = train(*flags)
  assert again.returncode == 0, again.stderr
  assert "this run is finished: 12 steps are done" in again.stderr
  loss = exact_rows(whole)["eval", 12]["loss"]
  assert f"held-out loss: {loss:.3f} nats" in again.stderr
  same(workdir, whole)
  assert len(json.loads((workdir / "run.json").read_text())) == 2


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_steps(experiment, whole, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  quick_fit(tiny(experiment, train__steps=14, checkpoint__keep=0), workdir)
  assert [row["step"] for row in rows(workdir) if row["split"] == "train"] == list(range(1, 15))
  assert Checkpoints(workdir / "checkpoints").steps() == [5, 10, 12, 14]


def test_a_run_of_an_earlier_release_that_did_not_read_its_path_goes_on(tmp_path, caplog):
  """It was started with a path beside data.source=embedded, which the same command now takes as text."""
  run = RunDirectory(tmp_path)
  stored = resolve(load("configs/quickstart.py"))
  former = dataclasses.replace(stored, data=dataclasses.replace(stored.data, path="a.txt"))
  run.write_config(to_dict(former))
  run.append_start({})
  again = resolve(load("configs/quickstart.py", {"data.path": "a.txt"}))
  assert again.data.source == "text"
  assert check_resumable(run, again) == former
  assert "resumes on it: data.path is ignored" in caplog.text
  with pytest.raises(UserError, match=r"data\.path, data\.source"):
    check_resumable(run, resolve(load("configs/quickstart.py", {"data.path": "b.txt"})))
  run.write_config(to_dict(stored))
  assert check_resumable(run, stored) == stored


def test_a_run_of_an_earlier_release_goes_on_where_its_files_are_untouched(tmp_path):
  """Its fingerprint is of path, size and time of the files; the first new start stores that of their content."""

  def check(noted: list[str], content: str, former: str) -> None:
    starts = [{"fingerprints": {"data": data, "tokenizer": "t"}} for data in noted]
    task = SimpleNamespace(
      fingerprints={"data": content, "tokenizer": "t"}, former_fingerprints={"data": former, "tokenizer": "t"}
    )
    check_fingerprints(starts, task, RunDirectory(tmp_path / "run"))

  check([], "content", "time")
  check(["content"], "content", "other time")
  check(["time"], "content", "time")
  check(["time", "content"], "content", "other time")
  for noted in (["content"], ["time"], ["time", "content"]):
    with pytest.raises(UserError, match=r"the data of the run in .*run has changed.*restore it.*--workdir"):
      check(noted, "other content", "other time")
