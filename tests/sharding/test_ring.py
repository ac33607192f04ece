"""Ring attention against plain attention on one device, with all that masks, biases and dropout can ask of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfm_jax.ops.attention import attend_dense
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.positions import by_distance
from tfm_jax.sharding import ring
from tfm_jax.sharding.order import NATURAL, ZIGZAG, zigzag
from tfm_jax.sharding.placement import Placement, make_mesh
from tfm_jax.sharding.ring import RingKernel
from tfm_jax.sharding.strategy import AXES, Strategy

RULES = (("batch", ("replica", "data")), ("seq", ("context",)), ("act_heads", ("model",)))
B, T, H, K = 2, 32, 4, 8


def placed(context=4, **others):
  sizes = dict.fromkeys(AXES, 1) | {"context": context} | others
  return Placement(Strategy(RULES), make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))]))


def inputs(T=T, S=T, H=H, G=H, seed=0):
  draw = np.random.default_rng(seed)
  normal = lambda *shape: draw.normal(size=shape).astype(np.float32)
  arrays = {"q": normal(B, T, H, K), "k": normal(B, S, G, K), "v": normal(B, S, G, K), "bias": normal(H, T + S)}
  return arrays | {"weights": normal(B, T, H, K)}


def packed(length, last=2, seed=1):
  """Three segments and some padding, different in each row."""
  draw = np.random.default_rng(seed)
  cuts = np.sort(draw.integers(1, length - last, (B, 2)), axis=1)
  place = np.arange(length)[None]
  segments = 1 + (place >= cuts[:, :1]) + (place >= cuts[:, 1:])
  return jnp.asarray(np.where(place < length - last, segments, 0), jnp.int32)


def both(st, arrays, mask, order, keys_order=None, biased=False, rate=0.0, window=None, platform="cpu"):
  """Outputs and gradients of the ring on this mesh and of plain attention; those of queries without a key are 0."""
  keys_order = order if keys_order is None else keys_order
  noise = Noise(jnp.uint32(3), jnp.int32(5), jnp.arange(7, 7 + B, dtype=jnp.int32)) if rate else None
  fixed = {"scale": 0.4, "platform": platform, "dropout_rate": rate, "noise": noise, "layer": 1, "site": 2}
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
    return moved(kernel(q, k, v, mask=own, bias_HTS=bias if biased else None, **fixed), order, back=True)

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
  "causal, packed, bias, dropout": (ZIGZAG, {"causal": True, "packed": True}, {"biased": True, "rate": 0.2}),
  "causal, traced window": (ZIGZAG, {"causal": True, "packed": True}, {"window": jnp.int32(5)}),
  "causal prefix": (ZIGZAG, {"causal": True, "prefix": True}, {}),
  "causal in natural order": (NATURAL, {"causal": True, "packed": True}, {"biased": True}),
  "both ways, packed, bias": (NATURAL, {"packed": True}, {"biased": True}),
  "both ways, fixed window, dropout": (NATURAL, {"window": 6}, {"rate": 0.3}),
}


def mask_of(options):
  options = dict(options)
  segments = packed(T) if options.pop("packed", False) else None
  prefix = jnp.asarray(np.arange(T)[None] < np.array([[3], [13]]), jnp.int32) if options.pop("prefix", False) else None
  return Mask(query_segments_BT=segments, key_segments_BS=segments, prefix_BS=prefix, **options)


@pytest.mark.slow_but("causal, packed, bias, dropout", "both ways, packed, bias")
@pytest.mark.parametrize("case", CASES)
def test_a_ring_computes_what_one_device_computes(case, monkeypatch):
  monkeypatch.setattr(ring, "TILE", 2)  # two tiles for each half of a part
  order, options, others = CASES[case]
  close(both(four(), inputs(G=2), mask_of(options), order, **others))
