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
  """The random state of one training step: scalars `seed` and `step`, and global row ids `rows_B` [B].

  `places_T`: the place of each token in its row, uint32 [T], if their order is another; see `sharding.order`.
  `heads_H`: the number of each attention head, uint32 [H], where a device has some of them alone.
  """

  seed: Array
  step: Array
  rows_B: Array
  places_T: Array | None = None
  heads_H: Array | None = None


def row_keys(noise: Noise, layer: Array | int, site: int) -> Array:
  """One uint32 key per row, [B], for one dropout site of one layer."""
  key = jnp.uint32(0)
  for value in (noise.seed, noise.step, layer, site, noise.rows_B):
    key = hashing.fold(key, value)
  return key


def is_kept(index: Array, keys: Array, rate: float) -> Array:
  """Whether dropout keeps the elements with these indices, for keys that broadcast against them."""
  return hashing.bits(index, keys) >= np.uint32(round(rate * 2**32))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dropout(x: Array, key_B: Array, places_T: Array | None, rate: float) -> Array:
  keep = is_kept(hashing.positions(x.shape, 1, places_T), key_B.reshape((-1,) + (1,) * (x.ndim - 1)), rate)
  return jnp.where(keep, x * np.asarray(1 / (1 - rate), x.dtype), np.zeros((), x.dtype))


# Dropout is linear in x. The backward pass computes the mask again instead of keeping it.
_dropout.defvjp(
  lambda x, key_B, places_T, rate: (_dropout(x, key_B, places_T, rate), (key_B, places_T)),
  lambda rate, kept, dy: (_dropout(dy, *kept, rate), None, None),
)


def dropout(x: Array, rate: float, noise: Noise | None, layer: Array | int, site: int) -> Array:
  """Zeroes values of x [B, ...] with probability `rate` and scales the rest by 1 / (1 - rate) (Srivastava et al. 2014).

  Returns x itself if `noise` is None or the rate is 0.
  """
  if noise is None or rate == 0.0:
    return x
  return _dropout(x, row_keys(noise, layer, site), noise.places_T, rate)
