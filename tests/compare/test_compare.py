"""Comparing strategies: requests, batches, minima, shard maps; the command itself, and what it refuses."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.support.launching import ROOT, environment, tiny, write_experiment
from tfm_jax.compare import __main__ as command
from tfm_jax.compare import compare as comparing
from tfm_jax.compare.compiled.minimum import minimum_bytes
from tfm_jax.compare.compiled.result import result_of
from tfm_jax.compare.compiled.shard_map import shard_map_of
from tfm_jax.compare.measure import COMPARED, measure_reference
from tfm_jax.compare.program import build_program, random_batch, vocabulary_size, with_strategy
from tfm_jax.compare.results import COMPILER_CRASH, REFUSED
from tfm_jax.compare.worker import WorkerCrash, run_worker
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import ROWS, along_row
from tfm_jax.runtime import command as commands
from tfm_jax.sharding.strategy import STRATEGIES, ShardingConfig
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer
from tfm_jax.training.compiled.memory import bytes_per_device
from tfm_jax.training.config import to_dict
from tfm_jax.training.keys.help import config_keys


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
  return write_experiment(tmp_path_factory.mktemp("compare") / "tiny")


def programs(experiment, strategy, family="gpt", **overrides):
  """The program of the tiny model under a strategy on eight devices."""
  config = with_strategy(tiny(experiment, family, **overrides), strategy)
  return build_program(config, jax.devices())


# --- names of strategies


def test_strategies_are_written_as_a_name_and_sizes(experiment):
  config = tiny(experiment, sharding__strategy="fsdp_tp", sharding__model=2)
  of = lambda name: with_strategy(config, name).sharding
  assert of("fsdp_tp") == ShardingConfig("fsdp_tp", model=2)  # the config's own sizes
  assert of("tp") == ShardingConfig("tp")  # no other strategy has them
  assert of("fsdp_tp:data=4") == ShardingConfig("fsdp_tp", data=4)
  assert of("hsdp:replica=2:data=4") == ShardingConfig("hsdp", replica=2, data=4)
  assert dataclasses.replace(with_strategy(config, "tp:model=2"), sharding=config.sharding) == config


@pytest.mark.parametrize("name", ["tp:model", "tp:model=", "tp:model=x", "tp:model=-2", "tp:heads=2", "tp:", "tp=2:4"])
def test_text_that_is_no_size_is_refused(experiment, name):
  with pytest.raises(UserError, match="is not NAME or NAME:AXIS=SIZE"):
    with_strategy(tiny(experiment), name)


# --- vocabularies


@pytest.mark.parametrize(
  ("tokenizer", "size"),
  [
    ({"kind": "sentencepiece", "vocab_size": 3000}, 3000),
    ({"kind": "byte", "vocab_size": 30_522}, 261),  # the recipe's size is that of another tokenizer
    ({"kind": "byte", "vocab_size": 0, "sentinels": 100}, 361),
    ({"kind": "char", "vocab_size": 30_522}, 100),
  ],
)
def test_the_vocabulary_has_the_size_that_training_would_have(experiment, tokenizer, size):
  config = tiny(experiment, **{f"tokenizer__{key}": value for key, value in tokenizer.items()})
  assert vocabulary_size(config) == size


def test_a_tokenizer_at_a_path_has_its_own_size(experiment, tmp_path):
  train_tokenizer(TokenizerConfig(kind="char"), ["abc"]).save(tmp_path / "saved")
  config = tiny(experiment, tokenizer__path=str(tmp_path / "saved"), tokenizer__kind="", tokenizer__vocab_size=30_522)
  assert vocabulary_size(config) == 5 + 3


def test_a_vocabulary_without_a_size_is_refused(experiment):
  with pytest.raises(UserError, match=r"tokenizer\.vocab_size=0: compare reads no corpus"):
    vocabulary_size(tiny(experiment, tokenizer__kind="sentencepiece", tokenizer__vocab_size=0))


# --- batches


@pytest.mark.parametrize("family", ["bert", "gpt", "t5", "transformer"])
def test_random_batches_have_the_declared_shapes_and_lie_in_the_vocabulary(experiment, family):
  program = programs(experiment, "dp", family)
  batch = random_batch(program.fields, 8, 3)
  assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
    name: ((8, *field.shape), field.dtype) for name, field in program.fields.items()
  }
  ids = [x for name, x in batch.items() if name.endswith(("inputs", "targets"))]
  assert len(ids) >= 2
  for x in ids:
    assert x.min() >= 0 and x.max() < program.model.vocab_size and len(np.unique(x)) > 10
  for name, x in batch.items():
    if name.endswith(("weights", "segment_ids")):
      assert (x == 1).all()
    elif name == "mlm_positions":
      assert (np.diff(x, axis=1) > 0).all() and x.max() < 16
    elif name.endswith("positions"):
      assert (x == np.arange(x.shape[1])).all()


@settings(max_examples=30)
@given(some.integers(0, 50), some.integers(0, 50), some.integers(1, 40), some.integers(11, 300))
def test_rows_of_different_steps_are_different_rows(first, second, rows, vocabulary):
  fields = {"inputs": along_row(6, "ids", vocabulary), "weights": along_row(6, "weights"), "rows": ROWS}
  one, other = (random_batch(fields, rows, step) for step in (first, second))
  assert len(np.unique(one["rows"])) == rows
  if first == second:
    jax.tree.map(np.testing.assert_array_equal, one, other)
  else:
    assert not set(one["rows"].tolist()) & set(other["rows"].tolist())


def test_batches_are_the_same_on_every_mesh(experiment):
  batches = [random_batch(programs(experiment, name).fields, 8, 1) for name in ("dp", "fsdp_tp")]
  config = tiny(experiment)
  batches.append(random_batch(build_program(with_strategy(config, "dp"), jax.devices()[:1]).fields, 8, 1))
  for other in batches[1:]:
    jax.tree.map(np.testing.assert_array_equal, batches[0], other)
  assert not np.array_equal(batches[0]["inputs"], random_batch(programs(experiment, "dp").fields, 8, 2)["inputs"])


@pytest.mark.slow
def test_the_reference_is_one_device_whatever_mesh_the_config_has(experiment):
  reference = measure_reference(tiny(experiment, sharding__strategy="dp", sharding__data=8, train__batch_size=8))
  assert all(len(reference[name]) == COMPARED for name in ("losses", "grad_norms"))


# --- the least that must be sent

# Two blocks of embed 32, 4 heads of 8, mlp 64, RMSNorm, no biases; 261 ids padded to 384, tied; float32.
PLAIN = {"model__norm": "rms", "model__bias": "none", "model__positions": "rotary", "train__batch_size": 8}
BLOCKS = 2 * (4 * 32 * 32 + 2 * 32 * 64) * 4
TABLE = 384 * 32 * 4
NORMS = (2 * 2 * 32 + 32) * 4
ROUTED = 2 * (4 * 32 * 32 + 32 * 8) * 4  # attention and router, without the experts
SENT = 8 * 5 * 32 * 4  # of the one row of a device: 5 places of each of 8 experts, for 16 tokens with 2 experts each
STREAM = 4 * 16 * 32 * 4  # half of the batch's rows, 16 tokens


@pytest.mark.parametrize(
  ("strategy", "changes", "expected"),
  [
    ("dp", {}, {"data": 2 * 7 / 8 * (BLOCKS + TABLE + NORMS)}),
    ("fsdp", {}, {"data": 7 / 8 * (3 * BLOCKS + 2 * TABLE + 2 * NORMS)}),
    ("tp", {}, {"data": 2 / 2 * ((BLOCKS + TABLE) / 4 + NORMS), "model": 2 * 3 / 4 * (2 * 4 + 2) * STREAM}),
    (
      "tp",
      {"model__remat": "full"},
      {"data": 2 / 2 * ((BLOCKS + TABLE) / 4 + NORMS), "model": 2 * 3 / 4 * (2 * 5 + 2) * STREAM},
    ),
    (
      "fsdp_tp",
      {},
      {"data": 1 / 2 * ((3 * BLOCKS + 2 * TABLE) / 4 + 2 * NORMS), "model": 2 * 3 / 4 * (2 * 4 + 2) * STREAM},
    ),
    (
      "hsdp",
      {},
      {
        "data": 3 / 4 * (3 * BLOCKS + 2 * TABLE),
        "replica": 2 / 2 * (BLOCKS + TABLE) / 4,
        "replica,data": 2 * 7 / 8 * NORMS,
      },
    ),
    ("fsdp_ep", {"experts__count": 8}, {"data": 7 / 8 * (3 * ROUTED + 2 * TABLE + 2 * NORMS + 2 * 4 * SENT)}),
  ],
)
def test_minimum_bytes_by_hand(experiment, strategy, changes, expected):
  minimum = minimum_bytes(programs(experiment, strategy, **PLAIN, **changes), 1)
  assert minimum == pytest.approx(expected)


def test_each_microbatch_gathers_and_scatters_the_blocks_anew(experiment):
  program = programs(experiment, "fsdp", **PLAIN)
  more = minimum_bytes(program, 2)["data"] - minimum_bytes(program, 1)["data"]
  assert more == pytest.approx(7 / 8 * 3 * BLOCKS)


# --- where parameters lie


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_shard_map_covers_every_element_as_often_as_it_is_replicated(experiment, strategy):
  program = programs(experiment, strategy)
  for path, leaf in jax.tree.leaves_with_path(program.model.shapes()):
    shard_map = shard_map_of(program, "/".join(key.key for key in path))
    assert [p.device for p in shard_map.pieces] == list(range(8)) and shard_map.shape == leaf.shape
    covered = np.zeros(leaf.shape, int)
    for piece in shard_map.pieces:
      covered[tuple(slice(*ends) for ends in zip(piece.start, piece.stop, strict=True))] += 1
      assert piece.coordinates.keys() == program.model.placement.mesh.shape.keys()
    split = math.prod(program.model.placement.mesh.shape[a] for over in shard_map.spec for a in over.split(",") if a)
    assert (covered == 8 / split).all()
    coordinates = {tuple(p.coordinates.values()) for p in shard_map.pieces}
    assert len(coordinates) == 8


def test_the_shard_map_is_of_the_largest_parameter_of_the_blocks_unless_one_is_named(experiment):
  program = programs(experiment, "fsdp_tp")
  largest = shard_map_of(program, "")
  assert (largest.parameter, largest.axes) == ("blocks/mlp/wi", ("layers", "embed", "mlp"))
  assert largest.spec == ("", "data", "model")
  with pytest.raises(UserError, match=r"blocks/attn/w: .*blocks/attn/wq"):
    shard_map_of(program, "blocks/attn/w")


@pytest.mark.slow
def test_the_parts_of_memory_add_up_to_the_peak(experiment):
  program = programs(experiment, "fsdp")
  result = result_of(program, "fsdp", program.compile(1), 1, 0.5, "")
  m = result.memory_bytes
  assert m.parameters + m.optimizer + m.gradients + m.activations + m.temporaries == m.peak
  assert min(dataclasses.asdict(m).values()) >= 0
  assert m.parameters == bytes_per_device(program.state.params) and m.parameters == m.gradients
  assert 2 * m.parameters <= m.optimizer <= 2.1 * m.parameters + 64  # AdamW's two moments


# --- the command

STRATEGY_LIST = ("dp", "fsdp_tp", "tp:model=3")


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


def test_a_missing_tpu_compiler_is_named(experiment, tmp_path, run, monkeypatch):
  find = comparing.importlib.util.find_spec
  monkeypatch.setattr(comparing.importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
  status, message = run(f"--config={experiment}:gpt", "--strategies=dp", f"--out={tmp_path}", "--topology=v5e:4x4")
  assert status == 2 and "pip install -e '.[tpu]'" in message and message.count("\n") == 1


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
