"""Sweeps: runs in processes of their own, what a failed or a killed one leaves, and going on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.support.launching import EXPERIMENT, ROOT, environment, exact_rows, train, write_text
from tests.support.refusal import refusal
from tfm_jax.errors import UserError
from tfm_jax.runtime import devices
from tfm_jax.runtime.command import Flags
from tfm_jax.tasks import sweep
from tfm_jax.tasks.sweeps import adaptive, processes
from tfm_jax.tasks.sweeps.processes import SweepInterrupted, _devices, _program_cache, locked
from tfm_jax.tasks.sweeps.runs import Folder
from tfm_jax.tasks.sweeps.space import Dimension

# A run signals its sweep before it writes a row of metrics, and waits until it is told to end.
HOOK = """
import os, signal
from tfm_jax.runtime.reporting.tracking import Tracker

row, number = os.environ.get("SIGNAL_AT", "-,0").split(",")
write = Tracker.log


def log(self, split, step, metrics):
  write(self, split, step, metrics)
  if f"{split} {step} {self.run}" == row:
    read, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    os.kill(os.getppid(), int(number))
    os.read(read, 1)


start = Tracker.__init__


def init(self, run, *arguments):
  self.run = run.path.name.split("_")[0]
  start(self, run, *arguments)


Tracker.__init__, Tracker.log = init, log
"""


def write_sweep(folder, space, extra=""):
  """An experiment of a tiny model with `get_sweep()`."""
  text = write_text(folder / "text.txt")
  source = EXPERIMENT.replace("TEXT", str(text)).replace(
    '"num_layers": 2, "embed_dim": 32', '"num_layers": 1, "embed_dim": 16'
  )
  path = folder / "tiny.py"
  path.write_text(f"{source}\n{extra}\n\ndef get_sweep():\n  return {space!r}\n")
  return path


def run_sweep(path, out, overrides=None, **flags):
  """The command, in this process."""
  sweep.main(Flags({"config": str(path), "out": str(out), **{k: str(v) for k, v in flags.items()}}, overrides or {}))


@pytest.fixture
def few_devices(monkeypatch):
  for name, value in environment().items():
    monkeypatch.setenv(name, value)


def content(out):
  return json.loads((out / "sweep.json").read_text())


def test_mistakes_are_told_before_anything_starts(tmp_path):
  path = write_sweep(tmp_path, {"model.dropout": [0.0, 0.1]})
  out = tmp_path / "out"
  for message, overrides, flags in [
    (r"--config\.model\.dropout is given, but get_sweep\(\) varies it", {"model.dropout": "0.1"}, {}),
    ("--seeds=2 sets the seed of every run", {"seed": "1"}, {"seeds": 2}),
    ("--jobs=0: a whole number", {}, {"jobs": 0}),
    ("--evaluation=first: choose last or best", {}, {"evaluation": "first"}),
    (r"train\.stepz does not exist", {"train.stepz": "1"}, {}),
    (r"task\.name='divination' is not one of", {"task.name": "divination"}, {}),
    ("must be on a file system of this host", {}, {"out": "gs://bucket/sweep"}),
  ]:
    with pytest.raises(UserError, match=message):
      sweep.main(Flags({"config": str(path), "out": str(out), **{k: str(v) for k, v in flags.items()}}, overrides))
    assert not out.exists()
  path.write_text(path.read_text().replace("get_sweep", "get_sweeps"))
  with pytest.raises(UserError, match="has no function get_sweep, which says what to try"):
    run_sweep(path, out)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """A point that fails and one that runs, with two seeds each: (experiment, folder, error of the sweep)."""
  folder = tmp_path_factory.mktemp("sweep")
  points = [{"train.microbatches": 3}, {"optimizer.learning_rate": 2e-2}]
  path = write_sweep(folder, points)
  with pytest.MonkeyPatch.context() as patch:
    for name, value in environment().items():
      patch.setenv(name, value)
    error = refusal(lambda: run_sweep(path, folder / "out", {"train.steps": "4"}, seeds=2, jobs=2))
  return path, folder / "out", error


@pytest.mark.slow
def test_a_failed_run_is_reported_and_does_not_end_the_others(done):
  _, out, error = done
  assert "2 of 4 runs failed" in error and "train.microbatches=3 does not divide train.batch_size=8" in error
  points = content(out)["points"]
  assert [point["number"] for point in points] == [2, 1]  # failed last
  assert [run["status"] for point in points for run in point["runs"]] == ["finished"] * 2 + ["failed"] * 2
  assert "microbatches=3 does not divide" in points[-1]["runs"][0]["error"] and points[-1]["mean"] is None
  assert "Failed" in (out / "sweep.html").read_text()


@pytest.mark.slow
def test_points_have_mean_and_deviation_over_seeds(done):
  _, out, _ = done
  best = content(out)["points"][0]
  losses = []
  for seed in (0, 1):
    workdir = out / f"002_learning_rate=0.02_seed={seed}"
    assert json.loads((workdir / "config.json").read_text())["seed"] == seed
    losses.append(exact_rows(workdir)["eval", 4]["loss"])
  assert losses[0] != losses[1]
  assert best["mean"] == pytest.approx(np.mean(losses)) and best["deviation"] == pytest.approx(np.std(losses, ddof=1))
  assert "config.seed" not in best["command"] and "--config.optimizer.learning_rate=0.02" in best["command"]
  assert "--config.train.steps=4" in best["command"]


@pytest.mark.slow
def test_finished_runs_are_skipped_and_points_may_be_added_and_removed(done, few_devices, tmp_path, capsys):
  path, out, _ = done
  before = {file: file.stat().st_mtime_ns for file in out.glob("*/log.txt")}
  source = path.read_text()
  path.write_text(source.rpartition("return")[0] + 'return {"optimizer.learning_rate": [5e-3, 2e-2]}\n')
  run_sweep(path, out, {"train.steps": "4"})
  path.write_text(source)
  points = content(out)["points"]
  assert {point["number"]: point["values"]["optimizer.learning_rate"] for point in points} == {2: 0.02, 3: 0.005}
  new = [file for file in out.glob("*/log.txt") if before.get(file) != file.stat().st_mtime_ns]
  assert [file.parent.name for file in new] == ["003_learning_rate=0.005_seed=0"]
  assert "best: learning_rate=0.02" in capsys.readouterr().out


@pytest.mark.slow
def test_other_settings_are_refused_by_name(done):
  path, out, _ = done
  with pytest.raises(UserError, match=r"holds a run with other settings of model\.embed_dim: set them back"):
    run_sweep(path, out, {"train.steps": "4", "model.embed_dim": "32"}, seeds=2)


@pytest.mark.slow
def test_another_metric_ranks_the_same_runs(done, monkeypatch):
  path, out, _ = done
  started = []
  monkeypatch.setattr(processes, "run_all", lambda *arguments: started.append(arguments))
  run_sweep(path, out, {"train.steps": "4"}, seeds=2, metric="accuracy", evaluation="best")
  assert content(out)["metric"] == "accuracy" and content(out)["larger_is_better"]
  for point in content(out)["points"][:1]:
    for run in point["runs"]:
      rows = exact_rows(out / run["workdir"])
      assert run["accuracy"] == max(row["accuracy"] for (split, _), row in rows.items() if split == "eval")
  with pytest.raises(UserError, match="no run has a score: no finite f1; there are accuracy"):
    run_sweep(path, out, {"train.steps": "4"}, seeds=2, metric="f1")
  assert started


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_equals_an_uninterrupted_run(tmp_path):
  """Its run writes a checkpoint, for which the next start waits; the command that is shown makes the same run."""
  path = write_sweep(tmp_path, {"optimizer.learning_rate": [1e-4, 2e-2]}, HOOK)
  out = tmp_path / "out"
  command = [sys.executable, "-m", "tfm_jax.tasks.sweep", f"--config={path}", f"--out={out}"]

  def start(**extra):
    return subprocess.run(
      command,
      cwd=ROOT,
      env=environment() | extra,
      stderr=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      text=True,
      timeout=300,
    )

  killed = start(SIGNAL_AT=f"train 7 001,{signal.SIGKILL}")
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  first = out / "001_learning_rate=0.0001_seed=0"
  again = start()
  assert again.returncode == 0, again.stderr
  text = (first / "log.txt").read_text()
  step = re.search(r"SIGTERM after step (\d+): its checkpoint is complete", text)[1]
  assert step in ("7", "8") and f"resuming from the checkpoint of step {step}" in text
  assert {run["status"] for point in content(out)["points"] for run in point["runs"]} == {"finished"}
  words = shlex.split(next(point["command"] for point in content(out)["points"] if point["number"] == 1))
  assert words[:2] == ["python", "train.py"]
  whole = train(*[word for word in words[2:] if "--workdir" not in word], f"--workdir={tmp_path / 'whole'}")
  assert whole.returncode == 0, whole.stderr
  assert exact_rows(first) == exact_rows(tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_ends_the_runs_with_a_checkpoint(tmp_path, few_devices, monkeypatch):
  path = write_sweep(tmp_path, {"optimizer.learning_rate": [1e-4, 2e-2]}, HOOK)
  monkeypatch.setenv("SIGNAL_AT", f"train 3 001,{signal.SIGTERM}")
  with pytest.raises(SweepInterrupted, match="SIGTERM: the runs in progress were ended") as error:
    run_sweep(path, tmp_path / "out")
  assert error.value.number == signal.SIGTERM
  points = content(tmp_path / "out")["points"]
  assert [point["runs"][0]["status"] for point in points] == ["interrupted", "waiting"]
  log = tmp_path / "out" / points[0]["runs"][0]["workdir"] / "log.txt"
  assert re.search(r"SIGTERM after step [34]: its checkpoint is complete", log.read_text())


def test_two_sweeps_in_one_folder_are_refused(tmp_path):
  with (
    locked(tmp_path),
    pytest.raises(UserError, match=f"another sweep .pid {os.getpid()}. is using"),
    locked(tmp_path),
  ):
    pass
  with locked(tmp_path):
    pass


@pytest.mark.parametrize(
  ("visible", "jobs", "expected"),
  [
    ("0,1,2,3", 2, [("0,2", None), ("1,3", None)]),
    ("0,1", 2, [("0", None), ("1", None)]),
    ("5", 2, [("5", "0.450"), ("5", "0.450")]),
    ("0,1", 3, [("0", "0.450"), ("1", "0.450"), ("0", "0.450")]),
    ("0,1", 1, [(None, None)]),
    ("", 2, [(None, None)] * 2),
  ],
)
def test_gpus_are_divided_among_jobs(monkeypatch, visible, jobs, expected):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  variables = [_devices(slot, jobs) for slot in range(jobs)]
  names = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION")
  assert [tuple(map(v.get, names)) for v in variables] == expected


@pytest.mark.parametrize(
  ("task", "source_task", "metric"),
  [
    ("", "", "loss"), ("mrpc", "", "accuracy"), ("stsb", "", "pearson"), ("question_answering", "", "f1"),
    ("translation", "", "chrf"), ("text_to_text", "stsb", "pearson"), ("text_to_text", "conll2003", "f1"),
  ],
)  # fmt: skip
def test_points_are_ranked_by_a_score_that_the_task_has(tmp_path, monkeypatch, task, source_task, metric):
  class Stop(Exception):
    """Carries the metric."""

  def stop(space, folder, metric, *_):
    raise Stop(metric.name)

  monkeypatch.setattr("tfm_jax.tasks.sweeps.sweep.Sweep", stop)
  path = write_sweep(tmp_path, {"model.dropout": [0.0, 0.1]})
  with pytest.raises(Stop, match=f"^{metric}$"):
    run_sweep(path, tmp_path / "out", {"task.name": task, "task.source_task": source_task})


def test_each_process_is_given_the_gpus_of_its_slot(tmp_path, monkeypatch):
  given = []
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
  started = lambda command, env, **_: given.append(env["CUDA_VISIBLE_DEVICES"])
  monkeypatch.setattr(processes.subprocess, "Popen", started)
  folder = Folder(tmp_path, str(write_sweep(tmp_path, {"model.dropout": [0.0]})), {})
  (run,) = folder.point({"model.dropout": 0.0}, None).runs
  for slot in range(2):
    processes._start(folder.config, run, slot, 2, None)
  assert given == ["4,6", "5,7"]


def test_runs_side_by_side_are_refused_on_tpus(tmp_path, monkeypatch):
  monkeypatch.setattr(devices, "runs_on_tpus", lambda: True)
  path = write_sweep(tmp_path, {"model.dropout": [0.0, 0.1]})
  with pytest.raises(UserError, match=r"--jobs=2: one process owns all TPU chips"):
    run_sweep(path, tmp_path / "out", jobs=2)
  assert not (tmp_path / "out").exists()
  monkeypatch.setattr(processes, "run_all", lambda *_: None)
  run_sweep(path, tmp_path / "out", jobs=1)


def test_runs_side_by_side_write_no_cache_of_compiled_programs_together(monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/cache/xla")
  folders = [_program_cache(slot).get("JAX_COMPILATION_CACHE_DIR", "/cache/xla") for slot in range(3)]
  assert folders == ["/cache/xla", "/cache/xla-job1", "/cache/xla-job2"]
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  monkeypatch.setenv("TFM_CACHE_DIR", "/mine")
  assert _program_cache(1)["JAX_COMPILATION_CACHE_DIR"] == "/mine/xla-job1"


def test_without_optuna_one_line_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "optuna", None)
  path = write_sweep(tmp_path, {"optuna": 3, "model.dropout": [0.0, 0.1]})
  with pytest.raises(UserError, match=r"needs the package optuna: pip install -e '\.\[sweep\]'"):
    run_sweep(path, tmp_path / "out")


@pytest.mark.slow
def test_an_adaptive_sweep_runs_and_goes_on(tmp_path, few_devices):
  pytest.importorskip("optuna", reason="pip install -e '.[sweep]'")
  path = write_sweep(tmp_path, {"optuna": 2, "optimizer.learning_rate": ("log", 1e-4, 1e-1)})
  out = tmp_path / "out"
  run_sweep(path, out, {"train.steps": "2"}, max=1)
  first = content(out)["points"]
  run_sweep(path, out, {"train.steps": "2"})
  points = sorted(content(out)["points"], key=lambda point: point["number"])
  assert len(first) == 1 and first[0] == points[0] and len(points) == 2
  known = [(points[0]["values"], points[0]["mean"])]
  assert points[1]["values"] == adaptive.propose(
    {"optimizer.learning_rate": Dimension("log", (1e-4, 1e-1))}, known, False, 0
  )


def test_numbers_of_points_survive_a_lost_sweep_json(tmp_path):
  path = write_sweep(tmp_path, {"model.dropout": [0.0]})
  folder = Folder(tmp_path / "out", str(path), {})
  folder.point({"model.dropout": 0.0}, None).runs[0].prepare()
  folder.point({"model.dropout": 0.1}, None).runs[0].prepare()
  again = Folder(tmp_path / "out", str(path), {})
  assert again.point({"model.dropout": 0.2}, None).number == 3
  assert again.point({"model.dropout": 0.1}, None).number == 2
