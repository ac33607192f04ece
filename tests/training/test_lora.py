"""LoRA: the base is frozen, adapters train like those of Optax on plain matrices, and a run loads as a normal model."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.launching import SHORT_RUN, exact_rows, quick_fit, tiny
from tests.support.tiny import make_batch, make_model, make_program, placement
from tfm_jax.errors import UserError
from tfm_jax.ops.losses import total
from tfm_jax.runtime.trees import flat, nested
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.compiled.program import Program
from tfm_jax.training.load import load_run
from tfm_jax.training.optimization.lora import AdapterConfig, adapter_shapes, axes_of, merge, merged_loss
from tfm_jax.training.optimization.optimizer import schedule

ADAPTER = AdapterConfig(rank=3, alpha=6.0)


def adapted(variant="gpt", strategy="dp", devices=1, adapter=ADAPTER, **optimizer):
  """The program of a tiny model with adapters."""
  model = make_model(variant, placement(strategy, devices))
  base = make_program(model, make_batch(variant), **optimizer)
  config = dataclasses.replace(base.config, adapter=adapter)
  return Program(config, model, base.fields, merged_loss(adapter, base.loss, model.placement))


def disturbed(params, seed=0):
  """Parameters whose adapters are not zero."""
  draw = np.random.default_rng(seed)
  noise = lambda path, x: x + (0.1 * draw.standard_normal(x.shape)).astype(np.float32) if path.endswith("/b") else x
  return nested({path: noise(path, x) for path, x in flat(params).items()})


@pytest.mark.slow_but("bert", "gpt")
@pytest.mark.parametrize("variant", ["bert", "gpt", "t5", "llama"])
def test_merging_adds_the_product_of_each_layer(variant):
  """The oracle multiplies matrices in numpy, layer by layer."""
  config = AdapterConfig(rank=3, alpha=6.0, targets=".*/w|.*embed/token")
  params = jax.device_get(disturbed(adapted(variant, adapter=config).init().params))
  leaves = flat(params)
  targets = {path.removeprefix("lora/")[:-2] for path in leaves if path.startswith("lora/") and path.endswith("/a")}
  assert any("mlp/wi" in path for path in targets) and any("attn/wo" in path for path in targets)
  merged = flat(jax.device_get(merge(config, params, placement())))
  assert set(merged) == {path for path in leaves if not path.startswith("lora/")}
  for path, w in merged.items():
    if path not in targets:
      np.testing.assert_array_equal(w, leaves[path])
      continue
    axes = axes_of(path)
    for layer in range(w.shape[0]) if axes.layers else [()]:
      inputs = np.prod(w.shape[axes.layers : axes.layers + axes.inputs], dtype=int)
      a = leaves[f"lora/{path}/a"][layer].reshape(inputs, 3).astype(np.float64)
      b = leaves[f"lora/{path}/b"][layer].reshape(3, -1).astype(np.float64)
      expected = leaves[path][layer].reshape(inputs, -1) + 2.0 * a @ b
      np.testing.assert_allclose(w[layer].reshape(inputs, -1), expected, rtol=1e-5, atol=1e-6, err_msg=path)


def test_step_zero_is_the_base():
  program = adapted()
  state, batch = program.init(), make_batch("gpt")
  base = nested({path: x for path, x in flat(state.params).items() if not path.startswith("lora/")})
  expected = program.model.logits(base, batch)
  np.testing.assert_array_equal(program.model.logits(program.model_params(state.params), batch), expected)
  assert all(np.asarray(x).any() for path, x in flat(state.params).items() if path.endswith("/a"))


def run(program, steps=3):
  """(losses, state, initial parameters) of a few steps."""
  state = program.init()
  first = jax.device_get(state.params)
  layout = jax.tree.map(lambda leaf: leaf.sharding, program.state)
  step, losses = jax.jit(program.train_step(1), out_shardings=(layout, None)), []
  for seed in range(steps):
    state, metrics = step(state, program.put(make_batch("gpt", seed)))
    losses.append(float(metrics["loss"]))
  return losses, state, first


@pytest.mark.slow
def test_adapters_train_like_plain_matrices_under_optax():
  """Each layer's a and b as matrices of their own, a loss that merges by hand, and optax.adamw."""
  program = adapted(weight_decay=0.1, learning_rate=1e-2, grad_clip=1.0)
  losses, state, first = run(program)
  leaves = flat(first)
  base = {path: jnp.asarray(x) for path, x in leaves.items() if not path.startswith("lora/")}
  targets = ["blocks/attn/wk", "blocks/attn/wo", "blocks/attn/wq", "blocks/attn/wv"]
  assert sorted(flat(adapter_shapes(ADAPTER, program.model.shapes()))) == sorted(
    f"lora/{path}/{side}" for path in targets for side in "ab"
  )
  plain = {}
  for path in targets:
    inputs = np.prod(base[path].shape[1 : 1 + axes_of(path).inputs], dtype=int)
    for layer in range(2):
      plain[f"{path} {layer} a"] = jnp.asarray(leaves[f"lora/{path}/a"][layer].reshape(inputs, 3))
      plain[f"{path} {layer} b"] = jnp.asarray(leaves[f"lora/{path}/b"][layer].reshape(3, -1))
  loss_of = make_program(program.model, make_batch("gpt")).loss

  def loss(plain, batch):
    params = dict(base)
    for path in targets:
      delta = [plain[f"{path} {layer} a"] @ plain[f"{path} {layer} b"] for layer in range(2)]
      params[path] = base[path] + 2.0 * jnp.stack(delta).reshape(base[path].shape)
    return total(loss_of(nested(params), batch, None).objective)

  rate = schedule(program.config.optimizer, 10)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1))
  moments, expected = tx.init(plain), []
  for seed in range(3):
    value, grads = jax.jit(jax.value_and_grad(loss))(plain, make_batch("gpt", seed))
    updates, moments = tx.update(grads, moments, plain)
    plain = optax.apply_updates(plain, updates)
    expected.append(float(value))
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  trained = flat(jax.device_get(state.params))
  for name, x in plain.items():
    path, layer, side = name.split()
    np.testing.assert_allclose(trained[f"lora/{path}/{side}"][int(layer)].reshape(x.shape), x, rtol=1e-3, atol=1e-5)
  for path, x in base.items():
    np.testing.assert_array_equal(trained[path], x)
  assert not any("lora" not in path for path in flat(state.opt_state[1][0].mu))


