"""Ring attention against plain attention on one device, with all that masks, biases and dropout can ask of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfm_jax.ops import tiles
from tfm_jax.ops.attention import attend_dense
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.positions import by_distance
from tfm_jax.sharding import ring
from tfm_jax.sharding.order import NATURAL, ZIGZAG, pick, zigzag, zigzag_places
from tfm_jax.sharding.placement import Placement, make_mesh
from tfm_jax.sharding.ring import RingKernel
from tfm_jax.sharding.strategy import AXES, Strategy
from tfm_jax.sharding.tiles import Tiles

RULES = (
  ("batch", ("replica", "data")),
  ("seq", ("context",)),
  ("act_heads", ("model",)),
)
B, T, H, K = 2, 32, 4, 8


def placed(context=4, **others):
  sizes = dict.fromkeys(AXES, 1) | {"context": context} | others
  return Placement(
    Strategy(RULES),
    make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))]),
  )


def inputs(T=T, S=T, H=H, G=H, seed=0):
  draw = np.random.default_rng(seed)
  normal = lambda *shape: draw.normal(size=shape).astype(np.float32)
  arrays = {
    "q": normal(B, T, H, K),
    "k": normal(B, S, G, K),
    "v": normal(B, S, G, K),
    "bias": normal(H, T + S),
  }
  return arrays | {"weights": normal(B, T, H, K)}


def packed(length, last=2, seed=1):
  """Three segments and some padding, different in each row."""
  draw = np.random.default_rng(seed)
  cuts = np.sort(draw.integers(1, length - last, (B, 2)), axis=1)
  place = np.arange(length)[None]
  segments = 1 + (place >= cuts[:, :1]) + (place >= cuts[:, 1:])
  return jnp.asarray(np.where(place < length - last, segments, 0), jnp.int32)


def both(
  st,
  arrays,
  mask,
  order,
  keys_order=None,
  biased=False,
  rate=0.0,
  window=None,
  platform="cpu",
):
  """Outputs and gradients of the ring on this mesh and of plain attention; those of queries without a key are 0."""
  keys_order = order if keys_order is None else keys_order
  noise = Noise(jnp.uint32(3), jnp.int32(5), jnp.arange(7, 7 + B, dtype=jnp.int32)) if rate else None
  fixed = {
    "scale": 0.4,
    "platform": platform,
    "dropout_rate": rate,
    "noise": noise,
    "layer": 1,
    "site": 2,
  }
  T, S = arrays["q"].shape[1], arrays["k"].shape[1]
  dense = mask.dense(T, S) if window is None else Mask(**{**vars(mask), "window": window}).dense(T, S)
  seen = np.ones((B, T), bool) if dense is None else np.broadcast_to(np.asarray(dense).any(-1), (B, T))
  weights = arrays["weights"] * seen[:, :, None, None]

  def moved(x, order, back=False):
    axes = ("batch", "seq", "act_heads", None)
    return zigzag(st, x, axes, back) if order == ZIGZAG else x

  def of_ring(q, k, v, bias, window):
    own = mask if window is None else Mask(**{**vars(mask), "window": window})
    kernel = RingKernel(st, mask.causal, order, keys_order)
    q, k, v = moved(q, order), moved(k, keys_order), moved(v, keys_order)
    return moved(
      kernel(q, k, v, mask=own, bias_HTS=bias if biased else None, **fixed),
      order,
      back=True,
    )

  def plain(q, k, v, bias, _):
    bias_HTS = by_distance(bias, T, S) if biased else None
    return attend_dense(q, k, v, mask=dense, bias_HTS=bias_HTS, **fixed)

  results = []
  for function in (of_ring, plain):

    def total(q, k, v, bias, window, function=function):
      y = function(q, k, v, bias, window)
      return (y.astype(jnp.float32) * weights).sum(), y.astype(jnp.float32) * seen[:, :, None, None]

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))
    results.append(gradient(*(arrays[n] for n in ("q", "k", "v", "bias")), window))
  return results


def close(results, rtol=2e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), *results)


@functools.cache
def four():
  return placed(4)


CASES = {
  "causal": (ZIGZAG, {"causal": True}, {}),
  "causal, packed, bias, dropout": (
    ZIGZAG,
    {"causal": True, "packed": True},
    {"biased": True, "rate": 0.2},
  ),
  "causal, traced window": (
    ZIGZAG,
    {"causal": True, "packed": True},
    {"window": jnp.int32(5)},
  ),
  "causal prefix": (ZIGZAG, {"causal": True, "prefix": True}, {}),
  "causal in natural order": (
    NATURAL,
    {"causal": True, "packed": True},
    {"biased": True},
  ),
  "both ways, packed, bias": (NATURAL, {"packed": True}, {"biased": True}),
  "both ways, fixed window, dropout": (NATURAL, {"window": 6}, {"rate": 0.3}),
}


def mask_of(options):
  options = dict(options)
  segments = packed(T) if options.pop("packed", False) else None
  prefix = jnp.asarray(np.arange(T)[None] < np.array([[3], [13]]), jnp.int32) if options.pop("prefix", False) else None
  return Mask(
    query_segments_BT=segments,
    key_segments_BS=segments,
    prefix_BS=prefix,
    **options,
  )


@pytest.mark.slow_but("causal, packed, bias, dropout", "both ways, packed, bias")
@pytest.mark.parametrize("case", CASES)
def test_a_ring_computes_what_one_device_computes(case, monkeypatch):
  monkeypatch.setattr(tiles, "TILE", 2)  # two tiles for each half of a part
  order, options, others = CASES[case]
  close(both(four(), inputs(G=2), mask_of(options), order, **others))


def test_keys_of_an_encoder_heads_and_rows_are_cut_too(monkeypatch):
  """Queries in zigzag order, keys in natural order; dropout's bits count heads over all devices."""
  monkeypatch.setattr(tiles, "TILE", 4)
  st = placed(2, data=2, model=2)
  mask = Mask(query_segments_BT=packed(16), key_segments_BS=packed(T, seed=2))
  close(both(st, inputs(16, T, G=2), mask, ZIGZAG, NATURAL, rate=0.2))


