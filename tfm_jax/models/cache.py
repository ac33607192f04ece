"""The cache of a decoder, an explicit argument and result: keys and values, or the states of recurrent layers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.sharding.placement import Placement

AXES = ("batch", "act_heads", "seq", None)  # of the keys and values of a layer in a cache
STATE = ("batch", "act_mlp")  # axes of a vector of a recurrent layer's state


class KeysValues(NamedTuple):
  """Keys and values of one layer, or of all with a leading axis N.

  Computed ones are [B, S, G, K]. A cache has them as [B, G, S, K]: all that a head reads stands together, where XLA:CPU
  would otherwise move the whole cache at every token.

  Attributes:
    k, v: in the compute dtype; in a cache perhaps in another, such as int8.
    k_scale, v_scale: factors of int8 keys and values, one for each token and head: float32 [..., B, G, S].
  """

  k: Array
  v: Array
  k_scale: Array | None = None
  v_scale: Array | None = None

  def with_new(self, new: "KeysValues", start: Array, st: Placement) -> "KeysValues":
    """These, of a cache, with new ones as computed written from column `start` on."""
    layers = ("layers",) * (self.k.ndim - 4)

    def put(old: Array, x: Array) -> Array:
      axes = layers + AXES[: old.ndim - len(layers)]
      return st.constrain(jax.lax.dynamic_update_slice_in_dim(old, x, start, axis=len(layers) + 2), axes)

    return jax.tree.map(put, self, new.stored(self.k.dtype))

  def stored(self, dtype: jnp.dtype) -> "KeysValues":
    """These, as computed, in the form and dtype of a cache; int8 with the scale of each token and head."""
    k, v = (x.swapaxes(-3, -2) for x in (self.k, self.v))
    if dtype != jnp.int8:
      return KeysValues(k.astype(dtype), v.astype(dtype))
    (k, k_scale), (v, v_scale) = map(_quantized, (k, v))
    return KeysValues(k, v, k_scale, v_scale)

  def read(self, dtype: jnp.dtype) -> "KeysValues":
    """These, of a cache, as computed ones in the compute dtype."""

    def wide(x: Array, scale: Array | None) -> Array:
      whole = x if scale is None else x.astype(jnp.float32) * scale[..., None]
      return whole.astype(dtype).swapaxes(-3, -2)  # no bytes are moved: a dot takes the axes in any order

    return KeysValues(wide(self.k, self.k_scale), wide(self.v, self.v_scale))


def _quantized(x: Array) -> tuple[Array, Array]:
  """(int8, scale) with x = int8 * scale[..., None], up to rounding."""
  x = x.astype(jnp.float32)
  scale = jnp.abs(x).max(-1) / 127.0
  return jnp.round(x / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)[..., None]).astype(jnp.int8), scale


class Memory(NamedTuple):
  """An encoder's output for its decoder: hidden states [B, S, D], and the segments [B, S] of their tokens, if any.

  `routing` is what its experts did, if it has any: see `heads.head.ROUTING`.
  """

  h_BSD: Array
  segments_BS: Array | None = None
  routing: Array | None = None


class KeyValueCache(NamedTuple):
  """Keys and values of the tokens that a decoder has read. A column holds one token of each row.

  The token at place p is in column p % S: where all layers have a window, columns may be fewer than places, and new
  tokens take those of tokens that have left the window.

  Attributes:
    length: number of tokens of a row so far, with padding, int32 scalar.
    segments_BS: segment ids of the tokens, int32 [B, S]; 0 for padding and unfilled columns, which are masked.
    own: keys and values of the tokens, [N, B, G, S, K].
    across: keys and values of the encoder's output, computed once; None without an encoder.
    memory_segments_BS: segments of the encoder's tokens; None: a single segment.
  """

  length: Array
  segments_BS: Array
  own: KeysValues
  across: KeysValues | None = None
  memory_segments_BS: Array | None = None

  @property
  def columns(self) -> int:
    """The number of columns."""
    return self.segments_BS.shape[1]

  @property
  def start(self) -> Array:
    """The column of the next token."""
    return self.length % self.columns

  @property
  def kept(self) -> dict[str, KeysValues]:
    """The keys and values by name of the attention layer."""
    return {"attn": self.own} | ({} if self.across is None else {"cross": self.across})

  def places(self, new: int) -> Array:
    """The place of the token in each column once there are `new` more, [S]; of unfilled columns it is negative."""
    last = self.length + new - 1
    return last - (last - jnp.arange(self.columns)) % self.columns

  def with_segments(self, segments_BT: Array) -> "KeyValueCache":
    """The cache with the segments of new tokens written into their columns; `length` is unchanged."""
    put = jax.lax.dynamic_update_slice_in_dim(self.segments_BS, segments_BT, self.start, axis=1)
    return self._replace(segments_BS=put)

  def with_tokens(self, new: dict[str, KeysValues], st: Placement) -> "KeyValueCache":
    """The cache with the keys and values [N, B, T, ...] of T new tokens."""
    across = new["cross"].stored(self.own.k.dtype) if "cross" in new else self.across
    own = self.own.with_new(new["attn"], self.start, st)
    return self._replace(own=own, across=across, length=self.length + new["attn"].k.shape[2])

  def cut(self, length: Array) -> "KeyValueCache":
    """The cache with its first `length` tokens alone, where each has a column of its own."""
    segments = jnp.where(jnp.arange(self.columns)[None] < length, self.segments_BS, 0)
    return self._replace(length=length, segments_BS=segments)

  def repeated(self, times: int) -> "KeyValueCache":
    """The cache with each row `times` times, one after the other."""
    rows = lambda tree, axis: jax.tree.map(lambda x: jnp.repeat(x, times, axis=axis), tree)
    kept = {name: rows(getattr(self, name), 1) for name in ("own", "across")}
    return self._replace(
      segments_BS=rows(self.segments_BS, 0), memory_segments_BS=rows(self.memory_segments_BS, 0), **kept
    )

  def agreed(self, pick_B1: Array, column: Array) -> "KeyValueCache":
    """The cache in which all rows of a group have the picked one's keys and values in a column.

    `pick_B1`: the number of a row in its group; groups of equally many rows stand one after the other.
    """

    def agree(x: Array) -> Array:  # [N, B * K, G, S, ...]
      last = jax.lax.dynamic_slice_in_dim(x, column, 1, axis=3)
      return jax.lax.dynamic_update_slice_in_dim(x, _of_picked(last, pick_B1), column, 3)

    return self._replace(own=jax.tree.map(agree, self.own))


def _of_picked(x: Array, pick_B1: Array) -> Array:
  """x [N, B * K, ...], in which all rows of a group have the values of the picked one."""
  groups = len(pick_B1)
  grouped = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
  chosen = jnp.take_along_axis(grouped, pick_B1.reshape(1, groups, *(1,) * (grouped.ndim - 2)), axis=2)
  return jnp.repeat(chosen, grouped.shape[2], 2).reshape(x.shape)


class States(NamedTuple):
  """The states of recurrent layers after the tokens that a decoder has read. Their size is always the same.

  Attributes:
    length: number of tokens of a row so far, with padding, int32 scalar.
    segment_B: segment of the last token of each row; 0: there is none.
    own: the vectors of the state, float32 [N, B, F] each.
    across, memory_segments_BS: see `KeyValueCache`; of the one attention after the layers.
  """

  length: Array
  segment_B: Array
  own: tuple[Array, ...]
  across: KeysValues | None = None
  memory_segments_BS: Array | None = None

  def repeated(self, times: int) -> "States":
    """See `KeyValueCache`."""
    rows = lambda tree, axis: jax.tree.map(lambda x: jnp.repeat(x, times, axis=axis), tree)
    kept = {name: rows(getattr(self, name), 1) for name in ("own", "across")}
    return self._replace(segment_B=rows(self.segment_B, 0), memory_segments_BS=rows(self.memory_segments_BS, 0), **kept)

  def agreed(self, pick_B1: Array, column: Array) -> "States":
    """See `KeyValueCache`. The states are those after the column that was written last."""
    return self._replace(own=jax.tree.map(lambda x: _of_picked(x, pick_B1), self.own))


Cache = KeyValueCache | States


def empty_states(st: Placement, layers: int, rows: int, vectors: int, features: int) -> States:
  """The states of `layers` recurrent layers that have read nothing."""
  zeros = st.constrain(jnp.zeros((layers, rows, features), jnp.float32), ("layers", *STATE))
  segment_B = st.constrain(jnp.zeros((rows,), jnp.int32), ("batch",))
  return States(jnp.zeros((), jnp.int32), segment_B, (zeros,) * vectors)


def empty_cache(c: ModelConfig, st: Placement, layers: int, rows: int, columns: int, dtype: str = "") -> KeyValueCache:
  """An empty cache with `columns` columns. `dtype`: float32, bfloat16 or int8; empty: the compute dtype."""
  shape = (layers, rows, columns, c.kv_heads, c.head_features)  # as computed
  zeros = KeysValues(*(jnp.zeros(shape, c.compute_dtype),) * 2).stored(jnp.dtype(dtype or c.compute_dtype))
  own = jax.tree.map(lambda x: st.constrain(x, ("layers", *AXES)[: x.ndim]), zeros)
  segments = st.constrain(jnp.zeros((rows, columns), jnp.int32), ("batch", "seq"))
  return KeyValueCache(jnp.zeros((), jnp.int32), segments, own)
