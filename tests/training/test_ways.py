"""Ways to train: a part of the parameters, rates by layer, gradual unfreezing, and the average of the parameters."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.launching import exact_rows, quick_fit, tiny
from tests.support.tiny import make_batch, make_model, make_program, placement
from tfm_jax.errors import UserError
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossConfig, total
from tfm_jax.runtime.trees import flat, nested
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.config import resolve
from tfm_jax.training.load import load_run
from tfm_jax.training.loss import make_loss
from tfm_jax.training.optimization.depth import distances
from tfm_jax.training.optimization.optimizer import schedule


def program_of(variant="bert", strategy="dp", devices=1, ema=0.0, unfreeze_every=0, **optimizer):
  """The program of a tiny model of two layers."""
  program = make_program(make_model(variant, placement(strategy, devices)), make_batch(variant), **optimizer)
  train = dataclasses.replace(program.config.train, ema=ema, unfreeze_every=unfreeze_every)
  return dataclasses.replace(program, config=dataclasses.replace(program.config, train=train))


def states(program, steps, variant="bert"):
  """The states from the first on."""
  layout = jax.tree.map(lambda leaf: leaf.sharding, program.state)
  step = jax.jit(program.train_step(1), out_shardings=(layout, None))
  passed = [program.init()]
  for seed in range(steps):
    passed.append(step(passed[-1], program.put(make_batch(variant, seed)))[0])
  return jax.device_get(passed)


def changed(before, after):
  """Path -> for each layer (or once) whether a parameter has changed."""
  return {
    path: [bool((x[i] != flat(after)[path][i]).any()) for i in range(2)]
    if "blocks/" in path
    else bool((x != flat(after)[path]).any())
    for path, x in flat(before).items()
  }


# Rates by layer.


def test_distances_from_the_head():
  far = distances(make_model("bert").shapes())
  assert far["blocks/attn/wq"].ravel().tolist() == [2, 1] and far["blocks/attn/wq"].ndim == 4
  assert far["embed/token"] == far["embed/norm/scale"] == 3
  assert {path for path, x in far.items() if x.ndim == 0 and x == 0} == {"head/bias", *_dense(far)}
  far = distances(make_model("t5").shapes())
  assert far["encoder/blocks/attn/wq"].ravel().tolist() == [4, 3]
  assert far["decoder/blocks/cross/wq"].ravel().tolist() == [2, 1]
  assert (far["encoder/final_norm/scale"], far["decoder/final_norm/scale"]) == (2, 0)
  assert {float(x) for path, x in far.items() if "embed" in path or "relative" in path} == {5.0}
  far = distances(make_model("gru_encoder_decoder").shapes())
  assert far["encoder/blocks/rnn/wx"].ravel().tolist() == [4, 3] and far["decoder/blocks/rnn/wx"].max() == 2
  assert {float(far[f"decoder/{name}"]) for name in ("cross/wq", "cross/bo", "dense/w")} == {1.0}  # as its last block
  towers = {"image": 3, "text": 2}
  of_tower = lambda n: {"blocks": {"mlp": {"bo": np.zeros((n, 8))}}, "embed": {"class": 0}, "final_norm": {"scale": 0}}
  far = distances({name: of_tower(n) for name, n in towers.items()} | {"text_projection": {"w": np.zeros(())}})
  for name, n in towers.items():
    assert far[f"{name}/blocks/mlp/bo"].ravel().tolist() == list(range(n, 0, -1))
    assert (far[f"{name}/final_norm/scale"], far[f"{name}/embed/class"]) == (0, n + 1)
  assert far["text_projection/w"] == 0
  far = distances({"lora": {"blocks": {"attn": {"wq": {"a": np.zeros((2, 8, 3))}}}}})
  assert far["lora/blocks/attn/wq/a"].ravel().tolist() == [2, 1]


def _dense(far):
  return {path for path in far if path.startswith(("dense", "head_norm", "head/", "transform"))}


@pytest.mark.slow
def test_layer_decay_is_optax_with_a_rate_for_each_layer():
  """Parameters of each layer by themselves, one optax.adamw for each distance."""
  program = program_of(layer_decay=0.5, weight_decay=0.1, grad_clip=0.0)
  *_, last = states(program, 3)
  first = flat(jax.device_get(program.init().params))
  trained = {path for path in first if path not in program.frozen}
  plain, labels = {}, {}
  for path in trained:
    pieces = enumerate(first[path]) if "blocks/" in path else [("", first[path])]
    for layer, x in pieces:
      plain[f"{path} {layer}"] = jnp.asarray(x)
      top = path.startswith(("embed", "blocks"))
      labels[f"{path} {layer}"] = (2 - layer if layer != "" else 3) if top else 0
  matrices = {
    path: program.model.axes([jax.tree_util.DictKey(k) for k in path.split("/")]).is_matrix for path in trained
  }
  mask = {name: matrices[name.split()[0]] for name in plain}
  rate = schedule(program.config.optimizer, 10)
  tx = optax.multi_transform(
    {
      far: optax.adamw(lambda step, far=far: rate(step) * 0.5**far, weight_decay=0.1, mask=_only(mask, labels, far))
      for far in range(4)
    },
    labels,
  )
  frozen = {path: x for path, x in first.items() if path not in trained}

  def loss(plain, batch):
    params = dict(frozen)
    for path in trained:
      parts = [plain[f"{path} {i}"] for i in range(2)] if "blocks/" in path else plain[f"{path} "]
      params[path] = jnp.stack(parts) if "blocks/" in path else parts
    return total(program.loss(nested(params), batch, None).objective)

  moments = tx.init(plain)
  for seed in range(3):
    grads = jax.jit(jax.grad(loss))(plain, make_batch("bert", seed))
    updates, moments = tx.update(grads, moments, plain)
    plain = optax.apply_updates(plain, updates)
  ours = flat(last.params)
  for name, x in plain.items():
    path, _, layer = name.partition(" ")
    mine = ours[path][int(layer)] if layer else ours[path]
    # Adam divides by roots of gradients that may be rounding alone: few values differ more.
    assert np.isclose(mine, x, rtol=1e-4, atol=2e-5).mean() > 0.99, name


def _only(mask, labels, far):
  """The decayed parameters, in the form that optax.multi_transform gives each of its parts."""
  return lambda tree: {name: x if isinstance(x, optax.MaskedNode) else mask[name] for name, x in tree.items()}


@pytest.mark.slow
def test_gradual_unfreezing_goes_from_the_head_down():
  program = program_of(unfreeze_every=2, warmup_steps=0)
  for step, (before, after) in enumerate(itertools.pairwise(states(program, 8))):
    moved = changed(before.params, after.params)
    for path, far in distances(before.params).items():
      expected = (far.ravel() <= step // 2).tolist() if "blocks/" in path else bool(far <= step // 2)
      if path not in program.frozen and path != "blocks/attn/bk":  # the bias of keys has no gradient
        assert moved[path] == expected, (step, path)


@pytest.mark.slow
def test_all_ways_together_train_under_a_strategy_like_on_one_device():
  ways = {"ema": 0.9, "unfreeze_every": 1, "layer_decay": 0.7, "trained": ".*/(wq|wi|wo|w)$"}
  one, many = states(program_of(**ways), 4)[-1], states(program_of("bert", "fsdp_tp", 8, **ways), 4)[-1]
  for tree in ("params", "ema"):
    for path, x in flat(getattr(one, tree)).items():
      np.testing.assert_allclose(flat(getattr(many, tree))[path], x, rtol=1e-3, atol=2e-5, err_msg=f"{tree} {path}")


# A part of the parameters.


def test_only_what_is_named_is_trained():
  biases = r".*/b(q|k|v|o|i)?$|.*bias$"
  program = program_of(trained=biases)
  before, after = states(program, 1)[0].params, states(program, 1)[1].params
  moved = {path for path, how in changed(before, after).items() if np.any(how)}
  assert moved and all(path.rsplit("/", 1)[1].startswith("b") for path in moved)
  assert "blocks/mlp/bi" in moved and "blocks/mlp/wi" not in moved
  complement = program_of(frozen=rf"(?!{biases})")
  assert program.frozen == complement.frozen
  assert set(flat(program.state.opt_state[1][0].mu)) == set(flat(before)) - program.frozen


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"trained": "nothing"}, r"optimizer\.trained='nothing' matches no parameter"),
    ({"trained": "("}, r"optimizer\.trained='\(' is not a regular expression"),
    ({"trained": "embed/token", "frozen": "embed"}, "leaves no parameter to train"),
  ],
)
def test_what_cannot_be_trained(changes, message):
  with pytest.raises(UserError, match=message):
    assert program_of(**changes).frozen


@pytest.mark.parametrize(
  ("key", "value"), [("optimizer__layer_decay", 0.0), ("optimizer__layer_decay", 1.5), ("train__ema", 1.0)]
)
def test_values_that_cannot_be(experiment, key, value):
  with pytest.raises(UserError, match=key.replace("__", r"\.")):
    resolve(tiny(experiment, **{key: value}))


# The average of the parameters.


def test_the_average_is_that_of_numpy_and_skips_what_is_not_finite():
  program = program_of("gpt", ema=0.3)
  layout = jax.tree.map(lambda leaf: leaf.sharding, program.state)
  step = jax.jit(program.train_step(1), out_shardings=(layout, None))
  state = program.init()
  average = flat(jax.device_get(state.params))
  for seed in range(4):
    batch = make_batch("gpt", seed)
    if seed == 2:
      batch["weights"] = np.full_like(batch["weights"], np.nan)
    state, _ = step(state, program.put(batch))
    if seed != 2:
      decay = min(0.3, (1 + seed) / (10 + seed))
      average = {
        path: decay * x + (1 - decay) * flat(jax.device_get(state.params))[path] for path, x in average.items()
      }
  for path, x in flat(jax.device_get(state.ema)).items():
    np.testing.assert_allclose(x, average[path], rtol=1e-5, atol=1e-7, err_msg=path)
  assert not np.array_equal(average["embed/token"], state.params["embed"]["token"])


@pytest.mark.slow
def test_a_run_evaluates_loads_and_resumes_its_average(experiment, tmp_path):
  settings = {
    "model__num_layers": 1,
    "optimizer__schedule": "constant",
    "optimizer__frozen": "embed/position",
    "optimizer__learning_rate": 0.03,
    "train__ema": 0.5,
    "eval__every": 2,
    "eval__batches": 1,
    "checkpoint__every": 2,
  }
  result = quick_fit(tiny(experiment, train__steps=6, **settings), tmp_path / "whole")
  for steps in (2, 6):
    quick_fit(tiny(experiment, train__steps=steps, **settings), tmp_path / "parts")
  assert exact_rows(tmp_path / "parts") == exact_rows(tmp_path / "whole")
  run = load_run(tmp_path / "whole")
  with Checkpoints(tmp_path / "whole" / "checkpoints") as checkpoints:
    shapes = {name: checkpoints.shapes(6, name) for name in ("params", "ema")}
    trees = checkpoints.restore(6, {name: nested(leaves) for name, leaves in shapes.items()})
  assert set(shapes["params"]) - set(shapes["ema"]) == {"embed/position"}
  for path, x in flat(trees["ema"]).items():
    np.testing.assert_array_equal(flat(run.params)[path], x)
  assert not np.array_equal(trees["params"]["embed"]["token"], trees["ema"]["embed"]["token"])
  # A run that starts from it, and learns nothing, has the loss that was reported.
  still = settings | {"train__ema": 0.0, "optimizer__learning_rate": 0.0, "init_from": str(tmp_path / "whole")}
  quick_fit(tiny(experiment, train__steps=1, **still), tmp_path / "next")
  assert exact_rows(tmp_path / "next")["eval", 0]["loss"] == pytest.approx(result["loss"], rel=1e-6)


# R-Drop.


def classifier(**changes):
  """A tiny classifier of rows, and a batch for it."""
  head = {"head.name": "sequence_classification", "head.num_labels": 3}
  model = make_model("bert", **(DROPOUT | head | changes))
  batch = {name: x for name, x in make_batch("bert").items() if not name.startswith("mlm")}
  draw = np.random.default_rng(0)
  weights = np.array([1.0] * 12 + [0.0] * 4, np.float32)
  return model, batch | {"targets": draw.integers(0, 3, 16).astype(np.int32), "weights": weights}


DROPOUT = {"dropout": 0.3, "attention_dropout": 0.0}


def test_r_drop_is_the_divergence_of_two_passes():
  """The oracle computes both passes' logits and their divergences in numpy, from the definition."""
  model, batch = classifier()
  params = jax.jit(model.init)(jax.random.key(3))
  params["classifier"]["w"] = 30 * params["classifier"]["w"]
  noise = Noise(jnp.uint32(7), jnp.int32(2), batch["rows"])
  second = noise._replace(seed=noise.seed ^ np.uint32(0x9E3779B9))
  p, q = (np.asarray(jax.nn.softmax(model.logits(params, batch, each)), np.float64) for each in (noise, second))
  assert np.abs(p - q).max() > 0.01
  weights = batch["weights"]
  nll = -0.5 * (np.log(p) + np.log(q))[np.arange(16), batch["targets"]]
  divergences = (p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)
  expected = (weights * (nll + 5.0 * divergences / 2)).sum() / weights.sum()
  loss = make_loss(model, LossConfig(r_drop=5.0))
  terms = loss(params, batch, noise)
  assert float(total(terms.objective)) == pytest.approx(expected, rel=1e-4)
  plain = make_loss(model, LossConfig())
  assert float(total(terms.loss)) == float(total(plain(params, batch, noise).loss))  # reports are those of one pass
  assert float(total(loss(params, batch, None).objective)) == float(total(plain(params, batch, None).objective))


def test_r_drop_is_for_rows():
  model = make_model("gpt", **DROPOUT)
  batch = make_batch("gpt")
  noise = Noise(jnp.uint32(7), jnp.int32(2), batch["rows"])
  with pytest.raises(UserError, match=r"loss\.r_drop=1 is for heads that classify rows"):
    make_loss(model, LossConfig(r_drop=1.0))(model.init(jax.random.key(0)), batch, noise)
