"""A kernel of attention as somebody else would add it: this file, and one row in `KERNELS`.

It goes through the keys one after another with a running softmax, and reads the mask as data.
"""

import jax
import jax.numpy as jnp

from tfm_jax.ops.kernel import Kernel

calls = []


def attend(q_BTHK, k_BSGK, v_BSGK, *, mask, bias_HTS, scale, platform, **_):
  """See `ops.attention.attend_dense`."""
  calls.append(q_BTHK.shape)
  (B, T, H, K), S = q_BTHK.shape, k_BSGK.shape[1]
  k, v = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k_BSGK, v_BSGK))

  def step(carry, s):
    top, total, y = carry
    logits = jnp.einsum("BTHK,BHK->BTH", q_BTHK, k[:, s], precision="highest") * scale
    distances = mask.query_offset + jnp.arange(T) - mask.key_offset - s
    seen = (mask.window == 0) | (abs(distances) <= mask.window)
    seen = (seen & (distances >= 0) if mask.causal else seen)[None]
    if mask.query_segments_BT is not None:
      query, key = mask.query_segments_BT, jax.lax.dynamic_slice_in_dim(mask.key_segments_BS, s, 1, axis=1)
      seen = seen & ((query == key) | (query == 0)) & (key != 0)
    logits = jnp.where(seen[:, :, None], logits, -1e30)
    new = jnp.maximum(top, logits)
    old, weight = jnp.exp(top - new), jnp.exp(logits - new)
    return (new, total * old + weight, y * old[..., None] + weight[..., None] * v[:, s][:, None]), None

  empty = (jnp.full((B, T, H), -jnp.inf), jnp.zeros((B, T, H)), jnp.zeros((B, T, H, K)))
  (_, total, y), _ = jax.lax.scan(step, empty, jnp.arange(S))
  return (y / total[..., None]).astype(q_BTHK.dtype)


def refuses(need):
  """Why it cannot serve."""
  if need.bias:
    return "adds nothing to the logits"
  if need.cache:
    return "reads no cache"
  return "has no dropout" if need.dropout else ""


KERNEL = Kernel(attend, refuses)
