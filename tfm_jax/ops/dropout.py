"""Dropout whose random bits are an integer hash of the logical index of each value.

A bit depends only on (seed, step, layer, site, global row, position, feature), so it is the same under any sharding,
microbatching or pipeline. It is computed from iotas, so it fuses into neighbouring operations.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.ops import hashing


class Noise(NamedTuple):
  """The random state of one training step: scalars `seed` and `step`, and global row ids `rows_B` [B]."""

  seed: Array
  step: Array
  rows_B: Array


def row_keys(noise: Noise, layer: Array | int, site: int) -> Array:
  """One uint32 key per row, [B], for one dropout site of one layer."""
  key = jnp.uint32(0)
  for value in (noise.seed, noise.step, layer, site, noise.rows_B):
    key = hashing.fold(key, value)
  return key


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x: Array, key_B: Array, rate: float) -> Array:
  keys = key_B.reshape((-1,) + (1,) * (x.ndim - 1))
  keep = hashing.bits(hashing.positions(x.shape, 1), keys) >= np.uint32(round(rate * 2**32))
  return jnp.where(keep, x * np.asarray(1 / (1 - rate), x.dtype), np.zeros((), x.dtype))


# Dropout is linear in x. The backward pass computes the mask again instead of keeping it.
_dropout.defvjp(
  lambda x, key_B, rate: (_dropout(x, key_B, rate), key_B),
  lambda rate, key_B, dy: (_dropout(dy, key_B, rate), None),
)


def dropout(x: Array, rate: float, noise: Noise | None, layer: Array | int, site: int) -> Array:
  """Zeroes values of x [B, ...] with probability `rate` and scales the rest by 1 / (1 - rate) (Srivastava et al. 2014).

  Returns x itself if `noise` is None or the rate is 0.
  """
  if noise is None or rate == 0.0:
    return x
  return _dropout(x, row_keys(noise, layer, site), rate)
