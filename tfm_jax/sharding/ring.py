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
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from tfm_jax.ops import hashing
from tfm_jax.ops.attention import MASKED
from tfm_jax.ops.dropout import Noise, is_kept, row_keys
from tfm_jax.ops.experts import share_scope
from tfm_jax.ops.linear import matmul
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.positions import by_distance
from tfm_jax.sharding.order import NATURAL, ZIGZAG, names, places
from tfm_jax.sharding.placement import Placement

# Queries and keys of a tile: the smallest divisor of a part that is at least this long.
TILE = 512

_HEADS = ("batch", "seq", "act_heads", None)


class Given(NamedTuple):
  """What tiles read besides queries, keys and values; each device has it for whole rows.

  Attributes:
    query_segments_BT, key_segments_BS, prefix_BS, window: see `Mask`; a window of None: any distance.
    keys_B: dropout's key of each row; None: no dropout.
  """

  query_segments_BT: Array | None = None
  key_segments_BS: Array | None = None
  prefix_BS: Array | None = None
  window: Array | None = None
  keys_B: Array | None = None

  @property
  def specs(self) -> tuple[tuple[str, ...], ...]:
    """The logical axes of each field."""
    return (("batch",),) * 3 + ((), ("batch",))


@dataclasses.dataclass(frozen=True)
class Ring:
  """The static part of a ring.

  Attributes:
    st: the strategy on its mesh.
    causal: later keys are masked, except those of a prefix.
    queries, keys: the order of the parts of the sequences, see `sharding.order`.
    scale: factor of the dot products.
    dropout: rate on the attention weights.
  """

  st: Placement
  causal: bool
  queries: str = NATURAL
  keys: str = NATURAL
  scale: float = 1.0
  dropout: float = 0.0

  @property
  def axes(self) -> tuple[str, ...]:
    """The mesh axes that cut sequences."""
    return self.st.strategy.mesh_axes("seq")

  @property
  def size(self) -> int:
    """c: number of devices of the ring."""
    return math.prod(self.st.mesh.shape[axis] for axis in self.axes)

  def spec(self, *axes: str | None) -> PartitionSpec:
    """See `Placement.spec`."""
    return self.st.spec(axes)

  def shift(self, x: Array) -> Array:
    """x of the device before this one."""
    return jax.lax.ppermute(x, self.axes, [(i, (i + 1) % self.size) for i in range(self.size)])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_attention(
  ring: Ring, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, bias_HL: Array | None, given: Given
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


def _forward(
  ring: Ring, q: Array, k: Array, v: Array, bias: Array | None, given: Given
) -> tuple[Array, tuple[Array, ...]]:
  """The output, and what the backward pass reads."""
  heads, sums = ring.spec(*_HEADS), ring.spec("batch", "act_heads", "seq")
  inputs = (heads, heads, heads, ring.spec("act_heads", None), _specs(ring, given))
  part = lambda *arrays: _Part(ring, q.shape[1], k.shape[1], *arrays).forward()
  y, lse_BHT = _mapped(ring, part, inputs, (heads, sums))(q, k, v, bias, given)
  return y, (q, k, v, bias, given, y, lse_BHT)


def _backward(ring: Ring, saved: tuple, dy: Array) -> tuple[Array, Array, Array, Array | None, None]:
  q, k, v, bias, given, y, lse_BHT = saved
  heads, sums, biases = ring.spec(*_HEADS), ring.spec("batch", "act_heads", "seq"), ring.spec("act_heads", None)
  inputs = (heads, heads, heads, biases, _specs(ring, given), heads, sums, heads)
  part = lambda q_, k_, v_, b, g, *others: _Part(ring, q.shape[1], k.shape[1], q_, k_, v_, b, g).backward(*others)
  outputs = (heads, heads, heads, biases)
  dq, dk, dv, dbias = _mapped(ring, part, inputs, outputs)(q, k, v, bias, given, y, lse_BHT, dy)
  return dq, dk, dv, dbias if bias is None else dbias.astype(bias.dtype), None


ring_attention.defvjp(_forward, _backward)


def _specs(ring: Ring, given: Given) -> Given:
  return Given(*(ring.spec(*axes) for axes in given.specs))


def _mapped(ring: Ring, part: Any, inputs: Any, outputs: Any) -> Any:
  return jax.shard_map(part, mesh=ring.st.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


class _Part:
  """What one device computes. Arrays are its own parts, with heads first."""

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
    self.planned = ring.causal and ring.queries == ring.keys == ZIGZAG and given.prefix_BS is None
    tp = names(ring.spec("act_heads")[0])
    self.first_head = (jax.lax.axis_index(tp) if tp else 0) * H
    self.heads = H * math.prod(ring.st.mesh.shape[axis] for axis in tp)

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
    if first:
      triangle = block[block[:, 1] <= block[:, 0] + self.tile_T - 1]
      return jnp.asarray(np.concatenate([triangle, block + np.array([[half, 0]], np.int32), triangle + half]))
    # Of keys of an earlier device both parts of the queries see the first part, and of those of a later device the
    # second part of the queries sees both.
    both = jnp.where(source < self.device, 0, half)
    return jnp.concatenate([jnp.asarray(block + np.array([[half, 0]], np.int32)), jnp.asarray(block) + both])

  def over_tiles(self, tile: Any, carry: Any, step: Array | int) -> Any:
    """The carry after tile(carry, first query, first key, place of each in the sequence, causal) of all tiles."""
    first = isinstance(step, int) and step == 0
    source = (self.device - step) % self.ring.size
    starts = self.starts(first, source)
    causal = self.ring.causal and (first or not self.planned)

    def one(carry: Any, start: Array) -> tuple[Any, None]:
      at = (start[0], start[1])
      place = (
        places(self.ring.queries, self.ring.size, self.device, self.q_BGRTK.shape[3], at[0]),
        places(self.ring.keys, self.ring.size, source, self.kv.shape[3], at[1]),
      )
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
    index = hashing.row_major((heads, along(place[0], n, 3), along(place[1], m, 4)), (self.heads, self.T, self.S))
    keep = is_kept(index, self.given.keys_B.reshape(-1, 1, 1, 1, 1), self.ring.dropout)
    return jnp.where(keep, x * np.float32(1 / (1 - self.ring.dropout)), np.float32(0))

  # All steps.

  def forward(self) -> tuple[Array, Array]:
    """The output [B, T, H, K] and the log-sum-exp of the logits [B, H, T]."""
    (B, G, R), platform, dtype = self.groups, self.ring.st.platform, self.q_BGRTK.dtype
    n, m = self.tile_T, self.tile_S

    def tile(carry: Any, at: Any, place: Any, causal: bool, kv: Array) -> Any:
      y, top, total = (jax.lax.dynamic_slice_in_dim(x, at[0], n, 3) for x in carry)
      q, (k, v) = jax.lax.dynamic_slice_in_dim(self.q_BGRTK, at[0], n, 3), jax.lax.dynamic_slice_in_dim(kv, at[1], m, 3)
      logits, visible = self.logits(q, k, place, causal)
      if visible is not None:
        logits = jnp.where(visible, logits, MASKED)
      new = jnp.maximum(top, logits.max(-1))
      p = jnp.exp(logits - new[..., None])
      if visible is not None:
        p = jnp.where(visible, p, 0.0)
      shrunk = jnp.exp(top - new)
      weights = self.dropped(p, place).astype(dtype).reshape(B, G, R * n, m)
      added = matmul("BGNS,BGSK->BGNK", weights, v, platform).reshape(y.shape)
      new_tiles = (y * shrunk[..., None] + added, new, total * shrunk + p.sum(-1))
      return tuple(
        jax.lax.dynamic_update_slice_in_dim(x, tile, at[0], 3) for x, tile in zip(carry, new_tiles, strict=True)
      )

    attend = lambda carry, kv, step: self.over_tiles(partial(tile, kv=kv), carry, step)
    sums = jnp.zeros(self.q_BGRTK.shape[:4], jnp.float32)
    carry = (jnp.zeros(self.q_BGRTK.shape, jnp.float32), sums + MASKED, sums)
    c, kv = self.ring.size, self.kv
    if c > 1:
      kv = self.ring.shift(kv)
    carry = attend(carry, self.kv, 0)
    if c > 2:
      body = lambda state, step: ((attend(state[0], state[1], step), self.ring.shift(state[1])), None)
      (carry, kv), _ = jax.lax.scan(body, (carry, kv), jnp.arange(1, c - 1))
    if c > 1:
      carry = attend(carry, kv, c - 1)
    y, top, total = carry
    empty = total == 0
    y = y / jnp.where(empty, 1.0, total)[..., None]
    lse = jnp.where(empty, 0.0, top + jnp.log(jnp.where(empty, 1.0, total)))
    return self.ungrouped(y.astype(dtype)), lse.reshape(B, G * R, -1)

  def backward(self, y: Array, lse_BHT: Array, dy: Array) -> tuple[Array, Array, Array, Array | None]:
    """The gradients of queries, keys, values and bias."""
    (B, G, R), platform, dtype = self.groups, self.ring.st.platform, self.q_BGRTK.dtype
    n, m = self.tile_T, self.tile_S
    dy, y = self.grouped(dy), self.grouped(y)
    mean = (dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1)  # of the weights' gradient
    lse = lse_BHT.reshape(B, G, R, -1)
    joined = lambda x: x.astype(dtype).reshape(B, G, R * n, x.shape[-1])

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
      dq_ = matmul("BGNS,BGSK->BGNK", scaled, k, platform).reshape(q.shape)
      dk = matmul("BGNS,BGNK->BGSK", scaled, joined(q), platform)
      add = lambda x, part, start, axis: jax.lax.dynamic_update_slice_in_dim(
        x, jax.lax.dynamic_slice_in_dim(x, start, part.shape[axis], axis) + part, start, axis
      )
      if dbias is not None:
        shape = jax.ShapeDtypeStruct((G * R, n + m), jnp.float32)
        transposed = jax.linear_transpose(lambda x: by_distance(x, n, m), shape)
        (part,) = transposed(dlogits.sum(0).reshape(G * R, n, m))
        dbias = add(dbias, part, self.first_distance(place), 1)
      return add(dq, dq_, at[0], 3), add(dkv, jnp.stack([dk, dv]), at[1], 3), dbias

    def gradients(dq: Array, dbias: Array | None, kv: Array, step: Any) -> tuple[Array, Array, Array | None]:
      zeros = jnp.zeros(kv.shape, jnp.float32)
      return self.over_tiles(partial(tile, kv=kv), (dq, zeros, dbias), step)

    c, kv, shift = self.ring.size, self.kv, self.ring.shift
    if c > 1:
      kv = shift(kv)
    dbias = None if self.bias_HL is None else jnp.zeros(self.bias_HL.shape, jnp.float32)
    dq, dkv, dbias = gradients(jnp.zeros(self.q_BGRTK.shape, jnp.float32), dbias, self.kv, 0)

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
      dkv = shift(came + own)
    if dbias is not None:
      dbias = jax.lax.psum(dbias, (*names(self.ring.spec("batch")[0]), *self.ring.axes))
    dk, dv = dkv.swapaxes(2, 3).astype(dtype)
    return self.ungrouped(dq.astype(dtype)), dk, dv, dbias


def tile_length(part: int, order: str) -> int:
  """The length of a tile along a device's part of a sequence."""
  part = part // 2 if order == ZIGZAG else part
  return next(n for n in range(1, part + 1) if part % n == 0 and n >= min(part, TILE))


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
    keys_B = row_keys(noise, layer, site) if noise is not None and dropout_rate else None
    window = None if isinstance(mask.window, int) and not mask.window else jnp.asarray(mask.window)
    given = Given(mask.query_segments_BT, mask.key_segments_BS, mask.prefix_BS, window, keys_B)
    return ring_attention(ring, q_BTHK, k_BSGK, v_BSGK, bias_HTS, given)