@pytest.mark.slow_but("fsdp_tp")
@pytest.mark.parametrize("strategy", ["fsdp_tp", "hsdp"])
def test_every_strategy_trains_adapters_like_one_device(strategy):
  losses, _, first = run(adapted())
  losses_8, state, first_8 = run(adapted("gpt", strategy, 8))
  jax.tree.map(np.testing.assert_array_equal, first, first_8)
  np.testing.assert_allclose(losses_8, losses, rtol=1e-5)
  leaves = flat(state.params)
  if strategy == "fsdp_tp":
    assert not leaves["lora/blocks/attn/wq/a"].sharding.is_fully_replicated  # inputs, by data
    assert not leaves["lora/blocks/attn/wq/b"].sharding.is_fully_replicated  # heads, by model


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"targets": "("}, r"adapter\.targets='\(' is not a regular expression"),
    ({"targets": "attn"}, r"adapter\.targets='attn' matches no parameter; they are blocks/attn/bk"),
    ({"targets": ".*attn/b"}, r"matches blocks/attn/bk, which is not a matrix"),
  ],
)
def test_targets_that_cannot_be(changes, message):
  with pytest.raises(UserError, match=message):
    adapter_shapes(dataclasses.replace(ADAPTER, **changes), make_model("gpt").shapes())


