"""Scores of the form "numbers": regression and similarity."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfm_jax.tasks.scoring.bootstrap import ratio, sums_by_code


class Numbers:
  """Labelled predictions of numbers.

  Attributes:
    labels, predictions: [N].
  """

  def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
    self.labels = np.array([row["label"] for row in rows], np.float64)
    self.predictions = np.array([row["prediction"] for row in rows], np.float64)

  def right(self) -> None:
    """None: a number is near or far, not right or wrong."""

  def errors(self) -> np.ndarray:
    """How far each prediction is from its label, [N]."""
    return np.abs(self.predictions - self.labels)

  def scores(self) -> dict[str, float]:
    """`pearson`, `spearman` (0 if the labels or the predictions are all equal), and the mean errors."""
    from scipy import stats  # late: importing it takes a moment, which commands that score nothing save

    varied = np.ptp(self.labels) > 0 and np.ptp(self.predictions) > 0
    error = self.predictions - self.labels
    return {
      "pearson": float(np.corrcoef(self.labels, self.predictions)[0, 1]) if varied else 0.0,
      "spearman": float(stats.spearmanr(self.labels, self.predictions).statistic) if varied else 0.0,
      "mean_squared_error": float((error**2).mean()),
      "mean_absolute_error": float(np.abs(error).mean()),
    }

  def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of resamples [R, N]; [R] each."""
    total, error = weights.sum(axis=1), self.predictions - self.labels
    return {
      "pearson": _pearson(weights, self.labels, self.predictions),
      "spearman": _pearson(weights, _ranks(weights, self.labels), _ranks(weights, self.predictions)),
      "mean_squared_error": weights @ error**2 / total,
      "mean_absolute_error": weights @ np.abs(error) / total,
    }


def _pearson(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Correlation of x and y, [N] or [R, N], under weights [R, N]; 0 where one of them is constant."""
  total = weights.sum(axis=1, keepdims=True)
  x = x - (weights * x).sum(axis=1, keepdims=True) / total
  y = y - (weights * y).sum(axis=1, keepdims=True) / total
  product = lambda a, b: np.einsum("rn,rn,rn->r", weights, a, b)
  return ratio(product(x, y), np.sqrt(product(x, x) * product(y, y)))


def _ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
  """The rank, the mean one of equals, that each value has in each resample: [R, N]."""
  distinct, codes = np.unique(values, return_inverse=True)
  counts = sums_by_code(weights, codes, len(distinct))
  return (counts.cumsum(axis=1) - (counts - 1) / 2)[:, codes]