@pytest.mark.slow
def test_bfloat16_differs_by_rounding_alone():
  arrays = {name: jnp.asarray(x, jnp.bfloat16 if name in "qkv" else x.dtype) for name, x in inputs(G=2).items()}
  close(both(four(), arrays, mask_of({"causal": True, "packed": True}), ZIGZAG), rtol=4e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("causal", "order"), [(True, ZIGZAG), (False, NATURAL)])
def test_splash_attention_computes_the_same_inside_a_ring(causal, order, monkeypatch):
  """In the interpreter, with parts of 128 tokens. Every query has a key here: padding sees padding in that kernel."""
  monkeypatch.setattr(ring, "splash_serves", lambda *_: True)
  segments = packed(1024, last=0)
  mask = Mask(causal, query_segments_BT=segments, key_segments_BS=segments)
  close(both(four(), inputs(1024, 1024, H=2, G=1), mask, order), rtol=1e-3)


@pytest.mark.parametrize("c", [1, 2, 4])
def test_the_work_of_a_causal_mask_is_the_same_on_every_device(c, monkeypatch):
  """Counts the tiles that each device computes, at run time. In natural order the last one has nearly all of them."""
  monkeypatch.setattr(tiles, "TILE", 2)
  st, counts = placed(c), {}
  logits = Tiles.logits

  def counted(self, *args):
    def note(device, order=self.ring.queries):
      counts[order, int(device)] = counts.get((order, int(device)), 0) + 1

    jax.debug.callback(note, self.device)
    return logits(self, *args)

  monkeypatch.setattr(Tiles, "logits", counted)
  arrays = inputs()
  for order in (ZIGZAG, NATURAL):
    kernel = RingKernel(st, True, order, order)
    run = jax.jit(
      lambda q, k, v, kernel=kernel: kernel(q, k, v, mask=Mask(True), bias_HTS=None, scale=1.0, platform="cpu")
    )
    jax.block_until_ready(run(arrays["q"], arrays["k"], arrays["v"]))
    jax.effects_barrier()
  each = np.array([[counts[order, device] for device in range(c)] for order in (ZIGZAG, NATURAL)])
  n = T // 2
  assert each[0].max() <= 1.05 * each[0].min()
  assert each.sum(1).tolist() == [n * (n + 1) // 2] * 2
  assert c == 1 or each[1].max() > 1.4 * each[1].mean()


def test_zigzag_is_undone_and_its_places_are_those_of_the_tokens():
  st = placed(4, data=2)
  x = jnp.tile(jnp.arange(T)[None], (B, 1))
  there = zigzag(st, x, ("batch", "seq"))
  np.testing.assert_array_equal(there[0], zigzag_places(4, T))
  assert np.asarray(there[0, :8]).tolist() == [0, 1, 2, 3, 28, 29, 30, 31]
  np.testing.assert_array_equal(zigzag(st, there, ("batch", "seq"), back=True), x)


def test_positions_are_picked_from_every_part_and_the_stream_stays_where_it_is():
  st = placed(4, data=2)
  h = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, 8)), jnp.float32)
  at = jnp.asarray([[0, 9, 9, 31], [5, 8, 16, 30]], jnp.int32)
  total = lambda picked: (jnp.sin(picked) * jnp.arange(32.0).reshape(1, 4, 8)).sum()
  run = jax.jit(jax.value_and_grad(lambda h: total(pick(st, h, at))))
  plain = jax.value_and_grad(lambda h: total(h[jnp.arange(B)[:, None], at]))
  placed_h = jax.device_put(h, st.sharding(("batch", "seq", None)))
  close([run(placed_h), plain(h)], rtol=1e-5)
  assert "all-gather" not in jax.jit(lambda h: pick(st, h, at)).lower(placed_h).compile().as_text()
