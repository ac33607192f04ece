"""Which query may see which key, as a Boolean array [B or 1, T, S]; None means that everything is seen."""

import jax.numpy as jnp
import numpy as np
from jax import Array

CAUSAL = "causal"  # name scope of the products of attention in which no query sees a later key: half of them is needed


def attention_mask(
  query_segments_BT: Array | None,
  key_segments_BS: Array | None,
  causal: bool,
  queries: int,
  keys: int,
  window: int = 0,
) -> Array | None:
  """True where query t may attend key s.

  Same segment (0 is padding: it is never seen, and itself sees all segments, as in implementations that mask keys
  alone), s <= t if causal, and |s - t| <= window if there is one.
  """
  mask = None
  if causal or window:
    distances = np.arange(queries)[:, None] - np.arange(keys)[None, :]
    near = np.ones((queries, keys), bool) if not window else np.abs(distances) <= window
    mask = jnp.asarray((near & (distances >= 0) if causal else near)[None])
  if query_segments_BT is not None and key_segments_BS is not None:
    same = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    same |= (query_segments_BT == 0)[:, :, None]
    same &= (key_segments_BS != 0)[:, None, :]
    mask = same if mask is None else mask & same
  return mask
