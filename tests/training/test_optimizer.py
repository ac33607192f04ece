"""Optimizers on stacked parameters, their sharding, and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.tiny import make_batch, make_model, make_program, placement
from tfm_jax.errors import UserError
from tfm_jax.models.config import Axes
from tfm_jax.training.config import load
from tfm_jax.training.optimization.optimizer import (
  OPTIMIZERS,
  OptimizerConfig,
  make_optimizer,
  matrix_shape,
  orthogonalized,
  per_matrix,
  schedule,
  state_shardings,
)

AXES = {
  "wq": Axes(("layers", "embed", "heads", None), 1, 1),
  "wo": Axes(("layers", "heads", None, "embed"), 1, 2),
  "table": Axes(("vocab", "embed"), 0, 1),
  "bias": Axes(("layers", None), 1, 0),
}
SHAPES = {"wq": (3, 128, 4, 40), "wo": (3, 4, 40, 128), "table": (256, 128), "bias": (3, 128)}


def tree(seed):
  keys = jax.random.split(jax.random.key(seed), len(SHAPES))
  return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)}


def unstacked(x):
  """The matrix of each layer by itself."""
  separate = {}
  for name, value in x.items():
    matrices = value.reshape(matrix_shape(value.shape, AXES[name]))
    separate |= {f"{name}{i}": matrices[i] for i in range(3)} if AXES[name].layers else {name: matrices}
  return separate


def test_matrix_shapes():
  assert {name: matrix_shape(SHAPES[name], AXES[name]) for name in SHAPES} == {
    "wq": (3, 128, 160),
    "wo": (3, 160, 128),
    "table": (256, 128),
    "bias": (3, 128),
  }


def test_adafactor_acts_on_the_matrix_of_each_layer():
  """On stacked parameters it computes what Optax does on separate matrices, each with its own moment and scale."""
  chain = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
  stacked = per_matrix(chain, AXES)
  params = tree(0)
  state, plain_state = stacked.init(params), chain.init(unstacked(params))
  for step in range(3):
    grads = jax.tree.map(lambda x, i=step: x * (i + 1), tree(step + 1))
    updates, state = stacked.update(grads, state, params)
    expected, plain_state = chain.update(unstacked(grads), plain_state, unstacked(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), unstacked(updates), expected)
    assert jax.tree.map(jnp.shape, updates) == SHAPES
  factored = state["wq"][0]
  assert factored.v_row.shape == (3, 128) and factored.v_col.shape == (3, 160)


def test_muon_acts_on_the_matrix_of_each_layer_with_its_heads_merged():
  """On stacked parameters it is the Muon of Optax on separate matrices of the blocks; the rest is its Adam."""
  labels = {name: "muon" if name[0] == "w" else "adam" for name in unstacked(tree(0))}
  # Optax corrects the bias of the momentum, unlike the authors: it is given theirs.
  whole = lambda tree: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), tree)
  muon = optax.chain(
    optax.trace(0.9, nesterov=True),
    optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=whole),
    optax.stateless(lambda tree, _: jax.tree.map(lambda x: 0.2 * max(x.shape) ** 0.5 * x, tree)),
  )
  theirs = optax.partition({"muon": muon, "adam": optax.scale_by_adam(0.8, 0.99)}, labels)
  ours = make_optimizer(OptimizerConfig("muon", momentum=0.9, beta1=0.8, beta2=0.99, grad_clip=0.0), AXES)
  params = tree(0)
  state, their_state = ours.init(params), theirs.init(unstacked(params))
  for step in range(3):
    grads = jax.tree.map(lambda x, i=step: x * (i + 1), tree(step + 1))
    updates, state = ours.update(grads, state, params)
    expected, their_state = theirs.update(unstacked(grads), their_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), unstacked(updates), expected)
    assert jax.tree.map(jnp.shape, updates) == SHAPES
  moments = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(state)}
  assert {name for name in moments if "trace" in name} == {
    "[1][0].inner_state[0].trace['wq']",
    "[1][0].inner_state[0].trace['wo']",
  }


def test_the_first_update_of_muon_is_that_of_optax_with_decay():
  params, grads = tree(0), tree(1)
  ours = make_optimizer(OptimizerConfig("muon", weight_decay=0.1, grad_clip=0.0), AXES)
  updates, _ = ours.update(grads, ours.init(params), params)
  matrices = {name: x for name, x in unstacked(params).items() if name[0] == "w"}
  theirs = optax.contrib.muon(1.0, weight_decay=0.1, consistent_rms=0.2)
  expected, _ = theirs.update({name: unstacked(grads)[name] for name in matrices}, theirs.init(matrices), matrices)
  for name, update in expected.items():
    np.testing.assert_allclose(unstacked(updates)[name], -update, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shape", [(2, 16, 40), (40, 16), (24, 32)])
def test_orthogonalized_matrices_keep_their_singular_vectors_and_lose_their_singular_values(shape):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 1e-3
  s = np.linalg.svd(np.asarray(orthogonalized(x)), compute_uv=False)
  assert (s > 0.6).all() and (s < 1.3).all()
  u, _, v = np.linalg.svd(x, full_matrices=False)
  inside = u.swapaxes(-2, -1) @ np.asarray(orthogonalized(x)) @ v.swapaxes(-2, -1)
  np.testing.assert_allclose(inside * (1 - np.eye(s.shape[-1])), 0.0, atol=1e-3)
  assert not np.asarray(orthogonalized(jnp.zeros(shape))).any()


@pytest.mark.parametrize("family", ["bert", "gpt", "t5"])
def test_muon_takes_the_matrices_of_the_blocks_alone(family):
  model = make_model(family)
  axes = jax.tree.map_with_path(lambda path, _: model.axes(path), model.shapes())
  state = jax.eval_shape(make_optimizer(OptimizerConfig("muon"), axes).init, model.shapes())
  names = {
    part: [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state) if part in str(path)]
    for part in ("trace", "mu")
  }
  assert names["trace"] and all("blocks" in name and "'w" in name for name in names["trace"])
  assert any("embed" in name for name in names["mu"]) and not any("'wq'" in name for name in names["mu"])
  assert len(names["trace"]) + len(names["mu"]) == len(jax.tree.leaves(model.shapes()))


@pytest.mark.parametrize(
  ("strategy", "axes", "shape"),
  [
    ("fsdp", Axes(("layers", "embed", "mlp"), 1, 1), (16, 128, 128)),
    ("fsdp_ep", Axes(("layers", "experts", "embed", "mlp"), 2, 1), (8, 8, 64, 64)),
  ],
)
def test_muon_gathers_one_layer_of_a_sharded_stack_at_a_time(strategy, axes, shape):
  st = placement(strategy, 8)
  params = {"x": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=st.sharding(axes.names))}
  tx = make_optimizer(OptimizerConfig("muon", grad_clip=0.0), {"x": axes})
  program = jax.jit(lambda g: tx.update(g, tx.init(g), g)[0], out_shardings={"x": params["x"].sharding})
  temporary = program.lower(params).compile().memory_analysis().temp_size_in_bytes
  assert temporary < 0.7 * 4 * np.prod(shape), temporary


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_follows_the_parameters(name):
  st = placement("fsdp_tp", 8)
  model = make_model("bert", st, embed_dim=256, mlp_dim=512)
  axes = jax.tree.map_with_path(lambda path, _: model.axes(path), model.shapes())
  opt_state = jax.eval_shape(make_optimizer(OptimizerConfig(name), axes).init, model.shapes())
  shardings = {
    jax.tree_util.keystr(path): (leaf.shape, sharding)
    for (path, leaf), sharding in zip(
      jax.tree.leaves_with_path(opt_state), jax.tree.leaves(state_shardings(st, model.shapes(), opt_state)), strict=True
    )
  }
  wi = {path: entry for path, entry in shardings.items() if "'wi'" in path and np.prod(entry[0]) > 4}
  if name == "adafactor":
    specs = {path.rsplit(".", 1)[1]: (shape, tuple(sharding.spec)) for path, (shape, sharding) in wi.items()}
    assert specs["v_row"] == ((2, 256), (None, "data")) and specs["v_col"] == ((2, 512), (None, "model"))
  else:
    assert wi
    for shape, sharding in wi.values():
      assert shape == (2, 256, 512) and tuple(sharding.spec) == (None, "data", "model")
  for shape, sharding in shardings.values():
    sharding.shard_shape(shape)  # raises where it does not divide
  program = make_program(model, make_batch("bert"), name=name)
  assert all(leaf.sharding is not None for leaf in jax.tree.leaves(program.state))


@pytest.mark.parametrize("name", ["linear", "cosine", "rsqrt", "constant"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_the_peak_is_reached_at_the_end_of_the_warm_up(name, warmup):
  rate = schedule(OptimizerConfig(learning_rate=2.0, schedule=name, warmup_steps=warmup, final_fraction=0.1), 100)
  rates = np.array([float(rate(jnp.int32(step))) for step in range(100)])
  if warmup:
    np.testing.assert_allclose(rates[:warmup], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert rates.argmax() == warmup - 1
  assert rates.max() <= 2.0 + 1e-6 and (np.diff(rates[max(warmup, 1) - 1 :]) <= 1e-6).all()
  last = {"linear": 0.2, "cosine": 0.2, "rsqrt": 2.0 * (max(warmup, 1) / 100) ** 0.5, "constant": 2.0}[name]
  assert rates[-1] == pytest.approx(last, rel=1e-5)


def rates_of(steps, **settings):
  rate = schedule(OptimizerConfig(learning_rate=2.0, schedule="wsd", warmup_steps=10, **settings), steps)
  return np.array([float(rate(jnp.int32(step))) for step in range(steps)])


def test_wsd_warms_up_is_stable_and_decays_at_the_end():
  rates = rates_of(100, decay_steps=20, final_fraction=0.1)
  np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
  np.testing.assert_array_equal(rates[9:80], 2.0)
  assert (np.diff(rates[79:]) < 0).all() and rates[-1] == pytest.approx(0.2)
  np.testing.assert_allclose(rates[80:], 0.2 + 1.8 * (1 - np.sqrt(np.arange(1, 21) / 20)), rtol=1e-5)


def test_the_stable_part_of_wsd_does_not_depend_on_the_length():
  """So that a cooldown goes on from any checkpoint of a run that was meant to be longer."""
  stable = rates_of(200)
  for steps in (60, 150):
    np.testing.assert_array_equal(rates_of(steps, decay_steps=20)[: steps - 20], stable[: steps - 20])
  assert (rates_of(15, decay_steps=50)[:10] == stable[:10]).all()  # the decay begins after the warm-up


def test_the_flat_schedule_and_the_recipes_of_t5_are_at_the_peak_from_the_first_step():
  rate = schedule(OptimizerConfig(learning_rate=2.0, schedule="rsqrt_flat", warmup_steps=10), 100)
  rates = np.array([float(rate(jnp.int32(step))) for step in range(100)])
  np.testing.assert_allclose(rates, 2.0 * np.sqrt(10 / np.maximum(np.arange(1, 101), 10)), rtol=1e-6)
  for file in ("configs/t5_small.py", "configs/t5_base.py:1.1", "configs/t5_large.py"):
    config = load(file)
    rate = schedule(config.optimizer, config.train.steps)
    for step in (1, 2, 5000, 10_000, 40_000, 2**19):
      assert float(rate(jnp.int32(step - 1))) == pytest.approx(1 / max(step, 10_000) ** 0.5, rel=1e-5), (file, step)


def test_weight_decay_acts_on_matrices_only():
  model = make_model("bert")
  axes = jax.tree.map_with_path(lambda path, _: model.axes(path), model.shapes())
  tx = make_optimizer(OptimizerConfig("adamw", weight_decay=0.5), axes)
  params = jax.tree.map(lambda x: jnp.ones(x.shape), model.shapes())
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  for path, update in jax.tree.leaves_with_path(updates):
    name = "/".join(key.key for key in path)
    vector = name.split("/")[-1][0] == "b" or "norm" in name
    np.testing.assert_array_equal(update, 0.0 if vector else 0.5, err_msg=name)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon"])
def test_decay_is_decoupled_from_momentum(name):
  """At every step, decay adds decay times the parameter to the update."""
  params, grads = tree(0), tree(1)
  with_decay, without = (
    make_optimizer(OptimizerConfig(name, weight_decay=decay, grad_clip=0.0), AXES) for decay in (0.1, 0.0)
  )
  states = with_decay.init(params), without.init(params)
  for _ in range(4):
    updates, state = with_decay.update(grads, states[0], params)
    plain, plain_state = without.update(grads, states[1], params)
    states = state, plain_state
    for key, axes in AXES.items():
      expected = plain[key] + 0.1 * params[key] * axes.is_matrix
      np.testing.assert_allclose(updates[key], expected, rtol=1e-6, atol=1e-7, err_msg=key)


def test_the_momentum_of_sgd_has_the_path_of_earlier_checkpoints():
  state = make_optimizer(OptimizerConfig("sgd", weight_decay=0.1), AXES).init(tree(0))
  paths = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)}
  assert paths == {f"[1][1].trace['{name}']" for name in AXES}


def test_gradients_are_clipped_by_the_norm_of_all_of_them():
  tx = make_optimizer(OptimizerConfig("sgd", beta1=0.0, grad_clip=1.0), {"a": AXES["bias"], "b": AXES["bias"]})
  grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  updates, _ = tx.update(grads, tx.init(grads), grads)
  np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("config", [OptimizerConfig(name="lamb"), OptimizerConfig(schedule="step")])
def test_unknown_names_are_refused(config):
  with pytest.raises(UserError, match="is not one of"):
    make_optimizer(config, {})
    schedule(config, 10)
