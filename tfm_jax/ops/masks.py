"""`Mask`: which query may attend to which key, as data. It becomes an array only for kernels that need one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Logit of a masked key. It is finite so that the softmax of a fully masked query (padding) is finite.
MASKED = np.float32(-1e30)
CAUSAL = "causal"  # named scope of causal attention, of whose products only half are needed


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Mask:
  """Which query may attend to which key. Query t is at place `query_offset` + t, key s at place `key_offset` + s.

  As a tree its leaves are arrays alone: numbers that are known stay known inside of `jax.checkpoint`.

  Attributes:
    causal: keys at later places are masked.
    window: keys at a greater distance than this, on either side, are masked; 0: any distance is allowed.
    query_segments_BT, key_segments_BS: keys of other segments are masked; None: a single segment. Segment 0 is padding:
      as a key it is always masked; as a query it attends to all segments, as in implementations that only mask keys.
    query_offset, key_offset: places of the first query and key. Keys of a cache begin before the new queries, and a
      device's part of a sequence does not begin at 0. The offsets and the window may be traced scalars. Keys that are
      not in order have an offset each, [1, S].
    prefix_BS: 1 for keys that earlier queries see too, although the mask is causal (Raffel et al. 2020); None: no key.
  """

  causal: bool = False
  window: int | Array = 0
  query_segments_BT: Array | None = None
  key_segments_BS: Array | None = None
  query_offset: int | Array = 0
  key_offset: int | Array = 0
  prefix_BS: Array | None = None

  def tree_flatten(self) -> tuple[tuple, tuple]:
    """(arrays, what is known)."""
    values = [getattr(self, field.name) for field in dataclasses.fields(self)]
    known = tuple(value if isinstance(value, int) else None for value in values)
    return tuple(None if isinstance(value, int) else value for value in values), known

  @classmethod
  def tree_unflatten(cls, known: tuple, arrays: tuple) -> "Mask":
    """The inverse of `tree_flatten`."""
    return cls(*(array if value is None else value for value, array in zip(known, arrays, strict=True)))

  def dense(self, queries: int, keys: int) -> Array | None:
    """True where query t may attend to key s, [B or 1, T, S]; None if nothing is masked."""
    mask = None
    windowed = not isinstance(self.window, int) or self.window > 0
    if self.causal or windowed:  # numpy constants, unless an offset or the window is traced
      distances = np.arange(queries)[:, None] - np.arange(keys) + (self.query_offset - self.key_offset)
      near = (abs(distances) <= self.window) | (self.window == 0) if windowed else True
      mask = jnp.asarray(near & (distances >= 0) if self.causal else near)[None]
      if self.causal and self.prefix_BS is not None:
        ahead = jnp.asarray(near & (distances < 0))[None]
        mask = mask | (ahead & (self.prefix_BS != 0)[:, None, :])
    if self.query_segments_BT is not None and self.key_segments_BS is not None:
      same = self.query_segments_BT[:, :, None] == self.key_segments_BS[:, None, :]
      same |= (self.query_segments_BT == 0)[:, :, None]
      same &= (self.key_segments_BS != 0)[:, None, :]
      mask = same if mask is None else mask & same
    return mask
