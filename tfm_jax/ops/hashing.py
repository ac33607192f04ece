"""Random bits as an integer hash of the index of each value: exact, so equal under every sharding and fusion."""

from collections.abc import Sequence
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


def positions(shape: tuple[int, ...], first_axis: int = 0, places: Array | None = None) -> Array:
  """The row-major index, uint32, of each element over the axes from `first_axis` on; earlier axes have length 1.

  `places`: what counts as the place along `first_axis`, uint32, if not 0, 1, ...
  """

  def along(axis: int) -> Array:
    lengths = tuple(n if a == axis else 1 for a, n in enumerate(shape))
    if places is not None and axis == first_axis:
      return places.reshape(lengths)
    return jax.lax.broadcasted_iota(jnp.uint32, lengths, axis)

  if first_axis == len(shape):
    return jnp.zeros((1,) * len(shape), jnp.uint32)
  return row_major([along(axis) for axis in range(first_axis, len(shape))], shape[first_axis:])


def row_major(places: Sequence[Array], lengths: Sequence[int]) -> Array:
  """The row-major index of elements with these places, uint32 and broadcastable, along axes of these lengths."""
  index = places[0]
  for place, length in zip(places[1:], lengths[1:], strict=True):
    index = index * np.uint32(length) + place
  return index


def bits(index: Array, keys: Array) -> Array:
  """uint32 bits of the elements with these indices, for keys that broadcast against them."""
  return mix((index * np.uint32(0x9E3779B1) + keys) ^ (keys >> np.uint32(7)))
