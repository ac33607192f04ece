"""Explicit broadcasting. The tests set `jax_numpy_rank_promotion="raise"`, so ranks never differ by accident."""

import jax.numpy as jnp
from jax import Array


def to_rank(v: Array, rank: int) -> Array:
  """v with leading axes of length 1, `rank` axes in all."""
  return v.reshape((1,) * (rank - v.ndim) + v.shape)


def spread(x: Array, shape: tuple[int, ...]) -> Array:
  """x broadcast to `shape`. Its gradient is summed in float32, whatever x's dtype."""
  return jnp.broadcast_to(x.astype(jnp.float32), shape).astype(x.dtype)
