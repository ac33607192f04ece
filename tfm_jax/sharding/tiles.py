"""The tiles of ring attention, by dots of XLA.

At most one tile of logits is in memory; tiles that a causal mask or a window leaves empty are not computed. The
backward pass computes each tile again.

Axes: as in `sharding.ring`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.ops import hashing
from tfm_jax.ops.attention import MASKED
from tfm_jax.ops.dropout import is_kept
from tfm_jax.ops.experts import share_scope
from tfm_jax.ops.linear import matmul
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.positions import by_distance
from tfm_jax.sharding.order import ZIGZAG, places
from tfm_jax.sharding.placement import names
from tfm_jax.sharding.ring_inputs import Given, Ring, added, planned

# Queries and keys of a tile: the smallest divisor of a part that is at least this long.
TILE = 512

Carry = tuple[Array, ...]


def tile_length(part: int, order: str) -> int:
  """The length of a tile along a device's part of a sequence."""
  part = part // 2 if order == ZIGZAG else part
  return next(n for n in range(1, part + 1) if part % n == 0 and n >= min(part, TILE))


class Tiles:
  """What one device of a ring computes, for any mask, bias and dropout. Arrays are its own parts, with heads first.

  Attributes:
    kv: its keys and values, [2, B, G, S, K]: what is sent around.
  """

  def __init__(
    self, ring: Ring, T: int, S: int, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, bias_HL: Array | None, given: Given
  ):
    self.ring, self.T, self.S, self.bias_HL, self.given = ring, T, S, bias_HL, given
    self.device = jax.lax.axis_index(ring.axes)
    B, t, H = q_BTHK.shape[:3]
    self.groups = (B, k_BSGK.shape[2], H // k_BSGK.shape[2])
    self.q_BGRTK = self.grouped(q_BTHK)
    self.kv = jnp.stack([k_BSGK, v_BSGK]).swapaxes(2, 3)
    self.tile_T, self.tile_S = tile_length(t, ring.queries), tile_length(k_BSGK.shape[1], ring.keys)
    # Whether all tiles that a causal mask leaves are known beforehand.
    self.planned = planned(ring, given)
    by_heads = names(ring.spec("act_heads")[0])
    self.first_head = (jax.lax.axis_index(by_heads) if by_heads else 0) * H
    self.heads = H * math.prod(ring.st.mesh.shape[axis] for axis in by_heads)

  def grouped(self, x_BTHK: Array) -> Array:
    """[B, T, H, K] -> [B, G, R, T, K]."""
    B, G, R = self.groups
    return x_BTHK.reshape(B, -1, G, R, x_BTHK.shape[-1]).transpose(0, 2, 3, 1, 4)

  def ungrouped(self, x_BGRTK: Array) -> Array:
    """The inverse of `grouped`."""
    B, G, R, t, K = x_BGRTK.shape
    return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, t, G * R, K)

  # The tiles of a step.

  def starts(self, first: bool, source: Array) -> Array:
    """Where the tiles of one step begin in this device's queries and in the keys that it holds, [tiles, 2]."""
    t, s = self.q_BGRTK.shape[3], self.kv.shape[3]
    grid = lambda rows, columns: [(i, j) for i in range(0, rows, self.tile_T) for j in range(0, columns, self.tile_S)]
    if not self.planned:
      return jnp.asarray(grid(t, s), jnp.int32)
    half = t // 2
    block = np.asarray(grid(half, half), np.int32)
    below = block + np.array([[half, 0]], np.int32)
    if first:
      triangle = block[block[:, 1] <= block[:, 0] + self.tile_T - 1]
      return jnp.asarray(np.concatenate([triangle, below, triangle + half]))
    # Of keys of an earlier device both parts of the queries see the first part, and of those of a later device the
    # second part of the queries sees both.
    both = jnp.where(source < self.device, 0, half)
    return jnp.concatenate([jnp.asarray(below), jnp.asarray(block) + both])

  def over_tiles(self, tile: Any, carry: Any, step: Array | int) -> Any:
    """The carry after tile(carry, first query, first key, place of each in the sequence, causal) of all tiles."""
    first = isinstance(step, int) and step == 0
    source = (self.device - step) % self.ring.size
    starts = self.starts(first, source)
    causal = self.ring.causal and (first or not self.planned)

    def one(carry: Any, start: Array) -> tuple[Any, None]:
      at, ring = (start[0], start[1]), self.ring
      query = places(ring.queries, ring.size, self.device, self.q_BGRTK.shape[3], at[0])
      place = (query, places(ring.keys, ring.size, source, self.kv.shape[3], at[1]))
      run = lambda carry: tile(carry, at, place, causal)
      needed = self.needed(place, causal)
      return run(carry) if needed is None else jax.lax.cond(needed, run, lambda carry: carry, carry), None

    whole = (self.q_BGRTK.shape[3] // self.tile_T) * (self.kv.shape[3] // self.tile_S)
    with jax.named_scope(share_scope(whole, len(starts))):  # read by the count of FLOPs: all tiles, as in other kernels
      return one(carry, starts[0])[0] if len(starts) == 1 else jax.lax.scan(one, carry, starts)[0]

  def needed(self, place: tuple[Array, Array], causal: bool) -> Array | None:
    """Whether any query of a tile sees any key, as far as order and window decide; None: it does."""
    (t, s), needed, window = place, None, self.given.window
    if causal and not self.planned:
      needed = s <= t + self.tile_T - 1
      if self.given.prefix_BS is not None:
        prefix = jax.lax.dynamic_slice_in_dim(self.given.prefix_BS, s, self.tile_S, 1)
        needed |= (prefix != 0).any()
    if window is not None:
      near = (t - (s + self.tile_S - 1) <= window) & (s - (t + self.tile_T - 1) <= window) | (window == 0)
      needed = near if needed is None else needed & near
    return needed

  # One tile.

  def logits(self, q: Array, k: Array, place: tuple[Array, Array], causal: bool) -> tuple[Array, Array | None]:
    """Float32 logits [B, G, R, T, S], and which are not masked."""
    (B, G, R), (n, m), given = self.groups, (self.tile_T, self.tile_S), self.given
    y = matmul("BGNK,BGSK->BGNS", q.reshape(B, G, R * n, -1), k, self.ring.st.platform)
    y = y.reshape(B, G, R, n, m) * np.float32(self.ring.scale)
    t, s = place
    if self.bias_HL is not None:
      bias_HTS = by_distance(self.distances(self.bias_HL, place), n, m)
      y = y + bias_HTS.reshape(1, G, R, n, m)
    cut = lambda x, at, length: None if x is None else jax.lax.dynamic_slice_in_dim(x, at, length, 1)
    mask = Mask(
      causal,
      0 if given.window is None else given.window,
      cut(given.query_segments_BT, t, n),
      cut(given.key_segments_BS, s, m),
      t,
      s,
      cut(given.prefix_BS, s, m),
    ).dense(n, m)
    return y, None if mask is None else mask[:, None, None]

  def distances(self, x_HL: Array, place: tuple[Array, Array]) -> Array:
    """The part of x with the distances of a tile."""
    return jax.lax.dynamic_slice_in_dim(x_HL, self.first_distance(place), self.tile_T + self.tile_S, 1)

  def first_distance(self, place: tuple[Array, Array]) -> Array:
    """Where they begin."""
    return place[1] - place[0] + (self.T - self.tile_T)

  def dropped(self, x: Array, place: tuple[Array, Array]) -> Array:
    """x [B, G, R, T, S] with dropout: the bits of `attend_dense`, at these places of its [B, H, T, S]."""
    if self.given.keys_B is None:
      return x
    _, G, R, n, m = x.shape
    along = lambda first, length, axis: (
      (first + jnp.arange(length)).astype(jnp.uint32).reshape([length if a == axis else 1 for a in range(5)])
    )
    heads = (self.first_head + jnp.arange(G * R)).astype(jnp.uint32).reshape(1, G, R, 1, 1)
    index = hashing.row_major(
      (heads, along(place[0], n, 3), along(place[1], m, 4)),
      (self.heads, self.T, self.S),
    )
    keep = is_kept(index, self.given.keys_B.reshape(-1, 1, 1, 1, 1), self.ring.dropout)
    return jnp.where(keep, x * np.float32(1 / (1 - self.ring.dropout)), np.float32(0))

  # What a ring asks for.

  def begin(self) -> Carry:
    """The sums over no keys: of values, the largest logit, of weights."""
    sums = jnp.zeros(self.q_BGRTK.shape[:4], jnp.float32)
    return jnp.zeros(self.q_BGRTK.shape, jnp.float32), sums + MASKED, sums

  def attend(self, carry: Carry, kv: Array, step: Array | int) -> Carry:
    """The sums with the keys and values that the device holds at a step."""
    (B, G, R), platform, n, m = (
      self.groups,
      self.ring.st.platform,
      self.tile_T,
      self.tile_S,
    )

    def tile(carry: Carry, at: Any, place: Any, causal: bool) -> Carry:
      y, top, total = (jax.lax.dynamic_slice_in_dim(x, at[0], n, 3) for x in carry)
      q, (k, v) = (
        jax.lax.dynamic_slice_in_dim(self.q_BGRTK, at[0], n, 3),
        jax.lax.dynamic_slice_in_dim(kv, at[1], m, 3),
      )
      logits, visible = self.logits(q, k, place, causal)
      if visible is not None:
        logits = jnp.where(visible, logits, MASKED)
      new = jnp.maximum(top, logits.max(-1))
      p = jnp.exp(logits - new[..., None])
      if visible is not None:
        p = jnp.where(visible, p, 0.0)
      shrunk = jnp.exp(top - new)
      weights = self.dropped(p, place).astype(q.dtype).reshape(B, G, R * n, m)
      added = matmul("BGNS,BGSK->BGNK", weights, v, platform).reshape(y.shape)
      parts = (y * shrunk[..., None] + added, new, total * shrunk + p.sum(-1))
      return tuple(jax.lax.dynamic_update_slice_in_dim(x, part, at[0], 3) for x, part in zip(carry, parts, strict=True))

    return self.over_tiles(tile, carry, step)

  def finish(self, carry: Carry) -> tuple[Array, Array]:
    """The output [B, T, H, K] and the log-sum-exp of the logits [B, H, T], from the sums over all keys."""
    y, top, total = carry
    empty = total == 0
    y = y / jnp.where(empty, 1.0, total)[..., None]
    lse = jnp.where(empty, 0.0, top + jnp.log(jnp.where(empty, 1.0, total)))
    return self.ungrouped(y.astype(self.q_BGRTK.dtype)), lse.reshape(lse.shape[0], -1, lse.shape[3])

  def differentiate(self, y_BTHK: Array, lse_BHT: Array, dy_BTHK: Array) -> Callable[..., Any]:
    """The function (dq, dbias, kv, step) -> (dq, gradients of kv, dbias), which adds to dq and dbias."""
    (B, G, R), platform, n, m = (
      self.groups,
      self.ring.st.platform,
      self.tile_T,
      self.tile_S,
    )
    dy, y = self.grouped(dy_BTHK), self.grouped(y_BTHK)
    mean = (dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1)  # of the gradient of a query's weights
    lse = lse_BHT.reshape(B, G, R, -1)
    joined = lambda x: x.astype(dy.dtype).reshape(B, G, R * n, x.shape[-1])

    def tile(carry: Any, at: Any, place: Any, causal: bool, kv: Array) -> Any:
      dq, dkv, dbias = carry
      q, dy_, mean_, lse_ = (jax.lax.dynamic_slice_in_dim(x, at[0], n, 3) for x in (self.q_BGRTK, dy, mean, lse))
      k, v = jax.lax.dynamic_slice_in_dim(kv, at[1], m, 3)
      with jax.named_scope(share_scope(0, 1)):  # computed again
        logits, visible = self.logits(q, k, place, causal)
      p = jnp.exp(logits - lse_[..., None])
      if visible is not None:
        p = jnp.where(visible, p, 0.0)
      dy_ = joined(dy_)
      dp = matmul("BGNK,BGSK->BGNS", dy_, v, platform).reshape(p.shape)
      dv = matmul("BGNS,BGNK->BGSK", joined(self.dropped(p, place)), dy_, platform)
      dlogits = p * (self.dropped(dp, place) - mean_[..., None])
      scaled = joined(dlogits * np.float32(self.ring.scale))
      dq_part = matmul("BGNS,BGSK->BGNK", scaled, k, platform).reshape(q.shape)
      dk = matmul("BGNS,BGNK->BGSK", scaled, joined(q), platform)
      if dbias is not None:
        shape = jax.ShapeDtypeStruct((G * R, n + m), jnp.float32)
        (part,) = jax.linear_transpose(lambda x: by_distance(x, n, m), shape)(dlogits.sum(0).reshape(G * R, n, m))
        dbias = added(dbias, part, self.first_distance(place), 1)
      return (
        added(dq, dq_part, at[0], 3),
        added(dkv, jnp.stack([dk, dv]), at[1], 3),
        dbias,
      )

    def gradients(dq: Array, dbias: Array | None, kv: Array, step: Array | int) -> tuple[Array, Array, Array | None]:
      zeros = jnp.zeros(kv.shape, jnp.float32)
      result: tuple[Array, Array, Array | None] = self.over_tiles(partial(tile, kv=kv), (dq, zeros, dbias), step)
      return result

    return gradients

  def zeros(self) -> Array:
    """The gradient of the queries before the first step."""
    return jnp.zeros(self.q_BGRTK.shape, jnp.float32)

  def as_queries(self, dq: Array) -> Array:
    """The gradient of the queries after the last step, [B, T, H, K]."""
    return self.ungrouped(dq.astype(self.q_BGRTK.dtype))
