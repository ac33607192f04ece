"""Ring attention (Liu et al. 2023): each device has a part of the queries, and keys and values pass by all devices.

At each of c steps, a device attends to the keys and values that it holds, and sends them to the next device while it
computes. The softmax is summed up as keys come (Milakov and Gimelshein 2018), in float32, tile by tile, so no device
ever holds more than one tile of logits. The backward pass computes the tiles again from the queries, keys, values,
output and log-sum-exp. The gradients of keys and values travel with them.

Under a causal mask, parts in their natural order would leave all of the work to the last device. In the order `ZIGZAG`
device i has the i-th of 2c parts and the i-th from the end. Then every device computes three tiles of parts at the
first step (two of them triangles) and two at every other one.

Axes: B rows, T queries, S keys, G heads of keys and values, R query heads of each, N = R * T, K head dimension,
L = T + S distances.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.tiles import Given, as_one, given_of
from tfm_jax.sharding.placement import Placement, names
from tfm_jax.sharding.ring_inputs import GIVEN_AXES, Ring
from tfm_jax.sharding.splash_tiles import SplashTiles, splash_serves
from tfm_jax.sharding.tiles import Tiles

_HEADS = ("batch", "seq", "act_heads", None)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_attention(
  ring: Ring,
  q_BTHK: Array,
  k_BSGK: Array,
  v_BSGK: Array,
  bias_HL: Array | None,
  given: Given,
) -> Array:
  """The attention of `ops.attention.attend_dense` over sequences that are cut, [B, T, H, K] in q's dtype.

  A query without any key gets 0, where `attend_dense` has the mean of all values: only padding is such a query, or one
  that is asked about another text's segment.

  Args:
    ring: static.
    q_BTHK: queries; k_BSGK, v_BSGK: keys and values, whose parts are in the orders of the ring.
    bias_HL: float32 bias of the logits by distance: see `ops.positions.by_distance`.
    given: masks and dropout; whole rows in natural order.
  """
  return _forward(ring, q_BTHK, k_BSGK, v_BSGK, bias_HL, given)[0]


def _forward(ring: Ring, q: Array, k: Array, v: Array, bias: Array | None, given: Given) -> tuple[Array, tuple]:
  """The output, and what the backward pass reads."""
  heads, sums = ring.spec(*_HEADS), ring.spec("batch", "act_heads", "seq")
  inputs = (heads, heads, heads, ring.spec("act_heads", None), _specs(ring))
  part = lambda *arrays: _attended(_part(ring, q.shape[1], k.shape[1], *arrays))
  y, lse_BHT = as_one(_mapped(ring, part, inputs, (heads, sums)))(q, k, v, bias, given)
  return y, (q, k, v, bias, given, y, lse_BHT)


def _backward(ring: Ring, saved: tuple, dy: Array) -> tuple[Array, Array, Array, Array | None, None]:
  q, k, v, bias, given, y, lse_BHT = saved
  heads, sums, biases = ring.spec(*_HEADS), ring.spec("batch", "act_heads", "seq"), ring.spec("act_heads", None)
  inputs = (heads, heads, heads, biases, _specs(ring), heads, sums, heads)
  part = lambda *arrays: _differentiated(_part(ring, q.shape[1], k.shape[1], *arrays[:5]), *arrays[5:])
  outputs = (heads, heads, heads, biases)
  dq, dk, dv, dbias = _mapped(ring, part, inputs, outputs)(q, k, v, bias, given, y, lse_BHT, dy)
  return dq, dk, dv, dbias if bias is None else dbias.astype(bias.dtype), None


ring_attention.defvjp(_forward, _backward)


def _specs(ring: Ring) -> Any:
  return Given(*(ring.spec(*axes) for axes in GIVEN_AXES))  # type: ignore[arg-type]


def _mapped(ring: Ring, part: Any, inputs: Any, outputs: Any) -> Any:
  return jax.shard_map(part, mesh=ring.st.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def _part(ring: Ring, T: int, S: int, q: Array, k: Array, v: Array, bias: Array | None, given: Given) -> Any:
  """What computes the tiles of one device."""
  if bias is None and splash_serves(ring, given, q.shape[1], k.shape[1]):
    return SplashTiles(ring, q, k, v, given)
  return Tiles(ring, T, S, q, k, v, bias, given)


def _attended(part: Any) -> tuple[Array, Array]:
  """The output and the log-sum-exp: the forward pass of one device."""
  c, shift, kv = part.ring.size, part.ring.shift, part.kv
  if c > 1:
    kv = shift(kv)
  carry = part.attend(part.begin(), part.kv, 0)
  if c > 2:
    body = lambda state, step: ((part.attend(*state, step), shift(state[1])), None)
    (carry, kv), _ = jax.lax.scan(body, (carry, kv), jnp.arange(1, c - 1))
  if c > 1:
    carry = part.attend(carry, kv, c - 1)
  result: tuple[Array, Array] = part.finish(carry)
  return result


def _differentiated(part: Any, y: Array, lse_BHT: Array, dy: Array) -> tuple[Array, Array, Array, Array | None]:
  """The gradients of queries, keys, values and bias: the backward pass of one device.

  The gradients of keys and values are sent while those of the next tiles are computed; c shifts bring them home.
  """
  c, shift, kv = part.ring.size, part.ring.shift, part.kv
  gradients = part.differentiate(y, lse_BHT, dy)
  if c > 1:
    kv = shift(kv)
  dbias = None if part.bias_HL is None else jnp.zeros(part.bias_HL.shape, jnp.float32)
  dq, dkv, dbias = gradients(part.zeros(), dbias, part.kv, 0)

  def body(state: Any, step: Array) -> tuple[Any, None]:
    dq, dkv, dbias, kv = state
    came = shift(dkv)
    dq, own, dbias = gradients(dq, dbias, kv, step)
    return (dq, came + own, dbias, shift(kv)), None

  if c > 2:
    (dq, dkv, dbias, kv), _ = jax.lax.scan(body, (dq, dkv, dbias, kv), jnp.arange(1, c - 1))
  if c > 1:
    came = shift(dkv)
    dq, own, dbias = gradients(dq, dbias, kv, c - 1)
    dkv = shift((came + own).astype(part.kv.dtype))  # nothing is added to it any more
  if dbias is not None:
    dbias = jax.lax.psum(dbias, (*names(part.ring.spec("batch")[0]), *part.ring.axes))
  dk, dv = dkv.swapaxes(2, 3).astype(part.kv.dtype)
  return part.as_queries(dq), dk, dv, dbias


@dataclasses.dataclass(frozen=True)
class RingKernel:
  """Ring attention as the `attend` of a `Kernel`; bias is by distance. `causal`, `queries`, `keys`: see `Ring`."""

  st: Placement
  causal: bool
  queries: str
  keys: str

  def __call__(
    self,
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    *,
    mask: Mask,
    bias_HTS: Array | None,
    scale: float,
    platform: str,
    dropout_rate: float = 0.0,
    noise: Noise | None = None,
    layer: Array | int = 0,
    site: int = 0,
  ) -> Array:
    ring = Ring(self.st, self.causal, self.queries, self.keys, scale, dropout_rate)
    if isinstance(mask.window, int) and mask.window:  # which tiles it leaves empty depends on the device
      mask = dataclasses.replace(mask, window=jnp.asarray(mask.window))
    given = given_of(mask, q_BTHK.shape[0], dropout_rate, noise, layer, site, q_BTHK.shape[2])
    return ring_attention(ring, q_BTHK, k_BSGK, v_BSGK, bias_HTS, given)
