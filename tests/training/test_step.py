"""The train step: the invariance contract under every strategy, accumulation, the guard, remat."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.tiny import LENGTH, TRAINED, fields_of, make_batch, make_model, make_program, placement
from tfm_jax.sharding.strategy import STRATEGIES
from tfm_jax.training.compiled.step import make_eval_step
from tfm_jax.training.loss import LossConfig
from tfm_jax.training.optimization.optimizer import OPTIMIZERS

STEPS = 10
DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}


def train(
  variant, strategy="dp", devices=1, microbatches=1, steps=STEPS, name="adamw", length=LENGTH, st=None, **changes
):
  """(initial parameters, losses, gradient norms, last state) of a run with dropout, label smoothing and z-loss."""
  st = st or placement(strategy, devices)
  model = make_model(variant, st, **(DROPOUT | changes))
  batches = [make_batch(variant, seed, length=length) for seed in range(steps)]
  extras = LossConfig(label_smoothing=0.1, z_loss=1e-3)
  program = make_program(model, batches[0], loss=extras, seed=5, steps=STEPS, name=name)
  fresh = jax.jit(model.init, out_shardings=model.shardings())(jax.random.key(0))
  state, step = program.init(fresh), program.train_step(microbatches)
  first = jax.tree.map(np.asarray, state.params)
  stacked = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *batches), st.sharding((None, "batch")))
  layout = jax.tree.map(lambda leaf: leaf.sharding, program.state)
  state, metrics = jax.jit(lambda s, b: jax.lax.scan(step, s, b), out_shardings=(layout, None))(state, stacked)
  return first, np.asarray(metrics["objective"]), np.asarray(metrics["grad_norm"]), state


@functools.cache
def alone(variant, name="adamw", **changes):
  return train(variant, name=name, **changes)


# In the default suite.
QUICK = [("bert", strategy) for strategy in ("dp", "fsdp", "tp", "fsdp_tp", "tp_sp")]
QUICK += [("gpt", "fsdp_tp"), ("lstm", "fsdp_tp"), ("gpt", "zero2")]
# Each other strategy trains one family, the next one in turn. Experts are trained where they are split, too.
# Pipelines and sequences in parts have tests of their own: test_pipeline.py, test_context.py.
OTHERS = [name for name in STRATEGIES if name not in ("ep", "fsdp_ep", "pp", "cp", *(quick for _, quick in QUICK))]
OTHERS += ["fsdp+tp_sp", "zero1+tp"]
ROTATED = ("t5", "transformer", "modernbert", "gru_encoder_decoder", "experts", "lstm_encoder")
PAIRS = [(ROTATED[n % len(ROTATED)], strategy) for n, strategy in enumerate(OTHERS)]
PAIRS += [("experts", strategy) for strategy in ("ep", "fsdp_ep", "zero1+ep")]
# Strategies under which parameters are whole, and those under which optimizer state is.
WHOLE = {"dp", "zero1", "zero2"}, {"dp"}


@pytest.mark.parametrize(
  ("variant", "strategy"),
  QUICK + [pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS],
)
def test_every_strategy_trains_like_one_device(variant, strategy):
  first, losses, norms, _ = alone(variant)
  first_8, losses_8, norms_8, state = train(variant, strategy, devices=8, microbatches=2)
  jax.tree.map(np.testing.assert_array_equal, first, first_8)
  np.testing.assert_allclose(losses_8, losses, rtol=1e-5)
  np.testing.assert_allclose(norms_8, norms, rtol=1e-4)
  assert not np.array_equal(first["embed"]["token"], state.params["embed"]["token"])  # it moved
  for tree, whole in zip((state.params, state.opt_state[1][0].mu), WHOLE, strict=True):
    blocks = tree.get("encoder", tree)["blocks"]
    weight = blocks["rnn"]["wh"] if "rnn" in blocks else blocks["mlp"].get("experts", blocks["mlp"])["wi"]
    assert weight.sharding.is_fully_replicated == (strategy in whole)


@pytest.mark.slow_but("gpt-muon-fsdp_tp")
@pytest.mark.parametrize(
  ("variant", "name", "strategy"),
  [
    ("t5", "adafactor", "fsdp_tp"),
    ("gpt", "lion", "zero1"),
    ("experts", "muon", "fsdp_ep"),
    ("gpt", "muon", "fsdp_tp"),
  ],
)
def test_other_optimizers_train_alike_with_sharded_state(variant, name, strategy):
  """Those that see matrices too, whose rows, columns and heads lie on different devices."""
  _, losses, norms, _ = alone(variant, name)
  _, losses_8, norms_8, _ = train(variant, strategy, devices=8, name=name)
  np.testing.assert_allclose(losses_8, losses, rtol=1e-5)
  np.testing.assert_allclose(norms_8, norms, rtol=1e-4)


@pytest.mark.slow
def test_a_stream_is_cut_into_uneven_parts():
  """15 tokens on four devices: the last one has fewer."""
  _, losses, norms, _ = train("bert", steps=3, length=15)
  _, losses_8, norms_8, _ = train("bert", "tp_sp", devices=8, steps=3, length=15)
  np.testing.assert_allclose(losses_8, losses, rtol=1e-5)
  np.testing.assert_allclose(norms_8, norms, rtol=1e-4)


@pytest.mark.slow_but("2")
@pytest.mark.parametrize("microbatches", [2, 16])
def test_accumulation_equals_the_full_batch_with_dropout_on(microbatches):
  _, losses, norms, _ = alone("gpt")
  _, losses_k, norms_k, _ = train("gpt", microbatches=microbatches)
  np.testing.assert_allclose(losses_k, losses, rtol=1e-5)
  np.testing.assert_allclose(norms_k, norms, rtol=1e-4)


def test_parts_of_a_batch_are_rows_that_a_device_has_already():
  """Part j has the rows j::k, so only sums pass between devices."""
  st = placement("dp", 8)
  square_of_sum = lambda params, part, noise: params * part["x"].sum() ** 2
  rows = jax.device_put({"x": np.arange(32, dtype=np.float32)}, st.sharding(("batch",)))
  program = jax.jit(make_eval_step(square_of_sum, st, fields_of(rows), 4)).lower(np.float32(1), rows).compile()
  assert float(program(np.float32(1), rows)) == sum(np.arange(j, 32, 4).sum() ** 2 for j in range(4))
  moves = re.findall(r"all-gather|all-to-all|collective-permute|all-reduce", program.as_text())
  assert set(moves) == {"all-reduce"}


def test_dropout_is_on_in_these_runs():
  _, losses, _, _ = alone("gpt")
  _, without, _, _ = train("gpt", steps=2, dropout=0.0, attention_dropout=0.0)
  assert abs(losses[0] - without[0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "remat"), [("bert", "full"), ("gpt", "dots"), ("gpt", "offload")])
def test_remat_changes_no_result(variant, remat):
  _, losses, norms, _ = alone(variant)
  _, losses_r, norms_r, _ = train(variant, remat=remat)
  np.testing.assert_allclose(losses_r, losses, rtol=1e-6)
  np.testing.assert_allclose(norms_r, norms, rtol=1e-5)


@functools.cache
def compiled(remat, variant="gpt", dtype="bfloat16"):
  model = make_model(variant, num_layers=6, remat=remat, dtype=dtype)
  return make_program(model, make_batch(variant, rows=64)).compile(1)


@pytest.mark.slow
def test_remat_saves_memory_in_the_order_of_its_names():
  sizes = [compiled(remat).memory_analysis().temp_size_in_bytes for remat in ("none", "dots", "full")]
  assert sizes[0] > 1.2 * sizes[1] > 1.2 * sizes[2], sizes


# Of each kind of attention, of feed-forward network and of recurrence one.
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["t5", "experts"])
def test_bfloat16_steps_run_on_cpu(variant):
  """XLA:CPU lacks some bfloat16 dots; every one that is used must exist."""
  _, losses, norms, _ = train(variant, dtype="bfloat16")
  assert np.isfinite(norms).all()
  if variant in TRAINED:
    np.testing.assert_allclose(losses, alone(variant)[1], rtol=2e-2)


@pytest.mark.slow
def test_no_strategy_moves_activations_it_need_not(capfd):
  for variant in ("bert", "t5"):
    train(variant, "fsdp_tp", devices=8, microbatches=2, steps=1, dropout=0.05)
  assert "rematerialization" not in capfd.readouterr().err


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
  model = make_model("gpt", **DROPOUT)
  good, bad = make_batch("gpt"), make_batch("gpt")
  program = make_program(model, good)
  step = jax.jit(program.train_step(1))
  bad["weights"] = bad["weights"].copy()
  bad["weights"][0, 0] = np.inf
  state, _ = step(program.init(), good)
  kept = jax.tree.map(np.asarray, (state.params, state.opt_state))
  for count in (1, 2):
    state, metrics = step(state, bad)
    assert int(state.skipped) == int(metrics["skipped"]) == count
    jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, (state.params, state.opt_state)))
  assert int(state.step) == 3
  state, metrics = step(state, good)
  assert int(metrics["skipped"]) == 0
  assert not np.array_equal(state.params["embed"]["token"], kept[0]["embed"]["token"])


@pytest.mark.slow_but("nan")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_changes_no_parameter_and_is_counted(value, monkeypatch):
  """The gradients are finite, the update is not: it is checked as well."""

  def broken(grads, state, params):
    return jax.tree.map(lambda g: g * 0 + value, grads), jax.tree.map(lambda s: s + 1, state)

  tx = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), broken)
  monkeypatch.setitem(OPTIMIZERS, "broken", lambda config, axes: tx)
  batch = make_batch("gpt")
  program = make_program(make_model("gpt"), batch, name="broken")
  step, state = jax.jit(program.train_step(1)), program.init()
  kept = jax.tree.map(np.asarray, state.params)
  for count in (1, 2):
    state, metrics = step(state, batch)
    assert int(metrics["skipped"]) == count and np.isfinite(metrics["grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, state.params))


@pytest.mark.slow
def test_single_values_of_an_update_that_are_not_finite_stay_as_they_are():
  """With epsilon=0, Adam divides 0 by 0 at the parameters of positions that no row reaches."""
  batch = make_batch("gpt")
  program = make_program(make_model("gpt"), batch, name="adam", epsilon=0.0)
  first = program.init()
  state, metrics = jax.jit(program.train_step(1))(first, batch)
  assert int(metrics["skipped"]) == 0
  for leaf in jax.tree.leaves((state.params, state.opt_state)):
    assert np.isfinite(leaf).all()
  before, after = (np.asarray(s.params["embed"]["position"]) for s in (first, state))
  used = batch["positions"].max() + 1
  np.testing.assert_array_equal(after[used:], before[used:])
  assert (after[:used] != before[:used]).mean() > 0.99


def test_the_loss_is_a_mean_over_the_global_batch_not_over_microbatches():
  """Half of the rows have a single target; in a microbatch of their own they must not weigh more."""
  model = make_model("gpt")
  batch = make_batch("gpt")
  batch["weights"] = batch["weights"] * 0
  batch["weights"][0::2, :3] = 1
  batch["weights"][1::2, 0] = 1
  program = make_program(model, batch)
  results = []
  for microbatches in (1, 2):
    _, metrics = jax.jit(program.train_step(microbatches))(program.init(), batch)
    results.append((float(metrics["loss"]), float(metrics["grad_norm"]), float(metrics["accuracy"])))
  np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
  logits = np.asarray(model.logits(program.init().params, batch), np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nll = -np.take_along_axis(log_p, batch["targets"][:, :, None], -1)[..., 0]
  assert results[0][0] == pytest.approx((nll * batch["weights"]).sum() / batch["weights"].sum(), rel=1e-5)


def test_evaluation_is_without_dropout_and_extras_and_the_same_in_parts():
  model = make_model("gpt", **DROPOUT)
  batch = make_batch("gpt")
  program = make_program(model, batch, loss=LossConfig(label_smoothing=0.1, z_loss=1e-2))
  params = jax.jit(model.init)(jax.random.key(0))
  whole, parts = (program.eval_step(n)(params, batch) for n in (1, 4))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, parts)
  assert jax.device_get(whole.loss) == jax.device_get(whole.objective)
  assert float(whole.loss["labels"][1]) == batch["weights"].sum()


@pytest.mark.slow
def test_loss_and_predictions_share_the_forward_pass():
  """One program has as many matrix products as that of the loss alone, and the rows keep their order in parts."""
  model = make_model("bert", **{"head.name": "sequence_classification", "head.num_labels": 3})
  batch = {name: x for name, x in make_batch("bert").items() if not name.startswith("mlm")}
  batch |= {"targets": np.arange(16, dtype=np.int32) % 3, "weights": np.ones(16, np.float32)}
  program = make_program(model, batch)
  programs = [
    step.lower(model.shapes(), batch).compile() for step in (program.eval_step(1), program.prediction_step(1))
  ]
  loss_alone, both = (program.as_text().count(" dot(") for program in programs)
  assert loss_alone == both > 0
  params = jax.jit(model.init)(jax.random.key(0))
  expected = model.predict(params, batch)["probabilities"]
  for microbatches in (1, 4):
    terms, predictions = program.prediction_step(microbatches)(params, batch)
    np.testing.assert_allclose(predictions["probabilities"], expected, rtol=1e-5)
    assert float(terms.loss["labels"][1]) == 16
