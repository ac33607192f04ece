"""Random numbers as a pure function of (seed, epoch, row): counter-based, vectorised, stateless."""

from dataclasses import dataclass
from typing import Self

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = (1 << 64) - 1


def mix(x: np.ndarray) -> np.ndarray:
  """The output function of SplitMix64 (Steele, Lea and Flood 2014), a bijection of uint64; changes `x` in place."""
  x ^= x >> np.uint64(30)
  x *= np.uint64(0xBF58476D1CE4E5B9)
  x ^= x >> np.uint64(27)
  x *= np.uint64(0x94D049BB133111EB)
  x ^= x >> np.uint64(31)
  return x


def hash_words(*words: int | np.ndarray) -> np.ndarray:
  """A hash of each tuple of integers, uint64. The words broadcast against each other."""
  state = np.zeros(1, np.uint64)
  for word in words:
    if isinstance(word, int):
      word = np.array([word & _WORD], np.uint64)
    state = mix((state ^ word.astype(np.uint64)) + GOLDEN)
  return state


@dataclass(frozen=True)
class Draws:
  """The random numbers of R rows. Each use has its own integer `site`, so that no two uses share numbers."""

  keys: np.ndarray  # uint64 [R]
  steps: np.ndarray | None = None  # int64 [R]: the training step of each row, for schedules; None: held-out rows

  @classmethod
  def of(cls, seed: int, epoch: int | np.ndarray, row: np.ndarray, steps: np.ndarray | None = None) -> Self:
    """Keys for rows [R] of an epoch (one for all, or [R]). Steps decide no random number."""
    return cls(hash_words(seed, epoch, row), steps)

  def part(self, rows: np.ndarray) -> "Draws":
    """The random numbers of some of the rows."""
    return Draws(self.keys[rows], None if self.steps is None else self.steps[rows])

  def bits(self, site: int, count: int) -> np.ndarray:
    """uint64 [R, count]: one SplitMix64 sequence per row, started at the hash of the row's key and the site."""
    start = hash_words(self.keys, site)
    return mix(start[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)

  def uniform(self, site: int, count: int) -> np.ndarray:
    """float64 [R, count] in [0, 1)."""
    return (self.bits(site, count) >> np.uint64(11)) * 2.0**-53

  def integers(self, site: int, count: int, high: int) -> np.ndarray:
    """int64 [R, count] in [0, high), high <= 2**31; the bias is below high / 2**32."""
    return ((self.bits(site, count) >> np.uint64(32)) * np.uint64(high) >> np.uint64(32)).astype(np.int64)

  def choose(self, site: int, candidates: np.ndarray, counts: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses counts[r] different positions among the candidates of each row r, uniformly.

    Args:
      site: names this use of random numbers.
      candidates: bool [R, N].
      counts: int [R], at most the number of candidates in the row.
      slots: upper bound of `counts`, at most N.

    Returns:
      positions: int32 [R, slots], ascending, 0 in unused slots.
      used: bool [R, slots].
    """
    length = candidates.shape[1]
    # The low bits of a key hold its position, so that one sort gives both.
    low = np.uint64((1 << length.bit_length()) - 1)
    keys = (self.bits(site, length) & ~low) | np.arange(length, dtype=np.uint64)
    keys[~candidates] = np.uint64(_WORD)
    smallest = np.sort(keys, axis=1)[:, :slots]
    used = np.arange(slots) < counts[:, None]
    positions = np.where(used, (smallest & low).astype(np.int32), np.int32(length))
    positions.sort(axis=1)
    return np.where(used, positions, np.int32(0)), used
