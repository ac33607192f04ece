"""Attention in tiles, by dots of XLA: softmax(scale * q k + bias, where mask) v without a matrix of all weights.

The softmax is summed up as keys come (Milakov and Gimelshein 2018), in float32, so at most one tile of logits is in
memory. The backward pass computes the tiles again from the queries, keys, values, output and log-sum-exp, as in
FlashAttention (Dao et al. 2022). Tiles that a causal mask or a window leaves empty are not computed.

`attend_tiles` is the kernel of a device that has whole sequences; the ring of `sharding.ring` has tiles of other
devices' keys too.

Axes: B rows, T queries, S keys, G heads of keys and values, R query heads of each, N = R * T, K head dimension,
L = T + S distances.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.ops import hashing
from tfm_jax.ops.dropout import Noise, is_kept, row_keys
from tfm_jax.ops.experts import share_scope
from tfm_jax.ops.kernel import Need
from tfm_jax.ops.linear import matmul
from tfm_jax.ops.masks import MASKED, Mask
from tfm_jax.ops.positions import by_distance

# Queries and keys of a tile: the smallest divisor of a part that is at least this long.
TILE = 512
# Logits on one device from which on "auto" takes this kernel on GPUs, where it is no faster: 1 GiB in float32, and half
# of that for the weights that plain attention keeps in each layer for the backward pass.
MANY = 2**28

Carry = tuple[Array, ...]
Places = tuple[Any, Any]  # of the first query and the first key of a tile


def tiles_refuse(need: Need) -> str:
  """Why attention in tiles cannot serve; see `Kernel.refuses`."""
  reasons = (
    (need.cache, "does not read a cache of keys and values"),
    (need.cut, "needs whole sequences, but the strategy splits them over devices"),
    (need.uneven, "needs a number of rows that the devices divide"),
  )
  return next((words for wrong, words in reasons if wrong), "")


def tiles_suit(need: Need) -> bool:
  """Whether "auto" takes it: see `MANY`."""
  return need.platform == "gpu" and need.logits > MANY


@dataclasses.dataclass(frozen=True)
class Form:
  """The static part of attention in tiles.

  Attributes:
    causal: later keys are masked, except those of a prefix.
    scale: factor of the dot products.
    dropout: rate on the attention weights.
    platform: see `linear`.
    window: see `Mask`; 0 also if it is traced.
  """

  causal: bool
  scale: float = 1.0
  dropout: float = 0.0
  platform: str = "cpu"
  window: int = 0


class Given(NamedTuple):
  """What tiles read besides queries, keys and values, for whole rows.

  Attributes:
    query_segments_BT, key_segments_BS, prefix_BS: see `Mask`.
    window: a traced window; None: that of the `Form`.
    keys_B: dropout's key of each row; None: no dropout.
    heads_H: the number of each query head, for dropout.
  """

  query_segments_BT: Array | None = None
  key_segments_BS: Array | None = None
  prefix_BS: Array | None = None
  window: Array | None = None
  keys_B: Array | None = None
  heads_H: Array | None = None


def given_of(mask: Mask, rows: int, rate: float, noise: Noise | None, layer: Array | int, site: int, H: int) -> Given:
  """What tiles read of a mask, whose arrays get `rows` rows, and of dropout."""
  window = None if isinstance(mask.window, int) else jnp.asarray(mask.window)
  of_all = lambda x: None if x is None else jnp.broadcast_to(x, (rows, x.shape[1]))
  segments = of_all(mask.query_segments_BT), of_all(mask.key_segments_BS)
  keys_B, heads_H = None, None
  if noise is not None and rate:
    keys_B = row_keys(noise, layer, site)
    heads_H = jnp.arange(H, dtype=jnp.uint32) if noise.heads_H is None else noise.heads_H
  return Given(*segments, of_all(mask.prefix_BS), window, keys_B, heads_H)


def attend_tiles(
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
  """The entry of `KERNELS`; bias is by distance. A query without any key gets 0: see `sharding.ring`."""
  form = Form(mask.causal, scale, dropout_rate, platform, mask.window if isinstance(mask.window, int) else 0)
  given = given_of(mask, q_BTHK.shape[0], dropout_rate, noise, layer, site, q_BTHK.shape[2])
  return tiled_attention(form, q_BTHK, k_BSGK, v_BSGK, bias_HTS, given)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def tiled_attention(form: Form, q: Array, k: Array, v: Array, bias_HL: Array | None, given: Given) -> Array:
  """The attention of whole sequences, [B, T, H, K] in q's dtype. Arguments: see `Tiles`."""
  return _forward(form, q, k, v, bias_HL, given)[0]


