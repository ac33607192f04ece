"""Splash attention and grouped heads against plain attention; what each cannot do is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.pages import add_example
from tests.support.tiny import VOCAB, make_batch, make_model, placement
from tfm_jax.errors import UserError
from tfm_jax.models.model import resolve_model
from tfm_jax.ops.attention import KERNELS, attention, find_kernel
from tfm_jax.ops.kernel import Need
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.splash import splash_attention
from tfm_jax.sharding.placement import Placement, make_mesh
from tfm_jax.sharding.strategy import AXES, STRATEGIES, Strategy
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.config import from_dict, resolve

BATCH, SCALE = 2, 0.3


def normal(shape, seed):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def segments_of(length, parts, seed=0):
  """Segment ids [BATCH, length], cut at other places in each row; the last part is padding (0)."""
  draw = np.random.default_rng(seed)
  cuts = [np.sort(draw.choice(np.arange(1, length), parts - 1, replace=False)) for _ in range(BATCH)]
  ids = np.stack([np.searchsorted(c, np.arange(length), "right") + 1 for c in cuts])
  return np.where(ids == parts, 0, ids).astype(np.int32)


def close(mine, other):
  """Equal but for rounding, in proportion to the largest."""
  np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max())


def arrays(queries, keys, heads, kv_heads, features):
  return (
    normal((BATCH, queries, heads, features), 1),
    normal((BATCH, keys, kv_heads, features), 2),
    normal((BATCH, keys, kv_heads, features), 3),
  )


def plain(q, k, v, segments, causal):
  """Attention with each head of keys and values repeated for its group."""
  k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
  mask = Mask(causal, 0, *segments).dense(q.shape[1], k.shape[1])
  return attention(q, k, v, mask_BTS=mask, bias_HTS=None, scale=SCALE, platform="cpu")


def splash(q, k, v, segments, causal):
  return splash_attention(q, k, v, *segments, causal=causal, scale=SCALE, interpret=True)


CASES = {
  "causal, segments": (256, 256, 2, 2, 64, True, True),
  "both ways, segments, wide heads": (256, 256, 2, 2, 128, False, True),
  "causal, segments, grouped": (256, 256, 4, 2, 64, True, True),
  "one group": (128, 128, 4, 1, 64, False, False),
  "across, segments": (128, 256, 2, 2, 64, False, True),
}


@pytest.mark.slow_but("causal, segments")
@pytest.mark.parametrize("case", CASES)
def test_splash_attention_and_its_gradients_equal_plain_attention(case):
  queries, keys, heads, kv_heads, features, causal, packed = CASES[case]
  inputs = arrays(queries, keys, heads, kv_heads, features)
  segments = (None, None)
  if packed:
    theirs = segments_of(keys, 4)
    segments = (theirs if queries == keys else segments_of(queries, 4, seed=1), theirs)
  counted = np.ones((BATCH, queries), bool) if segments[0] is None else segments[0] > 0
  weights = normal((BATCH, queries, heads, features), 4) * counted[:, :, None, None]  # padding has no result

  def results(f):
    y, pull = jax.vjp(lambda *x: f(*x, segments, causal), *inputs)
    return y, *pull(weights)

  (y, *gradients), (y_plain, *plain_gradients) = (jax.jit(functools.partial(results, f))() for f in (splash, plain))
  assert np.isfinite(y).all()
  close(y[counted], y_plain[counted])
  for mine, other in zip(gradients, plain_gradients, strict=True):
    assert mine.shape == other.shape
    close(mine, other)


@pytest.mark.parametrize("causal", [True, False])
def test_nothing_passes_between_segments_or_from_later_tokens(causal):
  q, k, v = arrays(256, 256, 2, 2, 64)
  segments = segments_of(256, 3)
  run = jax.jit(lambda k, v: splash(q, k, v, (segments, segments), causal))
  before = np.asarray(run(k, v))
  kept = segments == 1
  others = jnp.asarray(~kept[:, :, None, None])
  after = np.asarray(run(jnp.where(others, k + 5, k), jnp.where(others, 100 * v, v)))
  np.testing.assert_array_equal(before[kept], after[kept])
  assert np.abs(before[segments == 2] - after[segments == 2]).max() > 1
  later = jnp.asarray((np.arange(256) >= 100)[None, :, None, None])
  after = np.asarray(run(jnp.where(later, k + 5, k), jnp.where(later, 100 * v, v)))
  earlier = kept & (np.arange(256) < 100)[None]
  assert earlier.any()
  if causal:
    np.testing.assert_array_equal(before[earlier], after[earlier])
  else:
    assert np.abs(before[earlier] - after[earlier]).max() > 1


def logits_and_gradient(model, params, batch):
  """Logits of the true vocabulary where there is no padding, and the gradient of a number made of them."""
  real = (batch["segment_ids"] > 0)[:, :, None]

  def total(params):
    y = jnp.where(real, model.logits(params, batch), 0)
    return (y * normal((1, 1, VOCAB), 7)).sum() / real.sum(), y

  (_, logits), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
  return np.asarray(logits), jax.tree.map(np.asarray, gradient)


def params_of(**changes):
  """Fresh parameters of a gpt, disturbed so that no bias is zero."""
  params = jax.jit(make_model("gpt", **changes).init)(jax.random.key(1))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize(("kv_heads", "strategy", "devices"), [(0, "dp", 1), (2, "fsdp_tp", 8)])
def test_a_model_with_splash_attention_equals_one_without(kv_heads, strategy, devices):
  sizes = {"num_layers": 1, "max_positions": 128, "num_kv_heads": kv_heads, "positions": "rotary"}
  params, batch = params_of(**sizes), make_batch("gpt", rows=4, length=128)
  st = placement(strategy, devices, **({"model": 2, "data": 4} if devices > 1 else {}))
  mine = logits_and_gradient(make_model("gpt", st, attention="splash", **sizes), params, batch)
  other = logits_and_gradient(make_model("gpt", attention="xla", **sizes), params, batch)
  close(mine[0], other[0])
  jax.tree.map(close, mine[1], other[1])


def test_splash_attention_is_really_used():
  batch = make_batch("gpt", rows=2, length=128)
  program = lambda **changes: str(
    jax.make_jaxpr(make_model("gpt", max_positions=128, num_layers=1, **changes).logits)(
      params_of(max_positions=128, num_layers=1), batch
    )
  )
  assert "pallas_call" in program(attention="splash")
  assert "pallas_call" not in program(attention="auto")  # this is no TPU


def repeated(params, groups):
  """The parameters of a model with full heads: each head of keys and values stands once for each of its group."""

  def full(path, x):
    name = path[-1].key
    return jnp.repeat(x, groups, axis={"w": 2, "b": 1}[name[0]]) if name in ("wk", "wv", "bk", "bv") else x

  return jax.tree.map_with_path(full, params)


@pytest.mark.slow
@pytest.mark.parametrize(("positions", "strategy", "devices"), [("learned", "dp", 1), ("rotary", "fsdp_tp", 8)])
def test_grouped_heads_equal_full_heads_that_are_alike(positions, strategy, devices):
  params, batch = params_of(num_kv_heads=2, positions=positions), make_batch("gpt", rows=8)
  assert params["blocks"]["attn"]["wk"].shape == (2, 32, 2, 8) and params["blocks"]["attn"]["bv"].shape == (2, 2, 8)
  st = placement(strategy, devices, **({"model": 2, "data": 4} if devices > 1 else {}))
  grouped = make_model("gpt", st, num_kv_heads=2, positions=positions)
  if devices > 1:  # really cut: both heads of keys apart
    params = jax.device_put(params, grouped.shardings())
    assert params["blocks"]["attn"]["wk"].sharding.shard_shape((2, 32, 2, 8)) == (2, 8, 1, 8)
  logits, gradient = logits_and_gradient(grouped, params, batch)
  full, gradient_full = logits_and_gradient(make_model("gpt", positions=positions), repeated(params, 2), batch)
  close(logits, full)
  for name, axis in (("wk", 2), ("wv", 2), ("bv", 1)):  # a shared head has the gradients of its group together
    mine, theirs = gradient["blocks"]["attn"][name], gradient_full["blocks"]["attn"][name]
    apart = theirs.reshape(*theirs.shape[:axis], 2, 2, *theirs.shape[axis + 1 :])
    close(mine, apart.sum(axis + 1))
  close(gradient["blocks"]["attn"]["wq"], gradient_full["blocks"]["attn"]["wq"])
  close(gradient["embed"]["token"], gradient_full["embed"]["token"])


def test_tensor_parallelism_takes_no_more_parts_than_heads_of_keys():
  config = config_of(model={"num_kv_heads": 2}, sharding={"strategy": "tp"})
  assert build_model(config, VOCAB, jax.devices()).placement.mesh.shape["model"] == 2
  with pytest.raises(UserError, match=r"sharding\.model=4"):
    build_model(config_of(model={"num_kv_heads": 2}, sharding={"strategy": "tp", "model": 4}), VOCAB, jax.devices())


SIZES = {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "dropout": 0.1, "attention_dropout": 0.0}
OBJECTIVES = {"gpt": "causal", "transformer": "seq2seq"}


def config_of(family="gpt", model=None, data=None, sharding=None, objective=""):
  """A resolved configuration."""
  return resolve(
    from_dict(
      {
        "family": family,
        "model": SIZES | (model or {}),
        "data": {"seq_len": 256} | (data or {}),
        "objective": {"name": objective or OBJECTIVES[family]},
        "sharding": sharding or {},
      }
    )
  )


@pytest.mark.parametrize("kv_heads", [3, 8])
def test_heads_that_cannot_be_grouped_are_refused(kv_heads):
  with pytest.raises(UserError, match=f"model.num_kv_heads={kv_heads}.*model.num_heads=4"):
    config_of(model={"num_kv_heads": kv_heads})


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"model": {"attention_dropout": 0.1}}, r"model\.attention=splash .*model\.attention_dropout=0\.1"),
    ({"model": {"attention_dropout": None}}, r"model\.attention_dropout=0\.1"),  # the family's own
    ({"model": {"positions": "relative"}}, r"model\.attention=splash .*model\.positions=relative"),
    ({"data": {"seq_len": 200}}, r"data\.seq_len=200 .*128.*model\.attention=splash"),
    ({"family": "transformer", "data": {"seq_len": 100}}, r"data\.seq_len=100 "),
    ({"family": "transformer", "data": {"target_len": 100}}, r"data\.target_len=100 "),
    ({"family": "transformer", "objective": "span_corruption"}, r"data\.target_len=\d+ \(the objective's own"),
  ],
)
def test_what_splash_attention_cannot_do_is_refused_in_one_line(changes, named):
  changes = changes | {"model": {"attention": "splash"} | changes.get("model", {})}
  with pytest.raises(UserError, match=named) as caught:
    config_of(**changes)
  assert "\n" not in str(caught.value)
  changes["model"] = changes["model"] | {"attention": "auto"}
  assert config_of(**changes).model.attention == "auto"  # which takes plain attention there


def test_splash_attention_away_from_tpus_is_refused():
  config = config_of(model={"attention": "splash"})  # resolves: the config may be for another machine
  assert config_of("transformer", {"attention": "splash"}, {"target_len": 128}).model.attention == "splash"
  with pytest.raises(UserError, match=r"model\.attention=splash needs a TPU, not a cpu"):
    build_model(config, VOCAB, jax.devices()[:1])


NEEDS = {
  "platform": ({"platform": "gpu"}, "needs a TPU, not a gpu"),
  "dropout": ({"dropout": 0.1}, r"no dropout, .*attention_dropout=0\.1"),
  "bias": ({"bias": True}, "adds no bias .* model.positions=relative and alibi"),
  "window": ({"window": 8}, "window.*=8"),
  "scale": ({"scale_by_layer": True}, "one scale for all layers"),
  "cache": ({"cache": True}, "cache of keys and values"),
  "cut": ({"cut": True}, "needs whole sequences, but the strategy splits them"),
  "uneven": ({"uneven": True}, "rows that the devices divide"),
  "lengths": ({"lengths": (256, 200)}, "multiples of 128 tokens, not 200"),
}


@pytest.mark.parametrize("case", NEEDS)
def test_each_need_that_splash_attention_cannot_serve_is_named(case):
  changes, words = NEEDS[case]
  need = Need(platform="tpu", lengths=(256, 128), groups=4)
  assert find_kernel("auto", need) is find_kernel("splash", need) is KERNELS["splash"]
  with pytest.raises(UserError, match=f"^model.attention=splash .*{words}.*model.attention=auto$"):
    find_kernel("splash", need._replace(**changes))
  assert find_kernel("auto", need._replace(**changes)) is KERNELS["cudnn" if case == "platform" else "xla"]


def test_plain_attention_serves_every_need():
  need = Need("cpu", (7, 9), 0.1, True, 8, True, 4, True, True, True, True, 2, "float32", 12, True, True, True, 9)
  assert not KERNELS["xla"].refuses(need) and all(need)


@pytest.mark.slow
def test_a_rule_that_cuts_sequences_is_refused_by_splash_attention(monkeypatch):
  """It would see the keys of its own device alone."""
  rules = (*STRATEGIES["dp"].rules, ("seq", ("context",)))
  monkeypatch.setitem(STRATEGIES, "cutting", Strategy(rules, preset=(("context", 2),)))
  sizes = {"num_layers": 1, "max_positions": 128}
  params, batch = params_of(**sizes), make_batch("gpt", rows=4, length=128)
  mesh = make_mesh(dict.fromkeys(AXES, 1) | {"data": 4, "context": 2}, jax.devices())
  cut = Placement(STRATEGIES["cutting"], mesh)
  with pytest.raises(UserError, match="the strategy splits them over devices"):
    jax.eval_shape(make_model("gpt", cut, attention="splash", **sizes).logits, params, batch)
  mine = logits_and_gradient(make_model("gpt", cut, attention="auto", **sizes), params, batch)
  other = logits_and_gradient(make_model("gpt", attention="xla", **sizes), params, batch)
  close(mine[0], other[0])
  whole = Placement(STRATEGIES["cutting"], make_mesh(dict.fromkeys(AXES, 1) | {"data": 8}, jax.devices()))
  jax.eval_shape(make_model("gpt", whole, attention="splash", **sizes).logits, params, make_batch("gpt", 0, 8, 128))


def test_short_rows_under_an_explicit_kernel_are_refused_and_parameters_are_made_all_the_same():
  model = make_model("gpt", attention="splash")
  assert model.shapes() == make_model("gpt").shapes()
  with pytest.raises(UserError, match=r"model\.attention=splash takes multiples of 128 tokens, not 16 and 16"):
    jax.eval_shape(model.logits, model.shapes(), make_batch("gpt"))
  cache = model.init_cache({}, 2, 16)  # a cache is read by whatever kernel can
  jax.eval_shape(model.decode, model.shapes(), {"inputs": np.zeros((2, 4), np.int32)}, cache)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("variant", "changes"), [("gpt", {"window.size": 3}), ("llama", {"num_kv_heads": 2}), ("t5", {})]
)
def test_a_kernel_is_one_file_and_one_row(variant, changes, monkeypatch):
  add_example(monkeypatch, "kernel")
  kernel, calls = KERNELS["running"], []
  counted = lambda *inputs, **options: calls.append(1) or kernel.attend(*inputs, **options)
  monkeypatch.setitem(KERNELS, "running", kernel._replace(attend=counted))
  params, batch = jax.jit(make_model(variant, **changes).init)(jax.random.key(1)), make_batch(variant, rows=2)
  if variant == "t5":
    with pytest.raises(UserError, match=r"model\.attention=running adds nothing to the logits"):
      make_model(variant, attention="running")
    return
  mine = make_model(variant, attention="running", **changes)
  other = make_model(variant, attention="xla", **changes)
  close(jax.jit(mine.logits)(params, batch), jax.jit(other.logits)(params, batch))
  assert calls
  calls.clear()
  cache = jax.eval_shape(lambda: mine.init_cache(params, 2, 9))
  jax.eval_shape(mine.decode, params, {"inputs": batch["inputs"][:, :4]}, cache)
  assert not calls  # the first of the table that serves


def test_an_unknown_kernel_is_refused():
  with pytest.raises(UserError, match=r"model\.attention='flash' is not one of auto, xla, tiles, cudnn, splash"):
    resolve_model("gpt", {"attention": "flash"})
