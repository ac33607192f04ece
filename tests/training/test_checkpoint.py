"""Checkpoints: exact under any sharding, atomic under kill -9; damage is never restored; errors name the culprit."""

import dataclasses
import shutil
import signal
import subprocess
import sys
from concurrent.futures import Future
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.tiny import make_batch, make_model, make_program, placement
from tfm_jax.errors import UserError
from tfm_jax.training import checkpoint
from tfm_jax.training.checkpoint import CheckpointConfig, Checkpoints, main


class Counters(NamedTuple):
  step: jax.Array
  seed: jax.Array


def make_params():
  """A tree with the kinds of leaves that a model has: stacked matrices, a scalar, bfloat16."""
  draw = jax.random.split(jax.random.key(0), 3)
  return {
    "blocks": {
      "attn": {"wq": jax.random.normal(draw[0], (2, 8, 4, 2))},
      "mlp": jax.random.normal(draw[1], (2, 8, 16)),
    },
    "embed": jax.random.normal(draw[2], (128, 8)).astype(jnp.bfloat16),
    "scale": jnp.float32(0.1),
  }


def make_mesh(data, model) -> Mesh:
  return jax.make_mesh(
    (data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: data * model]
  )


def abstract_on(tree, mesh, spec):
  """The shapes of the tree with shardings; `spec` maps the length of an axis to a mesh axis."""

  def one(leaf):
    axes = [spec.get(size) for size in leaf.shape]
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P(*axes)))

  return jax.tree.map(one, tree)


def bits(tree):
  """Leaves as raw bytes with dtype and shape: equality that NaN and -0.0 cannot fool."""

  def one(leaf):
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(leaf).tobytes(), str(leaf.dtype), leaf.shape

  return jax.tree.map(one, tree)


def saved(directory, steps=(1,), config=None):
  """Complete checkpoints of `steps`, each with different values."""
  checkpoints = Checkpoints(directory, config)
  for step in steps:
    checkpoints.save(step, {"params": {"w": jnp.full((8, 8), step, jnp.float32)}})
    checkpoints.wait()
  return checkpoints


WANTED = {"params": {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32)}}


def test_restores_exactly_under_every_other_sharding(tmp_path):
  params = make_params()
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(1.0, 0.0, 10)))
  trees = {
    "params": params,
    "opt_state": optimizer.init(params),
    "factored": optax.adafactor(1e-3, min_dim_size_to_factor=4).init(params),
    "counters": Counters(jnp.int32(7), jax.random.key(3)),
    "nothing": {"empty": jnp.zeros((0, 4)), "state": optax.EmptyState()},
  }
  eight = make_mesh(4, 2)
  shardings = jax.tree.map(lambda x: x.sharding, abstract_on(trees, eight, {8: "data", 16: "model"}))
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(7, jax.device_put(trees, shardings))
  for mesh, spec in [
    (eight, {8: "data", 16: "model"}),
    (make_mesh(1, 8), {8: "model", 128: None}),
    (make_mesh(2, 2), {128: ("data", "model"), 8: None}),
    (make_mesh(1, 1), {}),
  ]:
    expected = abstract_on(trees, mesh, spec)
    restored = Checkpoints(tmp_path / "checkpoints").restore(7, expected)
    assert jax.tree.structure(restored) == jax.tree.structure(trees)
    assert bits(restored) == bits(trees)
    for x, w in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
      assert x.sharding.is_equivalent_to(w.sharding, x.ndim)


def test_optimizer_state_moves_between_zero_and_fsdp(tmp_path):
  """And so does the average of the parameters, which is cut as optimizer state is."""

  def state_of(strategy):
    program = make_program(make_model("bert", placement(strategy, 8)), make_batch("bert"))
    train = dataclasses.replace(program.config.train, ema=0.9)
    return dataclasses.replace(program, config=dataclasses.replace(program.config, train=train)).state._asdict()

  draw = np.random.default_rng(0)
  zero, fsdp = state_of("zero1"), state_of("fsdp")
  trees = jax.tree.map(lambda x: jax.device_put(draw.normal(size=x.shape).astype(x.dtype), x.sharding), zero)
  cut = lambda leaf: leaf["blocks"]["mlp"]["wi"].sharding.shard_shape(leaf["blocks"]["mlp"]["wi"].shape)[1]
  assert cut(trees["params"]) == 32 and cut(trees["ema"]) == cut(trees["opt_state"][1][0].mu) == 4
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    moved = trees
    for step, expected in enumerate((fsdp, zero)):
      checkpoints.save(step, moved)
      checkpoints.wait()
      moved = checkpoints.restore(step, expected)
      assert bits(moved) == bits(trees)
      assert all(x.sharding == w.sharding for x, w in zip(*map(jax.tree.leaves, (moved, expected)), strict=True))