def as_one(f: Callable[..., Any]) -> Callable[..., Any]:
  """f as one operation, for a forward pass inside a scan over blocks that is differentiated.

  Such a scan computes what is the same for all blocks before it, and keeps it: of attention in tiles the masks of all
  tiles together, and each broadcast constant. A call with a rule of its own is not taken apart.
  """
  one = jax.custom_vjp(f)
  one.defvjp(lambda *args: (f(*args), None), _not_differentiated)
  return one


def _not_differentiated(*_: Any) -> Any:
  raise AssertionError("a forward pass has the gradients of the custom VJP that it belongs to")


def _forward(form: Form, q: Array, k: Array, v: Array, bias: Array | None, given: Given) -> tuple[Array, tuple]:
  def attended(q: Array, k: Array, v: Array, bias: Array | None, given: Given) -> tuple[Array, Array]:
    part = Tiles(form, q.shape[1], k.shape[1], q, k, v, bias, given)
    return part.finish(part.attend(part.begin(), part.kv, 0))

  y, lse_BHT = as_one(attended)(q, k, v, bias, given)
  return y, (q, k, v, bias, given, y, lse_BHT)


def _backward(form: Form, saved: tuple, dy: Array) -> tuple[Array, Array, Array, Array | None, None]:
  q, k, v, bias, given, y, lse_BHT = saved
  part = Tiles(form, q.shape[1], k.shape[1], q, k, v, bias, given)
  dbias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
  dq, dkv, dbias = part.differentiate(y, lse_BHT, dy)(part.zeros(), dbias, part.kv, 0)
  dk, dv = dkv.swapaxes(2, 3).astype(k.dtype)
  return part.as_queries(dq), dk, dv, dbias if bias is None else dbias.astype(bias.dtype), None


tiled_attention.defvjp(_forward, _backward)


def tile_length(part: int) -> int:
  """The length of a tile along a part of a sequence."""
  return next(n for n in range(1, part + 1) if part % n == 0 and n >= min(part, TILE))


def added(x: Array, part: Array, start: Array | int, axis: int) -> Array:
  """x, with a part added from `start` on, in its own dtype."""
  old = jax.lax.dynamic_slice_in_dim(x, start, part.shape[axis], axis)
  return jax.lax.dynamic_update_slice_in_dim(x, old + part.astype(x.dtype), start, axis)


