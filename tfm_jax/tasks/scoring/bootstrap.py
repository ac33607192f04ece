"""The bootstrap over examples: resamples as weights, from which every form computes its scores in one go."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse

RESAMPLES = 1000
CONFIDENCE = 0.95
CHUNK = 2**18  # weights at a time: they fit into the processor's cache


def resamples(examples: int, seed: int, count: int = RESAMPLES) -> Iterator[np.ndarray]:
  """Draws examples with replacement, as often as there are.

  Yields:
    [R, N] float64, the number of times that resample r has drawn example n; over all chunks `count` rows.
  """
  draw = np.random.default_rng(seed)
  rows = max(CHUNK // examples, 1)
  for first in range(0, count, rows):
    size = min(rows, count - first)
    drawn = draw.integers(0, examples, (size, examples)) + examples * np.arange(size)[:, None]
    yield np.bincount(drawn.ravel(), minlength=size * examples).reshape(size, examples).astype(np.float64)


def percentiles(values: np.ndarray) -> tuple[float, float]:
  """The percentile interval of resampled scores [R]."""
  tail = 50 * (1 - CONFIDENCE)
  low, high = np.percentile(values, [tail, 100 - tail])
  return float(low), float(high)


def ratio(above: Any, below: Any) -> np.ndarray:
  """Quotients, 0 where the divisor is 0."""
  above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
  return np.divide(above, below, out=np.zeros(above.shape), where=below != 0)


def f1_of(right: Any, predicted: Any, labelled: Any) -> np.ndarray:
  """F1 from counts: 2 right / (predicted + labelled), 0 where there is neither."""
  return ratio(2 * np.asarray(right), np.asarray(predicted) + np.asarray(labelled))


def sums_by_code(weights: np.ndarray, codes: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
  """Sums the weights of the examples that share a code: [R, N] and [N] of 0 .. count - 1 -> [R, count]."""
  examples = len(codes)
  one_hot = scipy.sparse.csr_array((np.ones(examples), (codes, np.arange(examples))), shape=(count, examples))
  return (one_hot @ weights.T).T
