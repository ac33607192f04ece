"""Explicit broadcasting: `jax_numpy_rank_promotion="raise"` holds in the tests, so that no rank differs by accident."""

from jax import Array


def to_rank(v: Array, rank: int) -> Array:
  """v with axes of length 1 put before it, up to `rank` axes."""
  return v.reshape((1,) * (rank - v.ndim) + v.shape)
