"""Which query may see which key, as a Boolean array [B or 1, T, S]; None means that everything is seen."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def attention_mask(
  query_segments_BT: Array | None, key_segments_BS: Array | None, causal: bool, queries: int, keys: int
) -> Array | None:
  """True where query t may attend key s: same segment (0 is padding and is never seen) and, if causal, s <= t."""
  mask = None
  if causal:
    mask = jnp.asarray(np.tri(queries, keys, dtype=bool)[None])
  if query_segments_BT is not None and key_segments_BS is not None:
    same = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    same &= (key_segments_BS != 0)[:, None, :]
    mask = same if mask is None else mask & same
  return mask
