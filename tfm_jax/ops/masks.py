"""Which query may see which key, as data: a `Mask` becomes an array only for a kernel that needs one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

CAUSAL = "causal"  # name scope of the products of attention in which no query sees a later key: half of them is needed


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["window", "query_segments_BT", "key_segments_BS", "query_offset", "key_offset"],
  meta_fields=["causal"],
)
@dataclasses.dataclass(frozen=True)
class Mask:
  """Which query may see which key. Query t stands at place `query_offset` + t, key s at place `key_offset` + s.

  Attributes:
    causal: a query sees no key at a later place.
    window: a query sees no key that is further away than this, on either side; 0: it sees keys at any distance.
    query_segments_BT, key_segments_BS: a query sees the keys of its own segment only; None: one segment. 0 is padding:
      it is never seen, and itself sees the keys of all segments, as in implementations that mask keys alone.
    query_offset, key_offset: places of the first query and key: keys of a cache begin before the new queries, and the
      parts of a sequence that devices share do not begin at 0. These and the window may be traced scalars.
  """

  causal: bool = False
  window: int | Array = 0
  query_segments_BT: Array | None = None
  key_segments_BS: Array | None = None
  query_offset: int | Array = 0
  key_offset: int | Array = 0

  def dense(self, queries: int, keys: int) -> Array | None:
    """True where query t may see key s, [B or 1, T, S]; None if every query sees every key."""
    mask = None
    windowed = not isinstance(self.window, int) or self.window > 0
    if self.causal or windowed:  # numpy's, and so constants, unless something is traced
      distances = np.arange(queries)[:, None] - np.arange(keys) + (self.query_offset - self.key_offset)
      near = (abs(distances) <= self.window) | (self.window == 0) if windowed else True
      mask = jnp.asarray(near & (distances >= 0) if self.causal else near)[None]
    if self.query_segments_BT is not None and self.key_segments_BS is not None:
      same = self.query_segments_BT[:, :, None] == self.key_segments_BS[:, None, :]
      same |= (self.query_segments_BT == 0)[:, :, None]
      same &= (self.key_segments_BS != 0)[:, None, :]
      mask = same if mask is None else mask & same
    return mask