def test_parameters_alone_and_without_shardings(tmp_path):
  params = jax.device_put(make_params(), NamedSharding(make_mesh(4, 2), P()))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, {"params": params, "opt_state": {"mu": params}})
    checkpoints.wait()
    restored = checkpoints.restore(3, {"params": jax.eval_shape(lambda: params)})
  assert list(restored) == ["params"]
  assert bits(restored["params"]) == bits(params)


def test_the_saved_values_survive_donation(tmp_path):
  update = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jax.device_put(jnp.zeros((1024, 1024)), NamedSharding(make_mesh(4, 2), P("data", "model")))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"params": {"x": x}})
    for _ in range(3):
      x = update(x)
    checkpoints.wait()
    restored = checkpoints.restore(1, {"params": {"x": x}})
  assert not np.any(np.asarray(restored["params"]["x"]))


def zeros():
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), WANTED)


@pytest.mark.parametrize(
  ("expected", "named"),
  [
    ({"w": ((8, 8), jnp.float32), "bias": ((8,), jnp.float32)}, "bias"),
    ({}, "w"),
    ({"w": ((8, 4), jnp.float32)}, r"w has shape \(8, 8\), but \(8, 4\)"),
    ({"w": ((8, 8), jnp.bfloat16)}, "w has dtype float32, but bfloat16"),
  ],
)
def test_another_tree_is_refused_by_name(tmp_path, expected, named):
  checkpoints = saved(tmp_path)
  abstract = {name: jax.ShapeDtypeStruct(*form) for name, form in expected.items()}
  with pytest.raises(UserError, match=named):
    checkpoints.restore(1, {"params": abstract})


def test_a_missing_step_or_item_is_refused(tmp_path):
  checkpoints = saved(tmp_path, (1, 2))
  with pytest.raises(UserError, match=r"no checkpoint of step 3 .*1, 2"):
    checkpoints.restore(3, WANTED)
  with pytest.raises(UserError, match="ema has no w"):
    checkpoints.restore(1, {"ema": WANTED["params"]})


def test_one_flipped_bit_in_any_file_is_found(tmp_path, capsys):
  directory = tmp_path / "checkpoints"
  checkpoints = saved(directory)
  files = [path for path in sorted((directory / "1").rglob("*")) if path.is_file()]
  assert len(files) > 5
  for path in files:
    content = path.read_bytes()
    flipped = bytearray(content or b"\0")  # an empty file has no bit to flip: it gets a byte
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    for attempt in (
      checkpoints.verify,
      lambda step: Checkpoints(directory).restore(step, WANTED),
    ):
      with pytest.raises(UserError, match=r"damaged or missing; delete .*checkpoints/1 "):
        attempt(1)
    assert main(["verify", f"--workdir={tmp_path}"]) == 1
    if path.name != checkpoint.MANIFEST:
      assert str(path) in capsys.readouterr().err
    path.write_bytes(content)
  assert checkpoints.verify(1)
  files[0].unlink()
  with pytest.raises(UserError, match=files[0].name):
    checkpoints.verify(1)


