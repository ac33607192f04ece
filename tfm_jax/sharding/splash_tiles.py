"""The tiles of ring attention by JAX's splash attention kernel for TPUs, where masks and lengths allow it.

Its forward kernel returns the log-sum-exp of its keys, by which outputs of different keys are summed up. Its backward
kernels take the output and the log-sum-exp of all keys.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.ops.experts import share_scope
from tfm_jax.ops.masks import MASKED
from tfm_jax.ops.splash import LANES, heads_gradients, heads_with_statistics
from tfm_jax.ops.tiles import Given, added
from tfm_jax.sharding.order import NATURAL, ZIGZAG, places
from tfm_jax.sharding.ring_inputs import Ring, planned


def splash_serves(ring: Ring, given: Given, queries: int, keys: int) -> bool:
  """Whether splash attention computes the tiles, for a device's parts of these lengths and a ring without a bias."""
  whole = (ring.queries == NATURAL and ring.keys == NATURAL and not ring.causal) or planned(ring, given)
  whole = whole or (not ring.causal and ring.keys == NATURAL)
  plain = given.window is None and given.prefix_BS is None and given.keys_B is None
  ragged = any(n % (LANES * (2 if order == ZIGZAG else 1)) for n, order in ((queries, ring.queries), (keys, ring.keys)))
  return ring.st.platform == "tpu" and whole and plain and not ragged


class SplashTiles:
  """What one device of a ring computes; see `Tiles`."""

  bias_HL = None

  def __init__(self, ring: Ring, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, given: Given):
    self.ring, self.given = ring, given
    self.device = jax.lax.axis_index(ring.axes)
    self.q_BHTK = (q_BTHK * np.asarray(ring.scale, q_BTHK.dtype)).swapaxes(1, 2)
    self.kv = jnp.stack([k_BSGK, v_BSGK]).swapaxes(2, 3)
    self.planned = planned(ring, given)

  def begin(self) -> tuple[Array, Array]:
    """The output and the log-sum-exp of no keys."""
    sums = jnp.zeros(self.q_BHTK.shape[:3], jnp.float32)
    return jnp.zeros(self.q_BHTK.shape, jnp.float32), sums + MASKED

  def finish(self, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    """See `Tiles.finish`."""
    return carry[0].astype(self.q_BHTK.dtype).swapaxes(1, 2), carry[1]

  def zeros(self) -> Array:
    """See `Tiles.zeros`."""
    return jnp.zeros(self.q_BHTK.shape, jnp.float32)

  def as_queries(self, dq: Array) -> Array:
    """See `Tiles.as_queries`."""
    return (dq * np.float32(self.ring.scale)).astype(self.q_BHTK.dtype).swapaxes(1, 2)

  def pieces(self, step: Array | int) -> tuple[list[tuple[Any, Any, int, int]], Array]:
    """(first query, first key, queries, keys) of each call of the kernel at a step; the device whose keys these are."""
    T, S = self.q_BHTK.shape[2], self.kv.shape[3]
    source = (self.device - step) % self.ring.size
    if not self.planned or (isinstance(step, int) and step == 0):
      return [(0, 0, T, S)], source
    half = T // 2
    both = jnp.where(source < self.device, 0, half)
    return [(half, 0, half, half), (both, both, half, half)], source

  def segments(
    self,
    ids: Array | None,
    order: str,
    device: Array,
    start: Any,
    length: int,
    part: int,
  ) -> Array | None:
    """Segments [B, length] of the tokens from `start` on in the part that a device has."""
    if ids is None:
      return None
    cut = lambda start, length: jax.lax.dynamic_slice_in_dim(
      ids, places(order, self.ring.size, device, part, start), length, 1
    )
    if order == ZIGZAG and length == part:
      return jnp.concatenate([cut(0, part // 2), cut(part // 2, part // 2)], 1)
    return cut(start, length)

  def each(self, kv: Array, step: Array | int, use: Callable[..., Any]) -> None:
    """use(first query, first key, q, kv, segments, causal) of each call of the kernel at a step."""
    pieces, source = self.pieces(step)
    T, S, ring, given = (
      self.q_BHTK.shape[2],
      self.kv.shape[3],
      self.ring,
      self.given,
    )
    causal = ring.causal and isinstance(step, int) and step == 0
    for t, s, n, m in pieces:
      segments = (
        self.segments(given.query_segments_BT, ring.queries, self.device, t, n, T),
        self.segments(given.key_segments_BS, ring.keys, source, s, m, S),
      )
      q, keys_values = (
        jax.lax.dynamic_slice_in_dim(self.q_BHTK, t, n, 2),
        jax.lax.dynamic_slice_in_dim(kv, s, m, 3),
      )
      # Read by the count of FLOPs: all tiles, as in other kernels.
      with jax.named_scope(share_scope(4, 2) if len(pieces) == 2 else share_scope(1, 1)):
        use(t, s, q, keys_values, segments, causal)

  def attend(self, carry: tuple[Array, Array], kv: Array, step: Array | int) -> tuple[Array, Array]:
    """See `Tiles.attend`."""

    def add(t: Any, s: Any, q: Array, keys_values: Array, segments: Any, causal: bool) -> None:
      nonlocal carry
      n = q.shape[2]
      own, own_lse = heads_with_statistics(
        q,
        *keys_values,
        *segments,
        causal=causal,
        platform=self.ring.st.platform,
      )
      y, lse = (jax.lax.dynamic_slice_in_dim(x, t, n, 2) for x in carry)
      new = jnp.logaddexp(lse, own_lse)
      share = lambda lse: jnp.exp(lse - new)[..., None]
      parts = (y * share(lse) + own.astype(jnp.float32) * share(own_lse), new)
      carry = tuple(  # type: ignore[assignment]
        jax.lax.dynamic_update_slice_in_dim(x, part, t, 2) for x, part in zip(carry, parts, strict=True)
      )

    self.each(kv, step, add)
    return carry

  def differentiate(self, y_BTHK: Array, lse_BHT: Array, dy_BTHK: Array) -> Callable[..., Any]:
    """See `Tiles.differentiate`."""
    y, dy = y_BTHK.swapaxes(1, 2), dy_BTHK.swapaxes(1, 2)

    def gradients(dq: Array, dbias: None, kv: Array, step: Array | int) -> tuple[Array, Array, None]:
      dkv = jnp.zeros(kv.shape, jnp.float32)

      def add(
        t: Any,
        s: Any,
        q: Array,
        keys_values: Array,
        segments: Any,
        causal: bool,
      ) -> None:
        nonlocal dq, dkv
        saved = (jax.lax.dynamic_slice_in_dim(x, t, q.shape[2], 2) for x in (y, lse_BHT, dy))
        own, dk, dv = heads_gradients(
          q,
          *keys_values,
          *segments,
          *saved,
          causal=causal,
          platform=self.ring.st.platform,
        )
        dq, dkv = added(dq, own, t, 2), added(dkv, jnp.stack([dk, dv]), s, 3)

      self.each(kv, step, add)
      return dq, dkv, None

    return gradients
