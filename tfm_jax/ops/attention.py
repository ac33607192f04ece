"""Scaled dot-product attention (Vaswani et al. 2017)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.linear import matmul

# Finite, so that a row in which everything is masked (padding) stays finite too.
MASKED = np.float32(-1e30)


def attention(
  q_BTHK: Array,
  k_BSHK: Array,
  v_BSHK: Array,
  *,
  mask_BTS: Array | None,
  bias_HTS: Array | None,
  scale: float,
  platform: str,
  dropout_rate: float = 0.0,
  noise: Noise | None = None,
  layer: Array | int = 0,
  site: int = 0,
) -> Array:
  """softmax(scale * q k + bias, where mask) v: [B, T, H, K] in q's dtype; logits and softmax in float32.

  Args:
    q_BTHK: queries; k_BSHK, v_BSHK: keys and values, all in the compute dtype.
    mask_BTS: Boolean [B or 1, T, S], or None; a query with no key to see gets the mean of all values.
    bias_HTS: float32 bias of the logits, or None.
    scale: factor of the dot products.
    platform: see `linear`.
    dropout_rate, noise, layer, site: dropout of the attention weights.
  """
  logits_BHTS = matmul("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, platform) * np.float32(scale)
  if bias_HTS is not None:
    logits_BHTS = logits_BHTS + bias_HTS[None]
  if mask_BTS is not None:
    logits_BHTS = jnp.where(mask_BTS[:, None], logits_BHTS, MASKED)
  weights_BHTS = softmax(logits_BHTS, q_BTHK.dtype)
  weights_BHTS = dropout(weights_BHTS, dropout_rate, noise, layer, site)
  return matmul("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK, platform).astype(q_BTHK.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(logits: Array, dtype: jnp.dtype) -> Array:
  """Softmax over the last axis, in float32, returned and kept for the backward pass in `dtype`."""
  return jax.nn.softmax(logits, axis=-1).astype(dtype)


def _softmax_backward(dtype: jnp.dtype, weights: Array, d_weights: Array) -> tuple[Array]:
  w, dw = weights.astype(jnp.float32), d_weights.astype(jnp.float32)
  return (w * (dw - (w * dw).sum(-1, keepdims=True)),)


softmax.defvjp(lambda logits, dtype: (softmax(logits, dtype),) * 2, _softmax_backward)
