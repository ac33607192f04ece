"""The key-value cache of a decoder, an explicit argument and result. One array holds all layers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.sharding.placement import Placement

AXES = ("batch", "seq", "act_heads", None)  # of the keys and values of a layer


class KeysValues(NamedTuple):
  """Keys and values, [B, S, G, K] of one layer or [N, B, S, G, K] of all, in the compute dtype."""

  k: Array
  v: Array

  def with_new(self, new: "KeysValues", start: Array, st: Placement) -> "KeysValues":
    """The keys and values with new ones written from column `start` on."""
    axes = ("layers",) * (self.k.ndim - 4) + AXES
    put = lambda old, x: st.constrain(jax.lax.dynamic_update_slice_in_dim(old, x, start, axis=-3), axes)
    return KeysValues(*map(put, self, new))


class Memory(NamedTuple):
  """An encoder's output for its decoder: hidden states [B, S, D], and the segments [B, S] of their tokens, if any."""

  h_BSD: Array
  segments_BS: Array | None = None


class Cache(NamedTuple):
  """Keys and values of the tokens that a decoder has read. A column holds one token of each row.

  Attributes:
    length: number of columns filled so far, int32 scalar.
    segments_BS: segment ids of the tokens, int32 [B, S]; 0 for padding and unfilled columns, which are masked.
    own: keys and values of the tokens, [N, B, S, G, K].
    across: keys and values of the encoder's output, computed once; None without an encoder.
    memory_segments_BS: segments of the encoder's tokens; None: a single segment.
  """

  length: Array
  segments_BS: Array
  own: KeysValues
  across: KeysValues | None = None
  memory_segments_BS: Array | None = None

  @property
  def kept(self) -> dict[str, KeysValues]:
    """The keys and values by name of the attention layer."""
    return {"attn": self.own} | ({} if self.across is None else {"cross": self.across})

  def with_segments(self, segments_BT: Array) -> "Cache":
    """The cache with the segments of new tokens written into their columns; `length` is unchanged."""
    put = jax.lax.dynamic_update_slice_in_dim(self.segments_BS, segments_BT, self.length, axis=1)
    return self._replace(segments_BS=put)

  def with_tokens(self, new: dict[str, KeysValues], st: Placement) -> "Cache":
    """The cache with the keys and values [N, B, T, ...] of T new tokens."""
    across = new.get("cross", self.across)
    own = self.own.with_new(new["attn"], self.length, st)
    return self._replace(own=own, across=across, length=self.length + new["attn"].k.shape[2])


def empty_cache(c: ModelConfig, st: Placement, layers: int, rows: int, columns: int) -> Cache:
  """An empty cache with room for `columns` tokens per row."""
  zeros = jnp.zeros((layers, rows, columns, c.kv_heads, c.head_features), c.compute_dtype)
  zeros = st.constrain(zeros, ("layers", *AXES))
  segments = st.constrain(jnp.zeros((rows, columns), jnp.int32), ("batch", "seq"))
  return Cache(jnp.zeros((), jnp.int32), segments, KeysValues(zeros, zeros))
