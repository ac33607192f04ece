"""Experts: routing, capacity and losses against plain loops; nothing depends on how a batch is cut."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.launching import SHORT_RUN, tiny, write_experiment
from tests.support.plain_decoder import forward
from tests.support.tiny import VOCAB, make_batch, make_model, make_program, placement
from tfm_jax.errors import UserError
from tfm_jax.models.config import param_axes
from tfm_jax.models.model import resolve_model
from tfm_jax.ops import experts as ops
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import total
from tfm_jax.runtime.trees import flat
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit
from tfm_jax.training.loss import LossConfig, make_loss
from tfm_jax.training.optimization.optimizer import per_matrix

SMALL = {"num_layers": 1, "experts.count": 8}
# name -> variant, changes
CASES = {
  "mixtral": ("llama", SMALL),
  "switch": ("gpt", SMALL | {"experts.top_k": 1, "num_layers": 2}),
  "groups": ("llama", SMALL | {"experts.group": 6, "num_layers": 2}),
  "no limit": ("llama", SMALL | {"experts.capacity": 0.0}),
}


def disturbed(model, seed=0):
  """Parameters of which none is zero or one."""
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda x: np.float32(0.3) * draw.standard_normal(x.shape, np.float32), model.shapes())


def noise_of(batch):
  """What makes a call one of training, with dropout rates of 0."""
  return Noise(jnp.uint32(0), jnp.int32(0), batch["rows"])


@pytest.mark.slow_but("mixtral-False", "switch-True", "groups-True")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_outputs_losses_and_counts_equal_plain_loops(case, training):
  variant, changes = CASES[case]
  model = make_model(variant, **changes)
  params, batch = disturbed(model), make_batch(variant, rows=3)
  batch["segment_ids"][0, 9:] = 0  # rows of unequal length, so that means of rows differ from that of tokens
  loss, noise = make_loss(model, LossConfig()), noise_of(batch) if training else None
  mine, means = jax.jit(
    lambda p: (model.logits(p, batch, noise), loss(p, batch, noise).means() | {"terms": loss(p, batch, noise)})
  )(params)
  expected, done = forward(model.config, params, batch, training)
  real = batch["segment_ids"] != 0
  np.testing.assert_allclose(mine[real], expected[..., :VOCAB][real], atol=2e-5 * np.abs(expected).max())
  layers, n = model.config.num_layers, real.sum()
  total_of = lambda name: sum(layer[name] for row in done for layer in row)
  for name in ("balance", "router_z"):
    assert means[name] == pytest.approx(total_of(name) / (layers * n), rel=1e-5), name
  objective = means["terms"].objective
  if not training:
    assert "dropped" not in means and set(objective) == {"labels"}
    return
  dropped = total_of("dropped")
  assert means["dropped"] == pytest.approx(dropped / (layers * n * model.config.experts.top_k), rel=1e-6)
  assert (dropped > 0) == (case != "no limit")
  # The published losses: summed over layers, with their factors.
  extra = 0.01 * total_of("balance") / n + 0.001 * total_of("router_z") / n
  assert means["objective"] - means["loss"] == pytest.approx(extra, rel=1e-3)


def test_places_are_given_in_the_order_of_the_row_and_none_to_padding():
  chosen = jnp.array([[[0, 1], [0, 2], [1, 0], [0, 1], [2, 0]]])
  real = jnp.array([[True, False, True, True, True]])
  X = 3 * 2
  expected = [[0, 2], [X, X], [3, 1], [X, X], [4, X]]  # expert 0 has tokens 0 and 2, expert 1 tokens 0 and 2
  np.testing.assert_array_equal(ops.places(chosen, real, 3, 2)[0], expected)
  assert [ops.places_per_expert(f, 16, 8, 2) for f in (1.0, 1.25, 1.3, 0.01, 100.0)] == [4, 5, 6, 1, 16]


def test_the_gates_of_several_sum_to_one_and_that_of_one_is_its_probability():
  logits = jnp.log(jnp.array([[[0.5, 0.1, 0.3, 0.1]]]))
  two, one = ops.choose(logits, 2), ops.choose(logits, 1)
  np.testing.assert_array_equal(two.experts_BTK[0, 0], [0, 2])
  np.testing.assert_allclose(two.gates_BTK[0, 0], [0.625, 0.375], rtol=1e-6)
  np.testing.assert_allclose(one.gates_BTK[0, 0], [0.5], rtol=1e-6)


def test_an_even_load_has_a_balance_of_one_and_a_collapsed_one_of_the_number_of_experts():
  real = jnp.ones((2, 4), bool)
  collapsed = ops.choose(jnp.full((2, 4, 4), -50.0).at[..., 1].set(50.0), 1)
  np.testing.assert_allclose(ops.balance_B(collapsed, real), 4 * 4, rtol=1e-6)
  even = ops.choose(jnp.tile(50.0 * jnp.eye(4)[None], (2, 1, 1)), 1)
  np.testing.assert_allclose(ops.balance_B(even, real), 4, rtol=1e-6)
  np.testing.assert_allclose(ops.z_B(jnp.zeros((1, 3, 4)), jnp.array([[True, False, True]])), 2 * np.log(4) ** 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copies_and_products_send_alike_and_so_do_their_gradients(dtype):
  draw = np.random.default_rng(0)
  logits = jnp.asarray(draw.standard_normal((3, 12, 4)), jnp.float32)
  choice, x = ops.choose(logits, 2), jnp.asarray(draw.standard_normal((3, 12, 6)), dtype)
  real = jnp.asarray(draw.random((3, 12)) < 0.8)
  C = ops.places_per_expert(0.9, 12, 4, 2)
  place = ops.places(choice.experts_BTK, real, 4, C)
  factors = jnp.asarray(draw.standard_normal((1, 4 * C, 1)), dtype)

  def run(form, x, gates):
    send, gather = form
    y = gather(send(x, place, 4 * C, "cpu") * factors, place, gates, "cpu")
    return y, jnp.square(y.astype(jnp.float32)).sum()

  both = [
    jax.jit(jax.value_and_grad(lambda *a, f=form: run(f, *a)[1], argnums=(0, 1)))(x, choice.gates_BTK)
    for form in (ops.COPIES, ops.PRODUCTS)
  ]
  for mine, other in zip(*map(jax.tree.leaves, both), strict=True):
    mine, other = np.asarray(mine, np.float32), np.asarray(other, np.float32)
    np.testing.assert_allclose(mine, other, atol=(1e-5 if dtype == "float32" else 3e-2) * np.abs(other).max())
  # Plainly: what has a place comes back times its place's factor and its gate.
  y = run(ops.COPIES, x, choice.gates_BTK)[0]
  for b, t in ((0, 0), (1, 5), (2, 11)):
    own = [float(g * factors[0, p, 0]) for g, p in zip(choice.gates_BTK[b, t], place[b, t], strict=True) if p < 4 * C]
    np.testing.assert_allclose(
      np.asarray(y[b, t], np.float32), sum(own) * np.asarray(x[b, t], np.float32), rtol=2e-2, atol=2e-2
    )


def test_no_later_token_takes_the_place_of_an_earlier_one():
  model = make_model("llama", **SMALL | {"experts.capacity": 0.6})
  params, batch = disturbed(model), make_batch("llama", rows=2)
  del batch["segment_ids"]
  compiled = jax.jit(lambda batch: model.logits(params, batch, noise_of(batch)))
  before = np.asarray(compiled(batch))
  for at in (3, 9):
    changed = batch | {"inputs": np.where(np.arange(16) >= at, (batch["inputs"] + 7) % VOCAB, batch["inputs"])}
    after = np.asarray(compiled(changed))
    np.testing.assert_array_equal(before[:, :at], after[:, :at])
    assert np.abs(before[:, at:] - after[:, at:]).max() > 1e-3


@functools.cache
def stepped(microbatches=1, strategy="dp", devices=1):
  """(metrics, gradient by path): one step of SGD with rate 1 moves each parameter by its gradient."""
  model = make_model("experts", placement(strategy, devices), num_layers=1, **{"experts.group": 8})
  batch = make_batch("experts")
  batch["segment_ids"][2:4, 5:] = 0
  batch["weights"] *= batch["segment_ids"] > 0
  sgd = {"name": "sgd", "learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0}
  program = make_program(model, batch, beta1=0.0, grad_clip=0.0, **sgd)
  before = disturbed(model)
  state = program.init(jax.device_put(before, model.shardings()))
  state, metrics = program.compile(microbatches)(state, program.put(batch))
  return jax.device_get(metrics), flat(jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params)), state


@pytest.mark.slow_but("(1, 'fsdp_ep', 8)")
@pytest.mark.parametrize("cut", [(2, "fsdp_ep", 8), (1, "fsdp_ep", 8), (1, "fsdp_tp", 8)], ids=str)
def test_a_step_does_not_depend_on_how_the_batch_and_the_experts_are_cut(cut):
  metrics, gradient, _ = stepped()
  other_metrics, other, state = stepped(*cut)
  assert metrics["dropped"] > 0 and metrics.keys() == other_metrics.keys()
  for name in metrics:
    np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-5, atol=1e-7, err_msg=name)
  for path in gradient:
    np.testing.assert_allclose(other[path], gradient[path], atol=2e-6 * metrics["grad_norm"], err_msg=path)
  if cut[1] == "fsdp_ep":  # each device has an expert of its own
    wi = state.params["blocks"]["mlp"]["experts"]["wi"]
    assert wi.sharding.shard_shape(wi.shape) == (1, 1, 32, 64)


def test_tokens_go_to_the_experts_and_experts_to_no_other_device():
  model = make_model("experts", placement("fsdp_ep", 8), num_layers=1)
  program = make_program(model, make_batch("experts"))
  text = program.compile(1).as_text()
  assert "all-to-all" in text
  assert "f32[8,32,2,64]" not in text and "f32[1,8,32,64]" not in text  # the weights of all experts, gathered


def test_gradients_reach_router_and_experts_through_the_plain_derivative():
  model, batch = make_model("experts", num_layers=1), make_batch("experts", rows=8)
  loss, params = make_loss(model, LossConfig()), disturbed(model)
  objective = jax.jit(lambda p: total(loss(p, batch, noise_of(batch)).objective))
  gradient = jax.jit(jax.grad(objective))(params)["blocks"]["mlp"]
  for name, x in flat(gradient).items():
    place = np.unravel_index(np.argmax(np.abs(x)), x.shape)
    step, moved = 2e-4 if name == "router" else 1e-3, {}  # a small one changes no choice
    for sign in (1, -1):
      tree = jax.tree.map(np.copy, params)
      flat(tree["blocks"]["mlp"])[name][place] += sign * step
      moved[sign] = float(objective(tree))
    assert (moved[1] - moved[-1]) / (2 * step) == pytest.approx(float(x[place]), rel=0.05), name


def test_an_optimizer_of_matrices_sees_each_expert_alone():
  import optax

  axes = {"w": param_axes("blocks/mlp/experts/wi")}
  assert axes["w"].names == ("layers", "experts", "embed", "mlp") and (axes["w"].layers, axes["w"].inputs) == (2, 1)
  draw = np.random.default_rng(0)
  w, g = ({"w": jnp.asarray(draw.standard_normal((2, 3, 4, 5)), jnp.float32)} for _ in range(2))
  tx = optax.scale_by_factored_rms(min_dim_size_to_factor=2)
  mine = per_matrix(tx, axes)
  update, _ = mine.update(g, mine.init(w), w)
  for n in range(2):
    for e in range(3):
      one = jnp.asarray(w["w"][n, e])
      np.testing.assert_allclose(update["w"][n, e], tx.update(g["w"][n, e], tx.init(one), one)[0], rtol=1e-5)


@pytest.mark.slow
def test_a_run_reports_what_experts_did_resumes_under_another_strategy_and_generates(tmp_path):
  changes = {"experts__count": 4, "experts__capacity": 1.0, "train__steps": 4, "model__dropout": 0.0}
  experiment, path = write_experiment(tmp_path / "experiment"), tmp_path / "run"
  fit(tiny(experiment, **SHORT_RUN | changes), path)
  fit(tiny(experiment, **SHORT_RUN | changes | {"train__steps": 6, "sharding__strategy": "fsdp_ep"}), path)
  records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  for record in records:
    assert 0.9 < record["balance"] < 4 and record["router_z"] > 0
    assert ("dropped" in record) == (record["split"] == "train")
  assert records[-1]["step"] == 6 and any(record.get("dropped", 0) > 0 for record in records)
  entry = json.loads((path / "run.json").read_text())[-1]
  assert entry["active_parameters"] == entry["parameters"] - 2 * (2 * 32 * 64 + 64 + 32)
  run = load_run(path)
  assert run.model.config.experts.count == 4 and run.generate(["the cat"], max_new_tokens=4)


def test_parameters_are_counted_in_all_and_as_a_token_uses_them():
  plain, routed = make_model("llama"), make_model("experts")
  D, F, N, E, K = 32, 64, 2, 8, 2
  ffn, router = 3 * D * F * N, D * E * N
  assert routed.parameter_count() == plain.parameter_count() + (E - 1) * ffn + router
  assert routed.parameter_count(active=True) == plain.parameter_count() + (K - 1) * ffn + router
  assert plain.parameter_count(active=True) == plain.parameter_count()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"experts.count": 4, "experts.top_k": 5}, r"experts.top_k=5 must lie between 1 and experts.count=4"),
    ({"experts.count": 4, "experts.top_k": 0}, r"experts.top_k=0 must lie"),
    ({"experts.count": -1}, r"experts.count=-1 must not be negative"),
    ({"experts.count": 4, "experts.capacity": -1.0}, r"experts.capacity=-1.0 must not"),
    ({"experts.count": 4, "inner_dropout": True, "dropout": 0.1}, r"experts.count=4: .*model.inner_dropout=true"),
  ],
)
def test_impossible_experts_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    resolve_model("gpt", changes)