# Runs.


@pytest.fixture(scope="module")
def base(experiment, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("base") / "run"
  quick_fit(tiny(experiment, train__steps=2, **SHORT_RUN), workdir)
  return workdir


def lora(experiment, base, **overrides):
  return tiny(experiment, **(SHORT_RUN | {"init_from": str(base), "adapter__rank": 2, "train__steps": 4} | overrides))


@pytest.fixture(scope="module")
def finished(experiment, base, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("lora") / "run"
  with pytest.MonkeyPatch.context() as patch:
    lines = []
    patch.setattr(logging.getLogger("tfm_jax.training.loop"), "info", lambda *a: lines.append(a[0] % a[1:]))
    result = quick_fit(lora(experiment, base), workdir)
  return result, workdir, lines


@pytest.mark.slow
def test_a_checkpoint_holds_the_adapters_alone(finished):
  _, workdir, lines = finished
  with Checkpoints(workdir / "checkpoints") as checkpoints:
    stored = checkpoints.shapes(4, "params")
    moments = checkpoints.shapes(4, "opt_state")
  names = {f"lora/blocks/attn/{w}/{side}" for w in ("wq", "wk", "wv", "wo") for side in "ab"}
  assert set(stored) == names
  assert not any("attn" in path and "lora" not in path for path in moments)
  numbers = sum(int(np.prod(leaf.shape)) for leaf in stored.values())
  assert any(f"trained: {numbers:,} of " in line for line in lines)


@pytest.mark.slow
def test_the_run_loads_as_a_model_of_the_same_loss(finished, experiment, base):
  result, workdir, _ = finished
  records = exact_rows(workdir)
  assert records["eval", 0]["loss"] == pytest.approx(exact_rows(base)["eval", 2]["loss"], rel=1e-6)
  run, source = load_run(workdir), load_run(base)
  assert set(flat(run.params)) == set(flat(source.params))
  moved = {p for p, x in flat(run.params).items() if not np.array_equal(x, flat(source.params)[p])}
  assert moved == {f"blocks/attn/{w}" for w in ("wq", "wk", "wv", "wo")}
  again = lora(experiment, workdir, adapter__rank=0, train__steps=1, optimizer__learning_rate=0.0)
  quick_fit(again, workdir.parent / "next")  # a run that starts from it starts from the merged model
  assert exact_rows(workdir.parent / "next")["eval", 0]["loss"] == pytest.approx(result["loss"], rel=1e-6)
  other = load_run(workdir, strategy="fsdp_tp")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), other.params, run.params)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_although_its_base_went_on(finished, experiment, base, tmp_path):
  """The base is the step that the run started from."""
  import shutil

  shutil.copytree(base, tmp_path / "base")
  quick_fit(lora(experiment, tmp_path / "base", train__steps=2), tmp_path / "run")
  quick_fit(tiny(experiment, train__steps=4, **SHORT_RUN), tmp_path / "base")
  of_run = {"branch_from": str(tmp_path / "run"), "branch_at": 2}
  quick_fit(lora(experiment, tmp_path / "base", **of_run), tmp_path / "branch")
  quick_fit(lora(experiment, tmp_path / "base"), tmp_path / "run")
  whole = exact_rows(finished[1])
  assert exact_rows(tmp_path / "run") == whole
  assert exact_rows(tmp_path / "branch").items() <= whole.items() and ("train", 3) in exact_rows(tmp_path / "branch")
  jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path / "run").params, load_run(finished[1]).params)
  shutil.rmtree(tmp_path / "base")
  with pytest.raises(UserError, match=r"has adapters of the model in .*/base, which is not there"):
    load_run(tmp_path / "run")


def test_adapters_need_a_model(experiment, tmp_path):
  with pytest.raises(UserError, match=r"adapter\.rank=2 adapts a model that is trained already: set init_from"):
    quick_fit(lora(experiment, ""), tmp_path / "run")
