"""Scaled dot-product attention (Vaswani et al. 2017), and the table of kernels that compute it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.errors import UserError
from tfm_jax.ops.cudnn import attend_cudnn, cudnn_refuses, prepare_cudnn
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.kernel import Kernel, Need
from tfm_jax.ops.linear import matmul
from tfm_jax.ops.masks import MASKED, Mask
from tfm_jax.ops.splash import attend_splash, splash_refuses
from tfm_jax.ops.tiles import attend_tiles, tiles_refuse, tiles_suit


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
  """softmax(scale * q k + bias, where mask) v, [B, T, H, K] in q's dtype. Logits and softmax are float32.

  Args:
    q_BTHK: queries; k_BSHK, v_BSHK: keys and values, all in the compute dtype.
    mask_BTS: Boolean [B or 1, T, S], or None. A fully masked query gets the mean of all values.
    bias_HTS: float32 bias of the logits, or None.
    scale: factor of the dot products.
    platform: see `linear`.
    dropout_rate, noise, layer, site: dropout of the attention weights.
  """
  logits_BHTS = attention_logits(q_BTHK, k_BSHK, mask_BTS, bias_HTS, scale, platform)
  weights_BHTS = softmax(logits_BHTS, q_BTHK.dtype)
  weights_BHTS = dropout(weights_BHTS, dropout_rate, noise, layer, site)
  return matmul("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK, platform).astype(q_BTHK.dtype)


def attention_logits(
  q_BTHK: Array, k_BSHK: Array, mask_BTS: Array | None, bias_HTS: Array | None, scale: float, platform: str
) -> Array:
  """scale * q k + bias, float32 [B, H, T, S]; -1e30 where the mask is False. Arguments: see `attention`."""
  logits_BHTS = matmul("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, platform) * np.float32(scale)
  if bias_HTS is not None:
    logits_BHTS = logits_BHTS + bias_HTS[None]
  if mask_BTS is not None:
    logits_BHTS = jnp.where(mask_BTS[:, None], logits_BHTS, MASKED)
  return logits_BHTS


def attention_probabilities(
  q_BTHK: Array, k_BSGK: Array, mask_BTS: Array | None, bias_HTS: Array | None, scale: float, platform: str
) -> Array:
  """The attention weights, float32 [B, H, T, S]; 0 for masked keys, even if all keys of a query are masked.

  Args:
    q_BTHK: queries.
    k_BSGK: keys; each of the G heads serves a group of H / G query heads.
    mask_BTS, bias_HTS, scale, platform: see `attention`.
  """
  k_BSHK = jnp.repeat(k_BSGK, q_BTHK.shape[2] // k_BSGK.shape[2], axis=2)
  weights_BHTS = jax.nn.softmax(attention_logits(q_BTHK, k_BSHK, mask_BTS, bias_HTS, scale, platform), axis=-1)
  return weights_BHTS if mask_BTS is None else jnp.where(mask_BTS[:, None], weights_BHTS, 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(logits: Array, dtype: jnp.dtype) -> Array:
  """Softmax over the last axis, computed in float32; returned, and kept for the backward pass, in `dtype`."""
  return jax.nn.softmax(logits, axis=-1).astype(dtype)


def _softmax_backward(dtype: jnp.dtype, weights: Array, d_weights: Array) -> tuple[Array]:
  w, dw = weights.astype(jnp.float32), d_weights.astype(jnp.float32)
  return (w * (dw - (w * dw).sum(-1, keepdims=True)),)


softmax.defvjp(lambda logits, dtype: (softmax(logits, dtype),) * 2, _softmax_backward)


def attend_dense(
  q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, *, mask: Array | None, bias_HTS: Array | None, **others: Any
) -> Array:
  """`attention` in which each of G heads of keys and values serves H / G query heads.

  Args:
    q_BTHK: queries; k_BSGK, v_BSGK: keys and values.
    mask: in the form that the kernel prepares: here a Boolean array [B or 1, T, S], or None.
    bias_HTS: float32 bias of the logits, or None.
    others: see `attention`.
  """
  (B, T, H, K), G = q_BTHK.shape, k_BSGK.shape[2]
  if T == 1 and H > G and others.get("noise") is None:  # one token: R query heads act as R queries, no copies
    q_BRGK = q_BTHK.reshape(B, G, H // G, K).swapaxes(1, 2)
    bias_GRS = None if bias_HTS is None else bias_HTS.reshape(G, H // G, -1)
    y_BRGK = attention(q_BRGK, k_BSGK, v_BSGK, mask_BTS=mask, bias_HTS=bias_GRS, **others)
    return y_BRGK.swapaxes(1, 2).reshape(B, T, H, K)
  k_BSHK, v_BSHK = (jnp.repeat(x, H // G, axis=2) if H > G else x for x in (k_BSGK, v_BSGK))
  return attention(q_BTHK, k_BSHK, v_BSHK, mask_BTS=mask, bias_HTS=bias_HTS, **others)


# "auto" takes the first kernel that can serve and suits; the last always can and does.
KERNELS = {
  "splash": Kernel(attend_splash, splash_refuses, local=True),
  "cudnn": Kernel(attend_cudnn, cudnn_refuses, prepare_cudnn, local=True, by_distance=True),
  "tiles": Kernel(attend_tiles, tiles_refuse, local=True, by_distance=True, suits=tiles_suit),
  "xla": Kernel(attend_dense, lambda need: "", Mask.dense),
}


def find_kernel(name: str, need: Need) -> Kernel:
  """The kernel of that name, or for "auto" the first that can serve and suits. Raises UserError if it cannot serve."""
  if name == "auto":
    return next(kernel for kernel in KERNELS.values() if kernel.suits(need) and not kernel.refuses(need))
  why = KERNELS[name].refuses(need)
  if why:
    raise UserError(f"model.attention={name} {why}: change that, or set model.attention=auto")
  return KERNELS[name]
