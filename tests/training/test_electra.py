"""ELECTRA: the generator's draws, both losses against slow oracles, and the same step however it is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.test_objectives import ORDINARY, draws_for, objective_of, one_segment
from tests.support.tiny import SIZES, VOCAB, make_batch, make_program
from tfm_jax.errors import UserError
from tfm_jax.hf.tables.bert import ELECTRA as TABLE
from tfm_jax.models.heads.head import Output
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.heads.terms import result
from tfm_jax.models.model import Model, admits, resolve_model
from tfm_jax.models.networks.generator import corrupted, generator_config, gumbel
from tfm_jax.ops import hashing
from tfm_jax.ops.dropout import Noise, row_keys
from tfm_jax.ops.losses import LossConfig, Unembedding
from tfm_jax.runtime.trees import flat
from tfm_jax.sharding.placement import Placement, make_mesh, single_device
from tfm_jax.sharding.strategy import STRATEGIES, ShardingConfig, mesh_sizes
from tfm_jax.training.config import from_dict, resolve
from tfm_jax.training.loss import make_loss

TINY = SIZES | {"embedding_dim": 16, "dropout": 0.0, "attention_dropout": 0.0, "head.name": "electra"}
PLAIN = {"name": "sgd", "learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0}


def make_electra(family="electra", strategy="dp", devices=1, **changes):
  config = resolve_model(family, TINY | {"head.generator": 0.5} | changes)
  st = single_device()
  if devices > 1:
    sizes = mesh_sizes(ShardingConfig(strategy), devices, admits(family, config, VOCAB))
    st = Placement(STRATEGIES[strategy], make_mesh(sizes, jax.devices()[:devices]))
  return Model(family, config, st, VOCAB)


def masked_batch(rows=8):
  batch = make_batch("bert", rows=rows)
  np.put_along_axis(batch["inputs"], batch["mlm_positions"], 4, axis=1)
  batch["weights"][:, 3] = 0  # a slot without use, at any place
  batch["mlm_positions"][:, 3] = 0
  return batch


@functools.cache
def params_of(family="electra"):
  params = jax.jit(make_electra(family).init)(jax.random.key(1))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


# ---- rows


def test_every_chosen_token_becomes_the_mask():
  tokens = np.random.default_rng(0).integers(*ORDINARY, (50, 64)).astype(np.int32)
  out = objective_of("electra", 64).make(draws_for(50), one_segment(tokens, np.full(50, 64)))
  hidden = out["inputs"] != tokens
  assert (out["inputs"][hidden] == 4).all() and (hidden.sum(axis=1) == 10).all()
  assert (np.sort(np.nonzero(hidden)[1].reshape(50, -1)) == out["mlm_positions"]).all()


# ---- draws


def test_draws_follow_the_distribution_of_the_generator():
  B, V = 4000, 5
  p = np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32)
  w = np.zeros((128, 8), np.float32)
  w[:V, 0] = np.log(p)
  output = Output(jnp.ones((B, 2, 8)), Unembedding(jnp.asarray(w), None), V)
  batch = {
    "inputs": np.full((B, 6), 4, np.int32),
    "mlm_positions": np.tile(np.array([1, 3], np.int32), (B, 1)),
    "targets": np.full((B, 2), 1, np.int32),
    "weights": np.ones((B, 2), np.float32),
    "rows": np.arange(B, dtype=np.int32),
  }
  config = resolve_model("electra", TINY)
  written, replaced = corrupted(config, single_device(), output, batch, None)
  written, replaced = np.asarray(written), np.asarray(replaced)
  assert (written[:, [0, 2, 4, 5]] == 4).all() and not replaced[:, [0, 2, 4, 5]].any()
  for place in (1, 3):
    shares = np.bincount(written[:, place], minlength=V) / B
    assert np.abs(shares - p).max() < 5 * np.sqrt(0.25 / B)
  np.testing.assert_array_equal(replaced[:, [1, 3]], written[:, [1, 3]] != 1)
  assert abs(np.corrcoef(written[:, 1], written[:, 3])[0, 1]) < 0.1
  other = corrupted(config, single_device(), output, batch, Noise(jnp.uint32(0), jnp.int32(1), batch["rows"]))
  assert (np.asarray(other.inputs_BT)[:, 1] != written[:, 1]).mean() > 0.5


def test_the_noise_is_finite_for_all_bits():
  noise = np.asarray(gumbel(jnp.array([0, 2**32 - 1], jnp.uint32)))
  assert np.isfinite(noise).all() and noise[0] < -2 and noise[1] > 15


@functools.cache
def computed():
  """(batch, noise, outputs, means of the terms) of one batch: one program."""
  model, params, batch = make_electra(), params_of(), masked_batch()
  noise = Noise(jnp.uint32(7), jnp.int32(3), jnp.asarray(batch["rows"]))
  st = model.placement

  def both(params):
    outputs = model.apply(params, batch, noise)
    terms = HEADS["electra"].loss(model.config, st, outputs, batch, LossConfig())
    return {name: result(st, output) for name, output in outputs.items()}, terms.means()

  outputs, means = jax.jit(both)(params)
  return (
    batch,
    noise,
    {k: np.asarray(x, np.float64) for k, x in outputs.items()},
    {k: float(x) for k, x in means.items()},
  )


def test_a_draw_is_the_largest_logit_after_hashed_gumbel_noise():
  batch, noise, outputs, _ = computed()
  keys = np.asarray(row_keys(noise, 0, 100))
  ids = batch["inputs"].copy()
  logits = outputs["generator"]
  for r in range(len(ids)):
    for j, place in enumerate(batch["mlm_positions"][r]):
      if batch["weights"][r, j]:
        index = jnp.asarray(place * 256 + np.arange(VOCAB), jnp.uint32)
        u = (np.asarray(hashing.bits(index, jnp.uint32(keys[r])) >> 9) + 0.5) / 2**23
        ids[r, place] = np.argmax(logits[r, j] - np.log(-np.log(u)))
  truth = batch["inputs"].copy()
  for r in range(len(ids)):
    used = batch["weights"][r] > 0
    truth[r, batch["mlm_positions"][r, used]] = batch["targets"][r, used]
  np.testing.assert_array_equal(outputs["replaced"], ids != truth)
  # The model reads what was written, without the generator.
  plain = {name: x for name, x in batch.items() if name != "mlm_positions"} | {"inputs": ids}
  alone = jax.jit(make_electra().logits)(params_of(), plain)
  np.testing.assert_allclose(alone, outputs["logits"], atol=1e-5)


# ---- losses


def test_both_losses_and_the_metrics_against_a_slow_oracle():
  batch, _, outputs, means = computed()
  log_p = jax.nn.log_softmax(outputs["generator"])
  nll = -np.take_along_axis(np.asarray(log_p), batch["targets"][..., None], -1)[..., 0]
  used, real = batch["weights"] > 0, batch["segment_ids"] > 0
  y, replaced = outputs["logits"], outputs["replaced"] > 0
  p = 1 / (1 + np.exp(-y))
  binary = -np.log(np.where(replaced, p, 1 - p))
  assert means["loss_labels"] == pytest.approx(nll[used].mean(), rel=1e-4)
  assert means["loss_replaced"] == pytest.approx(binary[real].mean(), rel=1e-4)
  assert means["objective"] == pytest.approx(nll[used].mean() + 50 * binary[real].mean(), rel=1e-4)
  assert means["original"] == pytest.approx(1 - replaced[real].mean(), rel=1e-5)
  assert means["replaced_accuracy"] == pytest.approx(((y > 0) == replaced)[real].mean(), rel=1e-5)
  assert means["replaced_recall"] == pytest.approx((y > 0)[real & replaced].mean(), rel=1e-5)
  assert 0 < replaced.sum() <= used.sum()


@pytest.mark.slow
def test_the_tables_learn_from_both_and_the_draw_has_no_gradient():
  model, params, batch = make_electra(), params_of(), masked_batch()
  noise = Noise(jnp.uint32(7), jnp.int32(3), jnp.asarray(batch["rows"]))
  loss = make_loss(model, LossConfig())

  def gradients(name):
    mean = lambda params: (lambda pair: pair[0] / pair[1])(loss(params, batch, noise).objective[name])
    return {path: float(np.abs(x).max()) for path, x in flat(jax.jit(jax.grad(mean))(params)).items()}

  of_generator, of_model = gradients("labels"), gradients("replaced")
  for path in of_generator:
    shared = path.startswith("embed/") and "project" not in path
    generator = path.startswith("generator/")
    assert (of_generator[path] > 0) == (shared or generator), path
    assert (of_model[path] > 0) == (not generator), path


# ---- the same step however it is cut


@functools.cache
def stepped(microbatches, strategy="dp", devices=1, family="electra"):
  model, batch = make_electra(family, strategy, devices, dropout=0.1), masked_batch()
  program = make_program(model, batch, seed=5, beta1=0.0, grad_clip=0.0, **PLAIN)
  before = jax.device_get(params_of(family))
  state = program.init(jax.device_put(before, model.shardings()))
  state, metrics = program.compile(microbatches)(state, program.put(batch))
  return jax.device_get(metrics), flat(jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("microbatches", "strategy", "devices"),
  [(4, "dp", 1), (2, "fsdp_tp", 8), (1, "hsdp", 4)],
)
def test_a_step_is_the_same_under_microbatches_and_strategies(microbatches, strategy, devices):
  metrics, gradient = stepped(1)
  others, moved = stepped(microbatches, strategy, devices)
  for name in metrics:
    assert others[name] == pytest.approx(metrics[name], rel=1e-4), name
  for path, x in gradient.items():
    np.testing.assert_allclose(moved[path], x, rtol=0, atol=1e-4 * max(np.abs(x).max(), 1e-3), err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["modernbert", "t5_encoder", "gru_encoder"])
def test_every_encoder_has_a_generator(family):
  changes = {"embedding_dim": 0, "max_positions": 64}
  model, batch = make_electra(family, **changes), masked_batch()
  params = jax.jit(model.init)(jax.random.key(1))
  terms = jax.jit(make_loss(model, LossConfig()))(params, batch, None).means()
  assert all(np.isfinite(x) for x in terms.values()) and "loss_replaced" in terms


def test_the_generator_of_a_recurrent_encoder_reads_in_both_directions():
  model = make_electra("lstm_encoder", **{"head.generator": 0.4, "embedding_dim": 0})
  shapes = {path: leaf.shape for path, leaf in flat(model.shapes()).items() if path.startswith("generator/blocks")}
  assert {path.split("/")[2] for path in shapes} == {"rnn", "reverse"}
  assert shapes["generator/blocks/reverse/wh"] == (2, 6, 4, 6)  # half of 12 cells, the even number nearest to 12.8


# ---- sizes and settings


def test_the_small_model_and_its_generator_have_the_sizes_of_the_paper():
  sizes = {"num_layers": 12, "embed_dim": 256, "num_heads": 4, "mlp_dim": 1024, "embedding_dim": 128}
  config = resolve_model("electra", sizes | {"head.name": "electra"})
  generator = generator_config(config)
  assert (generator.num_layers, generator.embed_dim, generator.mlp_features) == (12, 64, 256)
  assert (generator.num_heads, generator.head_features, generator.embed_features) == (1, 64, 128)
  assert admits("electra", config, 30_522)["heads"] == (4, 1)
  # Grouped heads: 3 heads of the generator are not divided by 2.
  grouped = resolve_model("electra", TINY | {"num_heads": 6, "num_kv_heads": 3, "head_dim": 8, "head.generator": 0.5})
  assert (generator_config(grouped).num_heads, generator_config(grouped).kv_heads) == (3, 1)


def test_the_model_is_exported_without_its_generator_and_fine_tuned_from_the_same_paths():
  config, params = make_electra().config, flat(params_of())
  simpler, left = TABLE.simplify(config, params)
  alone = Model("electra", simpler, single_device(), VOCAB)
  assert simpler.head.name == "replaced_token_detection"
  assert {path: x.shape for path, x in left.items()} == {path: x.shape for path, x in flat(alone.shapes()).items()}


def test_settings_that_do_not_fit_are_refused():
  with pytest.raises(UserError, match=r"set head\.name=electra"):
    resolve(from_dict({"family": "electra", "objective": {"name": "electra"}}))
  with pytest.raises(UserError, match=r"head\.generator=1\.5"):
    resolve(from_dict({"family": "electra", "head": {"name": "electra", "generator": 1.5}}))
