"""Normalisation, computed in float32. Only the input is kept for the backward pass."""

import jax.numpy as jnp
from jax import Array
from jax.lax import rsqrt

from tfm_jax.ops.broadcast import to_rank
from tfm_jax.ops.recompute import from_inputs


def layer_norm(x: Array, scale_D: Array, bias_D: Array | None, epsilon: float) -> Array:
  """LayerNorm over the last axis (Ba et al. 2016), in x's dtype."""

  def norm(x: Array, scale_D: Array, bias_D: Array | None) -> Array:
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon) * to_rank(scale_D, x.ndim)
    return (y if bias_D is None else y + to_rank(bias_D, x.ndim)).astype(x.dtype)

  return from_inputs(norm)(x, scale_D, bias_D)


def rms_norm(x: Array, scale_D: Array, epsilon: float) -> Array:
  """RMSNorm over the last axis (Zhang and Sennrich 2019), in x's dtype."""

  def norm(x: Array, scale_D: Array) -> Array:
    y = x.astype(jnp.float32)
    return (y * rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon) * to_rank(scale_D, x.ndim)).astype(x.dtype)

  return from_inputs(norm)(x, scale_D)