class Tiles:
  """Attention of a part of the queries to parts of the keys, for any mask, bias and dropout; here of all to all.

  Arrays have heads first. Subclasses have parts of sequences, and say which tiles there are and where.

  Attributes:
    T, S: numbers of queries and keys of the whole sequence.
    kv: the keys and values, [2, B, G, S, K].
  """

  def __init__(
    self, form: Form, T: int, S: int, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, bias_HL: Array | None, given: Given
  ):
    self.form, self.T, self.S, self.bias_HL, self.given = form, T, S, bias_HL, given
    B, t, H = q_BTHK.shape[:3]
    self.groups = (B, k_BSGK.shape[2], H // k_BSGK.shape[2])
    self.q_BGRTK = self.grouped(q_BTHK)
    self.kv = jnp.stack([k_BSGK, v_BSGK]).swapaxes(2, 3)
    self.tile_T, self.tile_S = tile_length(t), tile_length(k_BSGK.shape[1])

  def grouped(self, x_BTHK: Array) -> Array:
    """[B, T, H, K] -> [B, G, R, T, K]."""
    B, G, R = self.groups
    return x_BTHK.reshape(B, -1, G, R, x_BTHK.shape[-1]).transpose(0, 2, 3, 1, 4)

  def ungrouped(self, x_BGRTK: Array) -> Array:
    """The inverse of `grouped`."""
    B, G, R, t, K = x_BGRTK.shape
    return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, t, G * R, K)

  # The tiles of a step.

  def grid(self, rows: int, columns: int) -> list[tuple[int, int]]:
    """Where all tiles of this many queries and keys begin."""
    return [(i, j) for i in range(0, rows, self.tile_T) for j in range(0, columns, self.tile_S)]

  def starts(self, step: Array | int) -> np.ndarray | Array:
    """Where the tiles of a step begin in the queries and in the keys that are here, [tiles, 2]."""
    form, n, m = self.form, self.tile_T, self.tile_S
    tiles = self.grid(self.q_BGRTK.shape[3], self.kv.shape[3])
    if form.causal and self.given.prefix_BS is None:
      tiles = [(t, s) for t, s in tiles if s <= t + n - 1]
    if form.window and self.given.window is None:
      tiles = [(t, s) for t, s in tiles if t - (s + m - 1) <= form.window and s - (t + n - 1) <= form.window]
    return np.asarray(tiles, np.int32)

  def places(self, at: Places, step: Array | int) -> Places:
    """The places in the sequences of a tile that begins there."""
    return at

  def causal(self, step: Array | int) -> bool:
    """Whether tiles of a step may hold keys that a causal mask hides."""
    return self.form.causal

  def over_tiles(self, tile: Any, carry: Any, step: Array | int) -> Any:
    """The carry after tile(carry, first query, first key, place of each in the sequence, causal) of all tiles."""
    starts, causal = self.starts(step), self.causal(step)

    def one(carry: Any, start: Any) -> tuple[Any, None]:
      at = (start[0], start[1])
      place = self.places(at, step)
      run = lambda carry: tile(carry, at, place, causal)
      needed = self.needed(place, causal)
      return run(carry) if needed is None else jax.lax.cond(needed, run, lambda carry: carry, carry), None

    whole = (self.q_BGRTK.shape[3] // self.tile_T) * (self.kv.shape[3] // self.tile_S)
    with jax.named_scope(share_scope(whole, len(starts))):  # read by the count of FLOPs: all tiles, as in other kernels
      return one(carry, starts[0])[0] if len(starts) == 1 else jax.lax.scan(one, carry, jnp.asarray(starts))[0]

  def needed(self, place: Places, causal: bool) -> Array | None:
    """Whether any query of a tile sees any key, as far as a traced window decides; None: it is known to do so."""
    (t, s), window = place, self.given.window
    if window is None:
      return None
    near: Array = (t - (s + self.tile_S - 1) <= window) & (s - (t + self.tile_T - 1) <= window) | (window == 0)
    return near

  # One tile.

  def logits(self, q: Array, k: Array, place: Places, causal: bool) -> tuple[Array, Array | None]:
    """Float32 logits [B, G, R, T, S], and which are not masked."""
    (B, G, R), (n, m), given = self.groups, (self.tile_T, self.tile_S), self.given
    y = matmul("BGNK,BGSK->BGNS", q.reshape(B, G, R * n, -1), k, self.form.platform)
    y = y.reshape(B, G, R, n, m) * np.float32(self.form.scale)
    t, s = place
    if self.bias_HL is not None:
      bias_HTS = by_distance(self.distances(self.bias_HL, place), n, m)
      y = y + bias_HTS.reshape(1, G, R, n, m)
    cut = lambda x, at, length: None if x is None else jax.lax.dynamic_slice_in_dim(x, at, length, 1)
    mask = Mask(
      causal,
      self.form.window if given.window is None else given.window,
      cut(given.query_segments_BT, t, n),
      cut(given.key_segments_BS, s, m),
      t,
      s,
      cut(given.prefix_BS, s, m),
    ).dense(n, m)
    return y, None if mask is None else mask[:, None, None]

  def distances(self, x_HL: Array, place: Places) -> Array:
    """The part of x with the distances of a tile."""
    return jax.lax.dynamic_slice_in_dim(x_HL, self.first_distance(place), self.tile_T + self.tile_S, 1)

  def first_distance(self, place: Places) -> Array:
    """Where they begin."""
    return place[1] - place[0] + (self.T - self.tile_T)

  def dropped(self, x: Array, place: Places) -> Array:
    """x [B, G, R, T, S] with dropout: the bits of `attend_dense`, at these places of its [B, H, T, S]."""
    if self.given.keys_B is None:
      return x
    _, G, R, n, m = x.shape
    along = lambda first, length, axis: (
      (first + jnp.arange(length)).astype(jnp.uint32).reshape([length if a == axis else 1 for a in range(5)])
    )
    assert self.given.heads_H is not None
    heads = self.given.heads_H.reshape(1, G, R, 1, 1)
    index = hashing.row_major(
      (heads, along(place[0], n, 3), along(place[1], m, 4)),
      (G * R, self.T, self.S),
    )
    keep = is_kept(index, self.given.keys_B.reshape(-1, 1, 1, 1, 1), self.form.dropout)
    return jnp.where(keep, x * np.float32(1 / (1 - self.form.dropout)), np.float32(0))

  # What the passes ask for.

  def begin(self) -> Carry:
    """The sums over no keys: of values, the largest logit, of weights."""
    sums = jnp.zeros(self.q_BGRTK.shape[:4], jnp.float32)
    return jnp.zeros(self.q_BGRTK.shape, jnp.float32), sums + MASKED, sums

  def attend(self, carry: Carry, kv: Array, step: Array | int) -> Carry:
    """The sums with the keys and values of a step."""
    (B, G, R), platform, n, m = (
      self.groups,
      self.form.platform,
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
      self.form.platform,
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
      scaled = joined(dlogits * np.float32(self.form.scale))
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
