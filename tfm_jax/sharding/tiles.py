"""The tiles of ring attention: those of `ops.tiles`, of which a device has parts.

Axes: as in `sharding.ring`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.ops import tiles
from tfm_jax.ops.tiles import Given, Places, tile_length
from tfm_jax.sharding.order import ZIGZAG, places
from tfm_jax.sharding.ring_inputs import Ring, planned


class Tiles(tiles.Tiles):
  """What one device of a ring computes. Arrays are its own parts; `kv` is what is sent around."""

  def __init__(
    self, ring: Ring, T: int, S: int, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, bias_HL: Array | None, given: Given
  ):
    super().__init__(ring.form, T, S, q_BTHK, k_BSGK, v_BSGK, bias_HL, given)
    self.ring, self.device = ring, jax.lax.axis_index(ring.axes)
    part = lambda length, order: tile_length(length // 2 if order == ZIGZAG else length)
    self.tile_T, self.tile_S = part(q_BTHK.shape[1], ring.queries), part(k_BSGK.shape[1], ring.keys)
    # Whether all tiles that a causal mask leaves are known beforehand.
    self.planned = planned(ring, given)

  def source(self, step: Array | int) -> Array:
    """The device whose keys are here at a step."""
    return (self.device - step) % self.ring.size

  def starts(self, step: Array | int) -> np.ndarray | Array:
    t, s = self.q_BGRTK.shape[3], self.kv.shape[3]
    if not self.planned:
      return np.asarray(self.grid(t, s), np.int32)
    half = t // 2
    block = np.asarray(self.grid(half, half), np.int32)
    below = block + np.array([[half, 0]], np.int32)
    if _first(step):
      triangle = block[block[:, 1] <= block[:, 0] + self.tile_T - 1]
      return np.concatenate([triangle, below, triangle + half])
    # Of keys of an earlier device both parts of the queries see the first part, and of those of a later device the
    # second part of the queries sees both.
    both = jnp.where(self.source(step) < self.device, 0, half)
    return jnp.concatenate([jnp.asarray(below), jnp.asarray(block) + both])

  def places(self, at: Places, step: Array | int) -> Places:
    ring, t, s = self.ring, self.q_BGRTK.shape[3], self.kv.shape[3]
    query = places(ring.queries, ring.size, self.device, t, at[0])
    return query, places(ring.keys, ring.size, self.source(step), s, at[1])

  def causal(self, step: Array | int) -> bool:
    return self.form.causal and (_first(step) or not self.planned)

  def needed(self, place: Places, causal: bool) -> Array | None:
    near = super().needed(place, causal)
    if not causal or self.planned:
      return near
    t, s = place
    needed: Array = s <= t + self.tile_T - 1
    if self.given.prefix_BS is not None:
      prefix = jax.lax.dynamic_slice_in_dim(self.given.prefix_BS, s, self.tile_S, 1)
      needed |= (prefix != 0).any()
    return needed if near is None else needed & near


def _first(step: Array | int) -> bool:
  """Whether it is known to be the first step, at which the keys are a device's own."""
  return isinstance(step, int) and step == 0
