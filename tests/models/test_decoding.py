"""Decoding through the key-value cache equals the full forward, for every family, kind of position and strategy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import LENGTH, VOCAB, make_batch, make_model, params_of, placement
from tfm_jax.errors import UserError
from tfm_jax.models.cache import States
from tfm_jax.models.networks.network import side

# name -> variant, changes
CASES = {
  "learned": ("gpt", {}),
  "sinusoidal": ("gpt", {"positions": "sinusoidal", "max_positions": 0}),
  "relative": ("gpt", {"positions": "relative"}),
  "none": ("gpt", {"positions": "none"}),
  "window": ("gpt", {"window.size": 3}),
  "post-norm, unrolled": ("gpt", {"norm_order": "post", "scan": False}),
  "scaled by layer": ("gpt", {"scale_by_layer": True}),
  "rotary": ("llama", {}),
  "grouped": ("llama", {"num_kv_heads": 2}),
  "grouped, some windows": ("llama", {"num_kv_heads": 1, "window.size": 2, "window.global_every": 2}),
  "grouped, relative": ("gpt", {"positions": "relative", "num_kv_heads": 2}),
  "alibi": ("gpt", {"positions": "alibi", "num_kv_heads": 2, "window.size": 3, "window.global_every": 2}),
  "rezero, alibi": ("gpt", {"positions": "alibi", "norm_order": "rezero"}),
  "parallel": ("gpt", {"norm_order": "parallel"}),
  "normed queries": ("qwen3", {"num_kv_heads": 2}),
  "experts": ("experts", {"num_kv_heads": 2}),
  "one expert per token": ("gpt", {"experts.count": 4, "experts.top_k": 1}),
  "t5": ("t5", {}),
  "t5_1_1": ("t5_1_1", {"decoder_layers": 3}),
  "transformer": ("transformer", {}),
  "deepnorm": ("deepnorm", {}),
  "bart": ("bart", {}),
  "transformer, grouped": ("transformer", {"num_kv_heads": 2, "positions": "rotary"}),
  "lstm": ("lstm", {}),
  "gru, unrolled": ("gru", {"scan": False}),
  "gru_encoder_decoder": ("gru_encoder_decoder", {"decoder_layers": 3}),
}


def model_and_params(case, st=None):
  """The model, and parameters with every array disturbed, so that zeros and ones hide nothing."""
  variant, changes = CASES[case]
  model = make_model(variant, st, **changes)
  draw = np.random.default_rng(0)
  params = jax.tree.map(lambda x: np.float32(0.1) * draw.standard_normal(x.shape, np.float32), model.shapes())
  return model, jax.device_put(params, model.shardings())


def batch_of(model, case, packed=True, rows=2):
  """A batch, and the part of it that is decoded: the fields of a decoder without their prefix."""
  dropped = "rows targets weights" if packed else "rows targets weights segment_ids positions"
  batch = {k: v for k, v in make_batch(CASES[case][0], rows=rows).items() if not k.endswith(tuple(dropped.split()))}
  return batch, side(batch, "decoder") if model.encoder_decoder else batch


def start(model, params, batch, columns):
  """The cache of a decoder that has read nothing."""
  memory = model.encode(params, side(batch, "encoder")) if model.encoder_decoder else None
  rows = next(iter(batch.values())).shape[0]
  return model.init_cache(params, rows, columns, memory)


def decoded(model, params, batch, tokens, parts):
  """Logits of parts of the tokens, read one after the other, and then of single tokens; the last cache."""
  cache, logits, begin = start(model, params, batch, LENGTH + 3), [], 0
  for size in parts:
    outputs, cache = model.decode(params, {name: x[:, begin : begin + size] for name, x in tokens.items()}, cache)
    logits.append(outputs["logits"])
    begin += size

  def step(cache, fields):
    outputs, cache = model.decode(params, {name: x[:, None] for name, x in fields.items()}, cache)
    return cache, outputs["logits"][:, 0]

  cache, rest = jax.lax.scan(step, cache, {name: x[:, begin:].T for name, x in tokens.items()})
  return jnp.concatenate([*logits, rest.swapaxes(0, 1)], axis=1), cache


def compare(case, parts, packed, st=None, rows=2):
  model, params = model_and_params(case, st)
  batch, tokens = batch_of(model, case, packed, rows)
  full = jax.jit(model.logits)(params, batch)
  mine, cache = jax.jit(lambda p, b, t: decoded(model, p, b, t, parts))(params, batch, tokens)
  np.testing.assert_allclose(mine, full, rtol=1e-5, atol=1e-5 * np.abs(full[..., :VOCAB]).max())
  return cache


# Of each kind of position, cache and state one. Prompts in parts, below, go on token by token with others.
BY_TOKEN = ("learned", "grouped, some windows", "alibi", "experts", "t5", "lstm")
BY_TOKEN += ("relative", "rotary", "transformer, grouped", "bart", "gru_encoder_decoder")
IN_PARTS = ("learned", "t5", "gru_encoder_decoder", *[case for case in CASES if case not in BY_TOKEN][::2])


@pytest.mark.slow_but(*BY_TOKEN[:6])
@pytest.mark.parametrize("case", BY_TOKEN)
def test_token_by_token_equals_the_full_forward_of_packed_rows(case):
  assert int(compare(case, (), packed=True).length) == LENGTH


@pytest.mark.slow_but("learned", "t5", "gru_encoder_decoder")
@pytest.mark.parametrize("case", IN_PARTS)
def test_prompts_in_two_uneven_parts_and_then_tokens_equal_the_full_forward(case):
  compare(case, (7, 3), packed=False)


@pytest.mark.slow_but("t5")
@pytest.mark.parametrize("case", ["grouped", "t5", "transformer, grouped", "lstm", "gru_encoder_decoder"])
def test_decoding_on_a_mesh_equals_the_full_forward(case):
  cache = compare(case, (7, 3), True, placement("fsdp_tp", 8, model=2, data=4), rows=4)
  if isinstance(cache, States):
    for x in cache.own:
      N, B, F = x.shape
      assert x.sharding.shard_shape(x.shape) == (N, B // 4, F // 2)
    return
  for kept in (cache.own, cache.across):
    if kept is not None:  # really cut: rows and heads
      N, B, G, S, K = kept.k.shape
      assert kept.k.sharding.shard_shape(kept.k.shape) == (N, B // 4, G // 2, S, K)


@pytest.mark.slow_but("learned", "relative", "lstm")
@pytest.mark.parametrize(
  "case", ["learned", "grouped", "relative", "sinusoidal", "rezero, alibi", "experts", "lstm", "gru, unrolled"]
)
def test_prompts_of_unequal_length_stand_at_the_right_behind_padding(case):
  model, params = model_and_params(case)
  ids = make_batch("gpt")["inputs"]
  lengths, width, steps = (3, 6), 6, 4
  after = 1 + np.arange(width) - np.array([[width], [width]]) + np.array(lengths)[:, None]
  prompts = np.stack([np.pad(ids[r, :n], (width - n, 0)) for r, n in enumerate(lengths)])
  prompt = {"inputs": prompts, "segment_ids": (after > 0).astype(np.int32), "positions": np.maximum(after - 1, 0)}

  def run(params):
    cache = model.init_cache(params, 2, width + steps)
    outputs, cache = model.decode(params, prompt, cache)
    logits = [outputs["logits"][:, -1]]
    for i in range(steps):
      new = np.stack([ids[r, n + i : n + i + 1] for r, n in enumerate(lengths)])
      fields = {"inputs": new, "positions": np.array(lengths)[:, None] + i}
      outputs, cache = model.decode(params, fields, cache)
      logits.append(outputs["logits"][:, 0])
    return jnp.stack(logits, axis=1)

  together = jax.jit(run)(params)
  for r, n in enumerate(lengths):
    alone = model.logits(params, {"inputs": ids[r : r + 1, : n + steps]})[0, n - 1 :]
    np.testing.assert_allclose(together[r], alone, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("case", ["sinusoidal", "learned"])
def test_a_lone_token_at_position_9_is_not_the_one_at_position_0(case):
  model, params = model_and_params(case)
  row = make_batch("gpt", rows=1)["inputs"][:, :10]
  segments = np.array([[1] * 9 + [2]])  # the last sees itself alone
  there = model.logits(params, {"inputs": row, "segment_ids": segments})[:, 9:]
  alone = lambda at: model.logits(params, {"inputs": row[:, 9:], "positions": np.array([[at]])})
  np.testing.assert_allclose(alone(9), there, rtol=1e-5, atol=1e-6)
  assert np.abs(alone(9) - alone(0))[..., :VOCAB].max() > 1e-2


def test_only_picked_places_go_through_the_head():
  for case in ("rotary", "t5"):
    model, params = model_and_params(case)
    batch, tokens = batch_of(model, case)
    cache = start(model, params, batch, LENGTH)
    full = model.decode(params, tokens, cache)[0]["logits"]
    last = model.decode(params, tokens | {"mlm_positions": np.array([[12], [5]])}, cache)[0]["logits"]
    np.testing.assert_allclose(last[:, 0], full[[0, 1], [12, 5]], rtol=1e-6, atol=1e-6)


def test_an_encoder_decoder_encodes_once():
  """Decoding reads no parameter of the encoder, and none that makes keys and values of its output."""
  model, params = model_and_params("t5")
  batch, tokens = batch_of(model, "t5")
  cache = start(model, params, batch, LENGTH)
  cross = params["decoder"]["blocks"]["cross"]
  broken = params | {"encoder": jax.tree.map(lambda x: x * np.nan, params["encoder"])}
  cross = cross | {name: cross[name] * np.nan for name in ("wk", "wv")}
  broken["decoder"] = params["decoder"] | {"blocks": params["decoder"]["blocks"] | {"cross": cross}}
  for columns in (slice(0, 5), slice(5, 6)):
    new = {name: x[:, columns] for name, x in tokens.items()}
    outputs, cache = model.decode(broken, new, cache)
    assert np.isfinite(outputs["logits"]).all()


def test_the_cache_is_in_the_compute_dtype_and_keeps_its_shape():
  model = make_model("gpt", dtype="bfloat16", num_kv_heads=2)
  cache = model.init_cache(model.shapes(), 3, 9)
  assert cache.own.k.shape == cache.own.v.shape == (2, 3, 2, 9, 8) and cache.own.k.dtype == jnp.bfloat16
  _, after = jax.eval_shape(model.decode, model.shapes(), {"inputs": np.zeros((3, 1), np.int32)}, cache)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), cache)


def test_what_has_no_cache_is_refused():
  bert, gpt, t5 = (make_model(variant) for variant in ("bert", "gpt", "t5"))
  with pytest.raises(UserError, match="family=bert attends in both directions"):
    bert.init_cache({}, 1, 4)
  with pytest.raises(UserError, match="family=t5: `memory`"):
    t5.init_cache({}, 1, 4)
  with pytest.raises(UserError, match="family=gpt has no encoder"):
    gpt.encode({}, {"inputs": np.zeros((1, 4), np.int32)})


@pytest.mark.slow
def test_a_full_cache_is_refused():
  model, params = make_model("gpt"), params_of("gpt")
  ids = np.full((1, 3), 7, np.int32)
  _, cache = model.decode(params, {"inputs": ids}, model.init_cache(params, 1, 4))
  with pytest.raises(UserError, match="a cache of 4 columns, 3 of them filled, has no room for 3 tokens"):
    model.decode(params, {"inputs": ids}, cache)


@pytest.mark.parametrize("case", ["learned", "grouped"])
def test_a_cache_that_is_cut_has_forgotten_the_tokens_after(case):
  model, params = model_and_params(case)
  ids = make_batch("gpt")["inputs"][:2]
  read = lambda tokens, cache: model.decode(params, {"inputs": tokens}, cache)
  _, cache = read(ids[:, :9], model.init_cache(params, 2, 12))
  after, _ = read(ids[:, 10:11], cache.cut(jnp.int32(5)))
  _, fresh = read(ids[:, :5], model.init_cache(params, 2, 12))
  expected, _ = read(ids[:, 10:11], fresh)
  np.testing.assert_allclose(after["logits"], expected["logits"], rtol=1e-5, atol=1e-6)
