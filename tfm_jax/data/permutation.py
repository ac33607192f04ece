"""A stateless shuffle: any element of a pseudo-random permutation, without storing the permutation."""

import numpy as np

from tfm_jax.objectives.draws import GOLDEN, hash_words, mix

_ROUNDS = 8


def permute(index: np.ndarray, size: int, seed: int, epoch: np.ndarray) -> np.ndarray:
  """The images of `index` [N], each in [0, size), under the permutation that belongs to (seed, epoch [N]).

  A Feistel network permutes the next power of two; an image outside of [0, size) is permuted again until it falls
  inside (cycle walking, Black and Rogaway 2002), which takes fewer than two rounds on average.
  """
  bits = (size - 1).bit_length()
  half = np.uint64(bits // 2)
  low, high = np.uint64((1 << bits // 2) - 1), np.uint64((1 << bits - bits // 2) - 1)
  keys = hash_words(seed, epoch)
  out = np.asarray(index).astype(np.uint64)
  pending = np.arange(len(out))
  while len(pending):
    key, left, right = keys[pending], out[pending] >> half, out[pending] & low
    for _ in range(_ROUNDS // 2):
      left ^= mix(key ^ right) & high
      key += GOLDEN
      right ^= mix(key ^ left) & low
      key += GOLDEN
    out[pending] = (left << half) | right
    pending = pending[out[pending] >= np.uint64(size)]
  return out.astype(np.int64)
