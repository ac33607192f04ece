"""Runs of two processes with four devices each: what one process with eight makes, made once, and ended together."""

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
import pytest
from launching import ROOT, environment, exact_rows, free_port, quick_fit, rows, tiny, write_experiment

from tfm_jax.data.prepare import prepare
from tfm_jax.training import interruption, memory
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.config import resolve

# Runs train.py and notes, a line of JSON each, the rows of training that are made, and what is written in a folder. It
# takes a file for its notes, that folder, and what comes with the batch of step 3: "fail", "SIGTERM" or nothing.
OBSERVED = """
import json, os, runpy, signal, sys
sys.path.insert(0, os.getcwd())
from tfm_jax.data.dataset import Dataset
from tfm_jax.errors import UserError
from tfm_jax.training import agreement, loop

notes, folder, comes = open(sys.argv[1], "w"), sys.argv[2], sys.argv[3]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.utime")

def hook(name, arguments):
  if name in CHANGES or (name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
    path = os.path.abspath(os.fsdecode(arguments[0])) if isinstance(arguments[0], (str, bytes)) else ""
    if path.startswith(folder):
      print(json.dumps({"written": os.path.relpath(path, folder)}), file=notes, flush=True)

make = Dataset.batch
def batch(self, step, rows=None):
  made = make(self, step, rows)
  if self._shuffle:
    print(json.dumps({"step": step, "asked": rows.tolist(), "made": made["rows"].tolist()}), file=notes, flush=True)
    if step == 3 and comes == "SIGTERM":
      os.kill(os.getpid(), signal.SIGTERM)
    if step == 3 and comes == "fail":
      raise UserError("the disk is gone")
  return made

Dataset.batch = batch
loop.SHORTLY = 0.5
sys.addaudithook(hook)
sys.argv = ["train.py", *sys.argv[4:]]
runpy.run_path("train.py", run_name="__main__")
"""

