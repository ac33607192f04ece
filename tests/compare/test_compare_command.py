"""The command that compares strategies: its files and its table, its workers, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launching import ROOT, environment, tiny
from tfm_jax.compare import __main__ as command
from tfm_jax.compare import compare as comparing
from tfm_jax.compare.forecast import topology
from tfm_jax.compare.results import COMPILER_CRASH, REFUSED
from tfm_jax.compare.worker import WorkerCrash, run_worker
from tfm_jax.runtime import command as commands
from tfm_jax.training.config import to_dict
from tfm_jax.training.keys.help import config_keys

STRATEGY_LIST = ("dp", "fsdp_tp", "tp:model=3")
TABLE = 384 * 32 * 4  # bytes of the embedding, 261 rows padded to 384


@pytest.fixture(scope="module")
def report(experiment, tmp_path_factory):
  """(the finished command, its comparison.json, its folder)."""
  out = tmp_path_factory.mktemp("compared") / "out"
  arguments = [f"--config={experiment}:gpt", f"--strategies={','.join(STRATEGY_LIST)}", "--devices=8", "--steps=2"]
  done = subprocess.run(
    [sys.executable, "-m", "tfm_jax.compare", *arguments, f"--out={out}", "--config.model.num_kv_heads=4"],
    cwd=ROOT,
    env=environment(8),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return done, json.loads((out / "comparison.json").read_text()), out


def test_the_command_writes_its_files_and_prints_a_table(report):
  done, comparison, out = report
  assert sorted(p.name for p in out.iterdir()) == ["comparison.csv", "comparison.json", "report.html"]
  assert all((out / name).stat().st_size > 500 for name in ("comparison.csv", "comparison.json", "report.html"))
  assert all(f"\n{name} " in done.stdout for name in STRATEGY_LIST) and "Traceback" not in done.stderr
  assert [result["strategy"] for result in comparison["strategies"]] == list(STRATEGY_LIST)
  assert (comparison["kind"], comparison["batch_size"], comparison["tokens_per_step"]) == ("measured", 8, 8 * 16)
  assert comparison["parameters"] == 2 * (4 * 32 * 32 + 2 * 32 * 64 + 9 * 32 + 64) + (261 + 1024) * 32 + 2 * 32


def test_every_strategy_agrees_with_one_device_in_float32(report):
  for row in report[1]["strategies"][:2]:
    assert row["status"] == "ok" and row["reason"] is None
    assert row["loss_difference"] < 1e-5 and row["grad_norm_difference"] < 1e-4


def test_measured_rows_are_consistent(report):
  for row, mesh in zip(report[1]["strategies"][:2], ({"data": 8}, {"data": 2, "model": 4}), strict=True):
    assert {axis: n for axis, n in row["mesh"].items() if n > 1} == mesh
    memory = dict(row["memory_bytes"])
    assert memory.pop("peak") == sum(memory.values())
    low, high = row["step_seconds_range"]
    assert 0 < low <= row["step_seconds"] <= high
    assert row["tokens_per_second_per_device"] == pytest.approx(8 * 16 / 8 / row["step_seconds"])
    assert row["flops"] > 0 and row["forecast_step_seconds"] is None and row["layout"]["pieces"]
  kinds = lambda row: {(c["kind"], c["axes"]) for c in row["collectives"]}
  dp, fsdp_tp, _ = report[1]["strategies"]
  assert kinds(dp) == {("all-reduce", "data")}
  # The gradients and a few numbers; XLA:CPU reduces those of both uses of a tied table.
  gradients = 2 * 7 / 8 * (dp["memory_bytes"]["parameters"] + TABLE)
  assert sum(c["bytes"] for c in dp["collectives"]) == pytest.approx(gradients, rel=0.001)
  assert {("all-gather", "data"), ("all-reduce", "model")} <= kinds(fsdp_tp)
  assert fsdp_tp["memory_bytes"]["parameters"] < dp["memory_bytes"]["parameters"] / 2


def test_a_strategy_that_the_model_cannot_take_is_refused(report):
  row = report[1]["strategies"][2]
  assert (row["status"], row["memory_bytes"], row["step_seconds"]) == ("refused", None, None)
  assert "sharding.model=3" in row["reason"] and "\n" not in row["reason"]


# --- mistakes


@pytest.fixture
def run(monkeypatch, capsys):
  """Runs the command in this process, without workers: (exit status, stderr)."""
  monkeypatch.setattr(commands, "set_up_logging", lambda: None)
  monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("a worker was started"))

  def with_arguments(*arguments):
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    flags = ("config", "strategies", "devices", "topology", "steps", "parameter", "out")
    status = commands.run_command(command.main, command.__doc__, flags, keys=config_keys)
    return status, capsys.readouterr().err

  return with_arguments


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"strategies": "dp,zero"}, "'zero'"),
    ({"strategies": ","}, "--strategies="),
    ({"strategies": None}, "--strategies"),
    ({"topology": "v5e"}, "--topology=v5e is unknown"),
    ({"topology": "v9:4x4"}, "v5e, v5p"),
    ({"topology": "h100:2x4"}, "--topology=h100:2x4 is unknown"),
    ({"topology": "h100:16"}, "NVLink joins at most 8 h100 GPUs"),
    ({"topology": "0*v5e:4x4"}, "--topology=0*v5e:4x4"),
    ({"topology": "v5e:4x4", "devices": "8"}, "--devices and --topology exclude each other"),
    ({"steps": "x"}, "--steps=x"),
    ({"steps": "0"}, "--steps=0"),
    ({"steps": "-1"}, "--steps=-1"),
    ({"devices": "many"}, "--devices=many"),
    ({"out": None}, "--out"),
    ({"out": "THE CONFIG"}, "is a file, not a folder"),
    ({"config": None}, "--config"),
    ({"config": "nowhere.py"}, "nowhere.py"),
    ({"config.train.stepz": "1"}, "config.train.steps"),
    ({"config.model.num_heads": "5"}, "model.num_heads=5"),
    ({"step": "1"}, "--steps"),
  ],
)
def test_mistakes_have_a_message_of_one_line(experiment, tmp_path, run, changes, named):
  flags = {"config": f"{experiment}:gpt", "strategies": "dp", "out": str(tmp_path / "out")} | changes
  flags = {name: str(experiment) if value == "THE CONFIG" else value for name, value in flags.items()}
  status, message = run(*(f"--{name}={value}" for name, value in flags.items() if value is not None))
  assert status == 2 and message.startswith("error: ") and message.count("\n") == 1 and named in message
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("package", "devices"), [("libtpu", "v5e:4x4"), ("jax_cuda13_plugin", "h100:8")])
def test_a_missing_compiler_is_named(experiment, tmp_path, run, monkeypatch, package, devices):
  find = topology.importlib.util.find_spec
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None if name == package else find(name))
  status, message = run(f"--config={experiment}:gpt", "--strategies=dp", f"--out={tmp_path}", f"--topology={devices}")
  assert status == 2 and package in message and "pip install -e '.[forecast]'" in message and message.count("\n") == 1


# --- progress


def test_a_redirected_log_has_one_line_per_strategy(experiment, workers, caplog, capsys):
  """And no progress bar: stderr is no terminal here."""
  with caplog.at_level("INFO", "tfm_jax.compare"):
    comparing.compare(tiny(experiment), ["dp", "tp"])
  lines = ["measuring one device in float32 (1 of 3)", "measuring dp (2 of 3)", "measuring tp (3 of 3)"]
  assert caplog.messages == lines and "%" not in capsys.readouterr().err


# --- workers that die


def test_a_worker_that_fails_raises_with_the_reason():
  with pytest.raises(WorkerCrash, match="KeyError") as crash:
    run_worker({"task": "no such thing"}, {})
  assert crash.value.reason == "exit status 1: KeyError: 'config'"


@pytest.fixture
def workers(monkeypatch):
  """Replaces the workers: a CPU with eight devices, on which dp is measured.

  Returns a list of (request, environment), which fills, and `deaths`: strategy or task -> Python code to run instead.
  """
  run, requests, deaths = subprocess.run, [], {}
  answers = {
    "probe": {"devices": 8, "platform": "cpu", "kind": "cpu"},
    "describe": {"tokens": 128, "parameters": 1},
    "reference": {"losses": [2.0, 1.0, 1.0], "grad_norms": [1.0, 1.0, 4.0]},
  }
  result = {"strategy": "dp", "mesh": {"data": 8}, "status": "ok"}
  measured = {"result": result, "losses": [2.4, 1.1, 1.0], "grad_norms": [1.0, 1.2, 2.0]}

  def worker(command, env, **kwargs):
    request, answer = (Path(name) for name in command[-2:])
    requests.append((json.loads(request.read_text()), env))
    program = deaths.get(requests[-1][0].get("strategy") or requests[-1][0]["task"])
    if program:
      return run([sys.executable, "-c", program], env=env, **kwargs)
    answer.write_text(json.dumps(answers.get(requests[-1][0]["task"], measured)))
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setattr(subprocess, "run", worker)
  return requests, deaths


KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
CHECKED = "import sys; sys.exit('noise\\nRET_CHECK failure: an Error of XLA\\n')"


@pytest.mark.parametrize(
  ("program", "reason"), [(KILLED, "killed by SIGKILL"), (CHECKED, "exit status 1: RET_CHECK failure: an Error of XLA")]
)
def test_a_worker_that_dies_is_a_result_and_not_the_end(experiment, workers, program, reason):
  """The other strategies still have their results."""
  workers[1]["fsdp"] = program
  dead, alive = comparing.compare(tiny(experiment), ["fsdp", "dp"], progress=False).strategies
  assert (dead.strategy, dead.status) == ("fsdp", COMPILER_CRASH) and reason in dead.reason and "\n" not in dead.reason
  assert alive.status == "ok"
  assert alive.loss_difference == pytest.approx(0.2) and alive.grad_norm_difference == pytest.approx(0.5)


def test_without_the_single_device_there_are_no_differences(experiment, workers):
  workers[1]["reference"] = KILLED
  comparison = comparing.compare(tiny(experiment), ["dp"], progress=False)
  assert comparison.strategies[0].status == "ok" and comparison.strategies[0].loss_difference is None
  assert any("No comparison with one device" in note for note in comparison.notes)


def test_devices_that_are_missing_are_emulated(experiment, workers, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=nowhere")
  comparison = comparing.compare(tiny(experiment), ["dp"], devices=16, progress=False)
  request, env = workers[0][-1]
  assert (request["devices"], env["JAX_PLATFORMS"]) == (16, "cpu")
  assert env["XLA_FLAGS"].split() == ["--xla_dump_to=nowhere", "--xla_force_host_platform_device_count=16"]
  assert comparison.devices == "16 x cpu (emulated)" and comparing.EMULATED in comparison.notes


def test_a_batch_that_does_not_divide_is_refused(experiment):
  request = {"task": "measure", "strategy": "dp", "parameter": "", "steps": 1, "devices": 8}
  config = to_dict(tiny(experiment, train__batch_size=6))
  result = run_worker(request | {"config": config}, environment(8))["result"]
  assert result["status"] == REFUSED and "train.batch_size=6" in result["reason"]
