"""Random bits as an integer hash of the index of each value: exact, so equal under every sharding and fusion."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def mix(h: Array) -> Array:
  """A bijection of uint32 in which each input bit flips each output bit with probability 1/2 ("lowbias32")."""
  h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
  h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
  return h ^ (h >> np.uint32(16))


def fold(key: Array, value: Any) -> Array:
  """A new uint32 key from a key and a number, or from arrays of them that broadcast."""
  return mix(key ^ jnp.asarray(value).astype(jnp.uint32)) + np.uint32(0x9E3779B9)


def positions(shape: tuple[int, ...], first_axis: int = 0) -> Array:
  """The row-major index, uint32, of each element over the axes from `first_axis` on; earlier axes have length 1."""
  index = jnp.zeros((1,) * len(shape), jnp.uint32)
  for axis in range(first_axis, len(shape)):
    along = tuple(n if a == axis else 1 for a, n in enumerate(shape))
    index = index * np.uint32(shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, along, axis)
  return index


def bits(index: Array, keys: Array) -> Array:
  """uint32 bits of the elements with these indices, for keys that broadcast against them."""
  return mix((index * np.uint32(0x9E3779B1) + keys) ^ (keys >> np.uint32(7)))