# Two processes that Slurm seems to have started: what they agree on, without devices.
AGREEING = """
import json, os, sys
from pathlib import Path
from tfm_jax.errors import UserError
from tfm_jax.training.agreement import FailedTogether, differing, exchange, in_turn, together
from tfm_jax.training.agreement import process_count, process_index
from tfm_jax.training.processes import join

shared, own = Path(sys.argv[1]), Path(sys.argv[2])
join()
me, found = process_index(), {"count": process_count()}
found["exchanged"] = exchange({"from": me})
found["first alone"] = exchange("hello" if me == 0 else None)
found["differing"] = differing({"a": 1, "b": [me], "c": (2,)} | ({"d": 0} if me else {}))

def failing(who, said="broken"):
  try:
    with together():
      if me in who:
        raise UserError(f"{said} {me}" if len(who) > 1 and said == "broken" else said)
      exchange()  # hears of it, wherever the others are
    return "went on"
  except FailedTogether as error:
    return [str(error), error.silent]

found["none fails"], found["0 fails"], found["1 fails"] = failing(()), failing((0,)), failing((1,))
found["each fails"], found["all fail alike"] = failing((0, 1)), failing((0, 1), "alike")

def turn(folder):
  with in_turn(folder):
    file, made = folder / "made", (folder / "made").exists()
    file.write_text("by a process")
  return ["found" if made else "made", sorted(path.name for path in folder.iterdir())]

found["shared"], found["own"] = turn(shared), turn(own / str(me))
try:
  with in_turn(own / str(me)):
    if me == 0:
      raise UserError("no text")
  found["turn fails"] = "went on"
except UserError as error:
  found["turn fails"] = str(error)
import jax
from jax._src import xla_bridge
found["backend"] = xla_bridge.backends_are_initialized()
print("FOUND", json.dumps(found))
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
  commands = [[sys.executable, *given, *address, f"--process={i}"] for i, given in enumerate(arguments)]
  with running(commands, logs, extra) as started:
    status = [process.wait() for process in started]
  return [[*(logs / f"{i}.log").read_text().splitlines(), f"status {code}"] for i, code in enumerate(status)]


def observed(folder: Path, flags: list[str], comes: tuple[str, str] = ("", "")) -> list[list[str]]:
  """`two` runs of train.py under observation; the notes are in FOLDER/notes0 and FOLDER/notes1."""
  watched = str(folder / "run")
  given = [["-c", OBSERVED, str(folder / f"notes{i}"), watched, comes[i], *flags] for i in range(2)]
  return two(given, folder / "logs")


def notes(folder: Path, process: int) -> list[dict[str, Any]]:
  """What a process was seen to do."""
  return [json.loads(line) for line in (folder / f"notes{process}").read_text().splitlines()]


def errors(log: list[str]) -> list[str]:
  """The lines that tell of a mistake."""
  assert not any("Traceback" in line for line in log), log
  return [line for line in log if line.startswith("error: ")]


def same_rows(workdir: Path, reference: Path) -> None:
  """Every figure of every row is that of the other run to 1e-6: sums over processes are added in another order."""
  found, wanted = exact_rows(workdir), exact_rows(reference)
  assert list(found) == list(wanted)
  for key, row in wanted.items():
    assert found[key] == pytest.approx(row, rel=1e-6), key


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
  return write_experiment(tmp_path_factory.mktemp("processes") / "experiment")


@pytest.fixture(scope="module")
def pair(experiment, tmp_path_factory):
  """(folder, log of process 0, of process 1) of an observed run of two processes under fsdp."""
  folder = tmp_path_factory.mktemp("pair")
  flags = [f"--config={experiment}", f"--workdir={folder / 'run'}", "--config.sharding.strategy=fsdp"]
  return folder, *observed(folder, flags)


# What they make.


def test_two_processes_train_as_one_does(experiment, pair, tmp_path):
  folder, *logs = pair
  assert [log[-1] for log in logs] == ["status 0", "status 0"], logs
  quick_fit(tiny(experiment, sharding__strategy="fsdp"), tmp_path / "run")
  same_rows(folder / "run", tmp_path / "run")
  (start,) = json.loads((folder / "run" / "run.json").read_text())
  assert start["devices"] == {"count": 8, "kind": "cpu", "processes": 2}


def test_each_process_makes_only_the_rows_of_its_devices(experiment, pair):
  config = resolve(tiny(experiment))
  data = prepare(config.data, config.tokenizer, config.objective, config.seed).train(config.train.batch_size)
  made = [{note["step"]: note for note in notes(pair[0], i) if "step" in note} for i in range(2)]
  for step in range(config.train.steps):
    assert [made[i][step]["asked"] for i in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert made[0][step]["made"] + made[1][step]["made"] == data.batch(step)["rows"].tolist()


def test_process_0_alone_writes(pair):
  folder = pair[0]
  written = [{note["written"] for note in notes(folder, i) if "written" in note} for i in range(2)]
  assert {"lock", "metrics.jsonl", "tokenizer"} <= written[0]
  assert any(path.startswith("config.json") for path in written[0])
  assert all(path.split("/")[0] == "checkpoints" for path in written[1]), written[1]
  assert (folder / "run" / "lock").read_text() == ""


def test_process_0_alone_tells(pair):
  _, first, second = pair
  for word in ("2 processes", "mesh:", "train step 12/12", "checkpoint 12 is complete", "a sample"):
    assert any(word in line for line in first) and not any(word in line for line in second), word
  told = [line for line in second if re.match(r"\d\d:\d\d:\d\d ", line)]
  assert all(line[9:].startswith("process 1: ") for line in told), told


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
  same_rows(tmp_path / "run", tmp_path / "whole")
  starts = json.loads((tmp_path / "run" / "run.json").read_text())
  assert [(start["step"], start["devices"]["processes"]) for start in starts] == [(0, 1), (4, 2), (8, 1)]


# How they end.


def test_a_signal_to_one_process_stops_both_after_the_same_step(experiment, tmp_path):
  flags = [f"--config={experiment}", f"--workdir={tmp_path / 'run'}", "--config.data.prefetch=0"]
  flags += ["--config.train.steps=1000000", "--config.eval.every=0", "--config.checkpoint.every=0"]
  first, second = observed(tmp_path, flags, comes=("", "SIGTERM"))
  assert [first[-1], second[-1]] == [f"status {128 + signal.SIGTERM}"] * 2, (first, second)
  said = re.fullmatch(r"SIGTERM after step (\d+): .*", first[-2])
  assert said, first
  assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [int(said[1])]
  assert rows(tmp_path / "run")[-1]["step"] == int(said[1])
  assert not any("after step" in line for line in second)


def test_sigint_is_passed_on_as_sigterm(monkeypatch):
  """JAX spreads SIGTERM only."""
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


def test_a_mistake_in_the_midst_of_training_ends_both(experiment, tmp_path):
  flags = [f"--config={experiment}", f"--workdir={tmp_path / 'run'}", "--config.data.prefetch=0"]
  first, second = observed(tmp_path, flags, comes=("", "fail"))
  assert [first[-1], second[-1]] == ["status 2", "status 2"], (first, second)
  assert errors(first) == [f"error: process 1 on {socket.gethostname()}: the disk is gone"]
  assert errors(second) == ["error: the disk is gone"]


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--config.seed=1", "not as on process 0: seed;"),
    ("--config.train.steps=many", "train.steps"),
    ("--workdir=ELSEWHERE", "is not the work directory"),
  ],
)
def test_a_mistake_of_one_process_ends_both_and_leaves_nothing(flag, said, experiment, tmp_path):
  flag = flag.replace("ELSEWHERE", str(tmp_path / "elsewhere"))
  workdir = [f"--workdir={tmp_path / 'run'}"]
  others = [] if flag.startswith("--workdir") else workdir
  given = [["train.py", f"--config={experiment}", *more] for more in (workdir, [*others, flag])]
  first, second = two(given, tmp_path / "logs")
  assert [first[-1], second[-1]] == ["status 2", "status 2"], (first, second)
  (line,) = errors(first)
  assert line.startswith("error: process 1: ") and said in line
  assert errors(second) == [line.replace("process 1: ", "", 1)]
  assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_other_text_on_another_host_is_refused(experiment, tmp_path):
  """The second process has its own cache, as on a host of its own, and, under the same name, other text."""
  given = []
  for i in range(2):
    home = tmp_path / str(i)
    home.mkdir()
    (home / "text.txt").write_text(f"some text of process {i}\n\n" * 200)
    given.append(home)
  code = "import os, runpy, sys; sys.path.insert(0, os.getcwd()); os.chdir(sys.argv.pop(1)); "
  code += f"sys.argv[0] = 'train.py'; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
  flags = [f"--config={experiment}", f"--workdir={tmp_path / 'run'}", "--config.data.path=text.txt"]
  extra = [{"TFM_CACHE_DIR": str(home / "cache")} for home in given]
  first, second = two([["-c", code, str(home), *flags] for home in given], tmp_path / "logs", extra)
  assert [first[-1], second[-1]] == ["status 2", "status 2"], (first, second)
  assert errors(first)[0].startswith("error: process 1: not as on process 0: the data;")
  assert all((home / "cache" / "tokens").is_dir() for home in given)
  assert not (tmp_path / "run").exists()


def test_the_host_with_least_memory_decides(monkeypatch):
  """On CPUs the processes of a host share its memory."""
  told = {1: ("one", 4000), 2: ("two", 1000), 3: ("one", 3000)}
  monkeypatch.setattr(memory, "device_limit", lambda device: 5000)
  monkeypatch.setattr(memory.socket, "gethostname", lambda: "one")
  monkeypatch.setattr(memory, "exchange", lambda mine: {0: mine, **told})
  assert memory._limit_everywhere(jax.devices()[0]) == 1000
  told[2] = ("two", 9000)
  assert memory._limit_everywhere(jax.devices()[0]) == 1000  # a third of 3000


def test_what_they_agree_on(tmp_path):
  job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
  job |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "JAX_COORDINATOR_PORT": str(free_port())}
  command = [sys.executable, "-c", AGREEING, str(tmp_path / "shared"), str(tmp_path / "own")]
  with running([command] * 2, tmp_path / "logs", [job | {"SLURM_PROCID": str(i)} for i in range(2)]) as started:
    status = [process.wait() for process in started]
  texts = [(tmp_path / "logs" / f"{i}.log").read_text() for i in range(2)]
  assert status == [0, 0], texts
  found = [json.loads(re.search("^FOUND (.*)$", text, re.MULTILINE)[1]) for text in texts]
  for me, mine in enumerate(found):
    assert mine["count"] == 2 and not mine["backend"]
    assert mine["exchanged"] == {"0": {"from": 0}, "1": {"from": 1}}
    assert mine["first alone"] == {"0": "hello"}
    assert mine["differing"] == [[], ["b", "d"]][me]
    assert mine["none fails"] == "went on"
    assert mine["0 fails"] == ["broken", me == 1]
    assert mine["1 fails"] == [["process 1: broken", False], ["broken", False]][me]
    assert mine["each fails"] == [f"broken {me}", False]
    assert mine["all fail alike"] == ["alike", me == 1]
    assert mine["own"] == ["made", ["made"]]
    assert mine["turn fails"] == "no text"
  assert [mine["shared"][0] for mine in found] == ["made", "found"]
