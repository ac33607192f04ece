"""Runs of two processes with four devices each: the results of one process with eight, and a common end."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.support.launching import ROOT, environment, exact_rows, free_port, quick_fit, rows, tiny
from tfm_jax.data.prepare import prepare
from tfm_jax.runtime import interruption
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.compiled import memory
from tfm_jax.training.config import resolve
from tfm_jax.training.load import load_run

# Runs train.py and records, as lines of JSON, the rows of each training batch, and the files written in a folder.
# Arguments: the file for the records, that folder, and the event at the batch of step 3: "fail", "SIGTERM" or nothing.
OBSERVED = """
import json, os, runpy, signal, sys
sys.path.insert(0, os.getcwd())
from tfm_jax.data.dataset import Dataset
from tfm_jax.errors import UserError
from tfm_jax.runtime import agreement
from tfm_jax.training import loop

records, folder, event = open(sys.argv[1], "w"), sys.argv[2], sys.argv[3]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.utime")

def hook(name, arguments):
  if name in CHANGES or (name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
    path = os.path.abspath(os.fsdecode(arguments[0])) if isinstance(arguments[0], (str, bytes)) else ""
    if path.startswith(folder):
      print(json.dumps({"written": os.path.relpath(path, folder)}), file=records, flush=True)

make = Dataset.batch
def batch(self, step, rows=None):
  result = make(self, step, rows)
  if self._shuffle:
    record = {"step": step, "places": rows.tolist(), "rows": result["rows"].tolist()}
    print(json.dumps(record), file=records, flush=True)
    if step == 3 and event == "SIGTERM":
      os.kill(os.getpid(), signal.SIGTERM)
    if step == 3 and event == "fail":
      raise UserError("the disk is gone")
  return result

Dataset.batch = batch
loop.SHORTLY = 0.5
sys.addaudithook(hook)
sys.argv = ["train.py", *sys.argv[4:]]
runpy.run_path("train.py", run_name="__main__")
"""

# Run by two processes in the environment of a Slurm step: all of `agreement`, without devices.
AGREEING = """
import json, os, sys
from pathlib import Path
from tfm_jax.errors import UserError
from tfm_jax.runtime.agreement import FailedTogether, differing, exchange, in_turn, together
from tfm_jax.runtime.agreement import process_count, process_index
from tfm_jax.runtime.processes import join

shared, own = Path(sys.argv[1]), Path(sys.argv[2])
join()
me, results = process_index(), {"count": process_count()}
results["exchanged"] = exchange({"from": me})
results["first alone"] = exchange("hello" if me == 0 else None)
results["differing"] = differing({"a": 1, "b": [me], "c": (2,)} | ({"d": 0} if me else {}))

def failing(processes, message="broken"):
  try:
    with together():
      if me in processes:
        raise UserError(f"{message} {me}" if len(processes) > 1 and message == "broken" else message)
      exchange()  # fails here as well
    return "went on"
  except FailedTogether as error:
    return [str(error), error.silent]

results["none fails"], results["0 fails"], results["1 fails"] = failing(()), failing((0,)), failing((1,))
results["each fails"], results["all fail alike"] = failing((0, 1)), failing((0, 1), "alike")

def turn(folder):
  with in_turn(folder):
    file = folder / "file"
    exists = file.exists()
    file.write_text("by a process")
  return [exists, sorted(path.name for path in folder.iterdir())]

results["shared"], results["own"] = turn(shared), turn(own / str(me))
try:
  with in_turn(own / str(me)):
    if me == 0:
      raise UserError("no text")
  results["turn fails"] = "went on"
except UserError as error:
  results["turn fails"] = str(error)
import jax
from jax._src import xla_bridge
results["backend"] = xla_bridge.backends_are_initialized()
print("RESULTS", json.dumps(results))
"""


@contextlib.contextmanager
def running(commands: list[list[str]], logs: Path, extra: list[dict[str, str]] | None = None) -> Iterator[list[Any]]:
  """Processes with four devices each, their output in LOGS/0.log ..., ended after five minutes at the latest."""
  logs.mkdir(exist_ok=True)
  with contextlib.ExitStack() as stack:
    started: list[subprocess.Popen] = []

    def end() -> None:
      for process in started:
        if process.poll() is None:
          process.kill()

    guard = threading.Timer(300, end)
    guard.start()
    stack.callback(guard.cancel)
    for index, command in enumerate(commands):
      file = stack.enter_context(open(logs / f"{index}.log", "w"))
      env = environment(devices=4) | (extra[index] if extra else {})
      started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT))
      stack.callback(started[-1].wait)
    stack.callback(end)
    yield started


def two(arguments: list[list[str]], logs: Path, extra: list[dict[str, str]] | None = None) -> list[list[str]]:
  """Runs `python ARGUMENTS` as processes 0 and 1 of two; their output. Exit statuses are the last line of each."""
  address = ["--processes=2", f"--coordinator=127.0.0.1:{free_port()}"]
  commands = [[sys.executable, *own, *address, f"--process={i}"] for i, own in enumerate(arguments)]
  with running(commands, logs, extra) as started:
    status = [process.wait() for process in started]
  return [[*(logs / f"{i}.log").read_text().splitlines(), f"status {code}"] for i, code in enumerate(status)]


def observed(folder: Path, flags: list[str], events: tuple[str, str] = ("", "")) -> list[list[str]]:
  """`two` processes run OBSERVED; their records are in FOLDER/records0 and FOLDER/records1."""
  watched = str(folder / "run")
  arguments = [["-c", OBSERVED, str(folder / f"records{i}"), watched, events[i], *flags] for i in range(2)]
  return two(arguments, folder / "logs")


def records_of(folder: Path, process: int) -> list[dict[str, Any]]:
  """What OBSERVED recorded in a process."""
  return [json.loads(line) for line in (folder / f"records{process}").read_text().splitlines()]


def errors(log: list[str]) -> list[str]:
  """The lines with errors."""
  assert not any("Traceback" in line for line in log), log
  return [line for line in log if line.startswith("error: ")]


def same_metrics(workdir: Path, reference: Path) -> None:
  """All metrics equal those of the other run to 1e-6, as sums over processes are added in another order."""
  actual, expected = exact_rows(workdir), exact_rows(reference)
  assert list(actual) == list(expected)
  for key, record in expected.items():
    assert actual[key] == pytest.approx(record, rel=1e-6), key


@pytest.fixture(scope="module")
def pair(experiment, tmp_path_factory):
  """(folder, log of process 0, of process 1) of an observed run of two processes under fsdp."""
  folder = tmp_path_factory.mktemp("pair")
  flags = [f"--config={experiment}", f"--workdir={folder / 'run'}", "--config.sharding.strategy=fsdp"]
  return folder, *observed(folder, flags)


# Results.


def test_two_processes_train_as_one_does(experiment, pair, tmp_path):
  folder, *logs = pair
  assert [log[-1] for log in logs] == ["status 0", "status 0"], logs
  quick_fit(tiny(experiment, sharding__strategy="fsdp"), tmp_path / "run")
  same_metrics(folder / "run", tmp_path / "run")
  (start,) = json.loads((folder / "run" / "run.json").read_text())
  assert start["devices"] == {"count": 8, "kind": "cpu", "processes": 2}


@pytest.mark.slow
def test_two_processes_end_early_with_adapters_an_average_and_a_teacher_as_one_does(experiment, pair, tmp_path):
  """The metric that decides never changes, so that the first evaluation after step 0 is the best one."""
  values = {
    "init_from": str(pair[0] / "run"),
    "init_layers": "1",
    "model.num_layers": 1,
    "distill.teacher": str(pair[0] / "run"),
    "distill.cosine": 1.0,
    "sharding.strategy": "fsdp",
    "adapter.rank": 2,
    "train.epochs": 0.1,
    "train.ema": 0.5,
    "optimizer.warmup_steps": 0,
    "optimizer.warmup_fraction": 0.3,
    "optimizer.layer_decay": 0.8,
    "eval.metric": "unigram_entropy",
    "eval.patience": 2,
    "eval.every": 2,
    "checkpoint.keep": 1,
  }
  flags = [f"--config={experiment}", f"--workdir={tmp_path / 'two'}", *(f"--config.{k}={v}" for k, v in values.items())]
  logs = two([["train.py", *flags]] * 2, tmp_path)
  assert [log[-1] for log in logs] == ["status 0", "status 0"], logs
  quick_fit(tiny(experiment, **values), tmp_path / "one")
  same_metrics(tmp_path / "two", tmp_path / "one")
  assert max(step for _, step in exact_rows(tmp_path / "two")) == 6
  for name in ("one", "two"):
    assert Checkpoints(tmp_path / name / "checkpoints").steps() == [2, 6]
  one, other = load_run(tmp_path / "one"), load_run(tmp_path / "two")
  assert one.step == other.step == 2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one.params, other.params)


def test_each_process_reads_only_the_rows_of_its_devices(experiment, pair):
  config = resolve(tiny(experiment))
  data = prepare(config.data, config.tokenizer, config.objective, config.seed).train(config.train.batch_size)
  batches = [{record["step"]: record for record in records_of(pair[0], i) if "step" in record} for i in range(2)]
  for step in range(config.train.steps):
    assert [batches[i][step]["places"] for i in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batches[0][step]["rows"] + batches[1][step]["rows"] == data.batch(step)["rows"].tolist()


def test_only_process_0_writes(pair):
  folder = pair[0]
  written = [{record["written"] for record in records_of(folder, i) if "written" in record} for i in range(2)]
  assert {"lock", "metrics.jsonl", "tokenizer"} <= written[0]
  assert any(path.startswith("config.json") for path in written[0])
  assert all(path.split("/")[0] == "checkpoints" for path in written[1]), written[1]
  assert (folder / "run" / "lock").read_text() == ""


def test_only_process_0_logs(pair):
  _, first, second = pair
  for word in ("2 processes", "mesh:", "train step 12/12", "checkpoint 12 is complete", "a sample"):
    assert any(word in line for line in first) and not any(word in line for line in second), word
  logged = [line for line in second if re.match(r"\d\d:\d\d:\d\d ", line)]
  assert all(line[9:].startswith("process 1: ") for line in logged), logged


@pytest.mark.slow
def test_a_run_may_change_its_processes(experiment, tmp_path):
  """One process with eight devices, then two, then one again, as one uninterrupted run."""
  same = {"sharding__strategy": "fsdp_tp", "sharding__model": 2, "optimizer__schedule": "constant"}
  quick_fit(tiny(experiment, **same), tmp_path / "whole")
  flags = [f"--config={experiment}", f"--workdir={tmp_path / 'run'}"]
  flags += [f"--config.{key.replace('__', '.')}={value}" for key, value in same.items()]
  quick_fit(tiny(experiment, **same, train__steps=4), tmp_path / "run")
  logs = two([["train.py", *flags, "--config.train.steps=8"]] * 2, tmp_path / "logs")
  assert [log[-1] for log in logs] == ["status 0", "status 0"], logs
  quick_fit(tiny(experiment, **same, train__steps=12), tmp_path / "run")
  same_metrics(tmp_path / "run", tmp_path / "whole")
  starts = json.loads((tmp_path / "run" / "run.json").read_text())
  assert [(start["step"], start["devices"]["processes"]) for start in starts] == [(0, 1), (4, 2), (8, 1)]


# Ends.


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(experiment, tmp_path):
  flags = [f"--config={experiment}", f"--workdir={tmp_path / 'run'}", "--config.data.prefetch=0"]
  flags += ["--config.train.steps=1000000", "--config.eval.every=0", "--config.checkpoint.every=0"]
  first, second = observed(tmp_path, flags, events=("", "SIGTERM"))
  assert [first[-1], second[-1]] == [f"status {128 + signal.SIGTERM}"] * 2, (first, second)
  match = re.fullmatch(r"SIGTERM after step (\d+): .*", first[-2])
  assert match, first
  assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [int(match[1])]
  assert rows(tmp_path / "run")[-1]["step"] == int(match[1])
  assert not any("after step" in line for line in second)


def test_sigint_is_passed_on_as_sigterm(monkeypatch):
  """JAX forwards only SIGTERM to the other processes."""
  sent = []
  monkeypatch.setattr(interruption, "process_count", lambda: 2)
  monkeypatch.setattr(interruption.os, "kill", lambda *call: sent.append(call))
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with interruption.Interruption():
    signal.raise_signal(signal.SIGINT)
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert signal.getsignal(signal.SIGINT) == before[0]  # the second one acts as usual
    assert signal.getsignal(signal.SIGTERM) == before[1]  # it is JAX's
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.slow
def test_an_error_during_training_ends_both(experiment, tmp_path):
  flags = [f"--config={experiment}", f"--workdir={tmp_path / 'run'}", "--config.data.prefetch=0"]
  first, second = observed(tmp_path, flags, events=("", "fail"))
  assert [first[-1], second[-1]] == ["status 2", "status 2"], (first, second)
  assert errors(first) == [f"error: process 1 on {socket.gethostname()}: the disk is gone"]
  assert errors(second) == ["error: the disk is gone"]


@pytest.mark.slow_but("--config.seed=1-not as on process 0: seed;")
@pytest.mark.parametrize(
  ("flag", "named"),
  [
    ("--config.seed=1", "not as on process 0: seed;"),
    ("--workdir=ELSEWHERE", "is not the work directory"),
  ],
)
def test_an_error_of_one_process_ends_both_and_leaves_no_files(flag, named, experiment, tmp_path):
  flag = flag.replace("ELSEWHERE", str(tmp_path / "elsewhere"))
  workdir = [f"--workdir={tmp_path / 'run'}"]
  others = [] if flag.startswith("--workdir") else workdir
  arguments = [["train.py", f"--config={experiment}", *more] for more in (workdir, [*others, flag])]
  first, second = two(arguments, tmp_path / "logs")
  assert [first[-1], second[-1]] == ["status 2", "status 2"], (first, second)
  (line,) = errors(first)
  assert line.startswith("error: process 1: ") and named in line
  assert errors(second) == [line.replace("process 1: ", "", 1)]
  assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_other_text_on_another_host_is_refused(experiment, tmp_path):
  """The second process has its own cache, as on another host, and other text under the same name."""
  homes = []
  for i in range(2):
    home = tmp_path / str(i)
    home.mkdir()
    (home / "text.txt").write_text(f"some text of process {i}\n\n" * 200)
    homes.append(home)
  code = "import os, runpy, sys; sys.path.insert(0, os.getcwd()); os.chdir(sys.argv.pop(1)); "
  code += f"sys.argv[0] = 'train.py'; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
  flags = [f"--config={experiment}", f"--workdir={tmp_path / 'run'}", "--config.data.path=text.txt"]
  extra = [{"TFM_CACHE_DIR": str(home / "cache")} for home in homes]
  first, second = two([["-c", code, str(home), *flags] for home in homes], tmp_path / "logs", extra)
  assert [first[-1], second[-1]] == ["status 2", "status 2"], (first, second)
  assert errors(first)[0].startswith("error: process 1: not as on process 0: the data;")
  assert all((home / "cache" / "tokens").is_dir() for home in homes)
  assert not (tmp_path / "run").exists()


def test_the_host_with_least_memory_decides(monkeypatch):
  """On CPUs the processes of a host share its memory."""
  limits = {1: ("one", 4000), 2: ("two", 1000), 3: ("one", 3000)}
  monkeypatch.setattr(memory, "device_limit", lambda device: 5000)
  monkeypatch.setattr(memory.socket, "gethostname", lambda: "one")
  monkeypatch.setattr(memory, "exchange", lambda mine: {0: mine, **limits})
  assert memory._limit_everywhere(jax.devices()[0]) == 1000
  limits[2] = ("two", 9000)
  assert memory._limit_everywhere(jax.devices()[0]) == 1000  # a third of 3000


def test_agreement_of_two_processes(tmp_path):
  job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
  job |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "JAX_COORDINATOR_PORT": str(free_port())}
  command = [sys.executable, "-c", AGREEING, str(tmp_path / "shared"), str(tmp_path / "own")]
  with running([command] * 2, tmp_path / "logs", [job | {"SLURM_PROCID": str(i)} for i in range(2)]) as started:
    status = [process.wait() for process in started]
  texts = [(tmp_path / "logs" / f"{i}.log").read_text() for i in range(2)]
  assert status == [0, 0], texts
  results = [json.loads(re.search("^RESULTS (.*)$", text, re.MULTILINE)[1]) for text in texts]
  for me, mine in enumerate(results):
    assert mine["count"] == 2 and not mine["backend"]
    assert mine["exchanged"] == {"0": {"from": 0}, "1": {"from": 1}}
    assert mine["first alone"] == {"0": "hello"}
    assert mine["differing"] == [[], ["b", "d"]][me]
    assert mine["none fails"] == "went on"
    assert mine["0 fails"] == ["broken", me == 1]
    assert mine["1 fails"] == [["process 1: broken", False], ["broken", False]][me]
    assert mine["each fails"] == [f"broken {me}", False]
    assert mine["all fail alike"] == ["alike", me == 1]
    assert mine["own"] == [False, ["file"]]
    assert mine["turn fails"] == "no text"
  assert [mine["shared"][0] for mine in results] == [False, True]