def test_verify_command(tmp_path, capsys):
  assert main(["verify", f"--workdir={tmp_path}"]) == 2
  assert "no checkpoint" in capsys.readouterr().err
  checkpoints = saved(tmp_path / "checkpoints", (1, 2))
  (tmp_path / "checkpoints" / "1" / checkpoint.MANIFEST).unlink()
  assert main(["verify", f"--workdir={tmp_path}"]) == 0
  out = capsys.readouterr().out
  assert "checkpoint 1: has no manifest.sha256: not verified" in out
  assert "checkpoint 2: all right" in out
  assert not checkpoints.verify(1)
  assert np.all(checkpoints.restore(1, WANTED)["params"]["w"] == 1)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_manifest_is_what_sha256sum_reads(tmp_path):
  saved(tmp_path)
  command = ["sha256sum", "--check", "--strict", "--quiet", checkpoint.MANIFEST]
  subprocess.run(command, cwd=tmp_path / "1", check=True)


def test_a_folder_without_commit_is_no_checkpoint_and_is_swept(tmp_path):
  checkpoints = saved(tmp_path)
  (tmp_path / "7").mkdir()
  (tmp_path / "8" / "params").mkdir(parents=True)
  (tmp_path / "9.orbax-checkpoint-tmp-3").mkdir()
  (tmp_path / "notes").mkdir()
  assert checkpoints.steps() == [1]
  assert checkpoints.latest() == 1
  with pytest.raises(UserError, match="no checkpoint of step 7"):
    checkpoints.restore(7, WANTED)
  checkpoints.save(7, zeros())
  checkpoints.close()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "7", "notes"]
  assert checkpoints.steps() == [1, 7]


def test_an_empty_directory_has_no_checkpoint(tmp_path):
  checkpoints = Checkpoints(tmp_path / "none")
  assert checkpoints.steps() == []
  assert checkpoints.latest() is None


def test_retention(tmp_path):
  checkpoints = saved(tmp_path, range(1, 8), CheckpointConfig(keep=2, keep_every=3))
  assert checkpoints.steps() == [3, 6, 7]
  assert saved(tmp_path / "all", range(1, 5), CheckpointConfig(keep=0)).steps() == [1, 2, 3, 4]


def test_due():
  checkpoints = Checkpoints("unused", CheckpointConfig(every=5))
  assert [step for step in range(12) if checkpoints.due(step)] == [5, 10]
  assert not any(Checkpoints("unused", CheckpointConfig(every=0)).due(step) for step in range(12))


def test_a_removal_that_is_killed_halfway_leaves_no_checkpoint(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, (1, 2))

  def killed(_):
    raise KeyboardInterrupt

  monkeypatch.setattr(type(checkpoints.directory), "rmtree", killed)
  with pytest.raises(KeyboardInterrupt):
    checkpoint._remove(checkpoints.directory / "1")
  assert (tmp_path / "1").is_dir()
  assert checkpoints.steps() == [2]


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_that_is_not_above_the_latest_is_refused(tmp_path, step):
  checkpoints = saved(tmp_path, (2,))
  with pytest.raises(UserError, match="to go back, delete"):
    checkpoints.save(step, zeros())
  assert np.all(checkpoints.restore(2, WANTED)["params"]["w"] == 2)


def test_a_failed_save_is_raised_once_and_does_not_swallow_the_next(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path)
  failed = Future()
  failed.set_exception(RuntimeError("No space left on device\nand a long trace"))
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.ocp, "save_checkpointables_async", lambda *_, **__: failed)
    checkpoints.save(2, zeros())
  with pytest.raises(UserError, match=r"^checkpoint 2 was not saved in .*: No space left on device$"):
    checkpoints.save(3, zeros())
  checkpoints.wait()
  assert checkpoints.steps() == [1, 3]


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from tfm_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"params": {"w": jnp.ones((8, 8))}})
checkpoints.wait()
checkpoints.save(2, {"params": {"w": jnp.ones((8, 8)), "large": jnp.zeros((8192, 8192))}})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_during_an_asynchronous_save(tmp_path):
  process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
  assert process.returncode == -signal.SIGKILL
  checkpoints = Checkpoints(tmp_path)
  assert (tmp_path / "2").exists(), "the save had begun"
  assert checkpoints.steps() == [1], "and had not ended"
  assert np.all(checkpoints.restore(1, WANTED)["params"]["w"] == 1)
  checkpoints.save(2, zeros())
  checkpoints.close()
  assert checkpoints.verify(1)
  assert checkpoints.verify(2)
  assert not np.any(checkpoints.restore(2, WANTED)["params"]["w"])
