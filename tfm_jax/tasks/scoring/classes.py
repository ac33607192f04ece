"""Scores of the form "classes": one class per example."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfm_jax.errors import UserError, nearest
from tfm_jax.tasks.scoring.bootstrap import f1_of, ratio, sums_by_code

BINS = 15  # of the calibration error, as in Guo et al. 2017
SMALLEST = 5e-7  # probabilities in predictions.jsonl have six digits: a 0 there stands for less than this
OTHER = "(other)"
"""The prediction of a model that writes classes as text, where it wrote none: always wrong, and no class itself."""


@dataclasses.dataclass(frozen=True)
class Bin:
  """The examples whose confidence is in (low, high]: how many, their mean confidence, the share that is right."""

  low: float
  high: float
  count: int
  confidence: float
  accuracy: float


class Classes:
  """Labelled predictions of classes.

  Attributes:
    names: the classes, in the order of the probabilities; sorted where there are none.
    labels, predictions: [N] indices into `names`.
    confidences: [N] probability of the predicted class; None where the rows lack it.
    positive: index of the class of which `f1` is the F1; None: the mean over classes. `OTHER` is none of them.
  """

  def __init__(self, rows: Sequence[Mapping[str, Any]], positive: str = "") -> None:
    self.names = class_names(rows)
    index = {name: i for i, name in enumerate(self.names)}
    self.labels = np.array([index[row["label"]] for row in rows])
    self.predictions = np.array([index[row["prediction"]] for row in rows])
    self.confidences = _probabilities(rows, "prediction")
    self._of_labels = _probabilities(rows, "label")
    if positive and positive not in index:
      near = nearest(positive, self.names)
      hint = f"did you mean {near!r}?" if near else f"classes: {', '.join(self.names)}"
      raise UserError(f"the positive class {positive!r} is not a class of the data; {hint}")
    self._known = np.array([i for i, name in enumerate(self.names) if name != OTHER])
    self.positive = index[positive] if positive else int(self._known[1]) if len(self._known) == 2 else None

  def right(self) -> np.ndarray:
    """Whether each example's prediction is its label: [N] bool."""
    return self.labels == self.predictions

  def scores(self) -> dict[str, float]:
    """`accuracy`, `f1`, `f1_macro`, `matthews`; with probabilities also `log_loss` and `calibration_error`."""
    from sklearn import metrics  # late: importing it takes a second, which commands that score nothing save

    pair = (self.labels, self.predictions)
    f1 = lambda labels: float(metrics.f1_score(*pair, labels=labels, average="macro", zero_division=0))
    occurring = np.unique(np.concatenate(pair))
    several = len(occurring) > 1  # a single class has no correlation, and makes sklearn warn
    macro = f1(np.intersect1d(occurring, self._known))
    scores = {
      "accuracy": float(metrics.accuracy_score(*pair)),
      "f1": macro if self.positive is None else f1([self.positive]),
      "f1_macro": macro,
      "matthews": float(metrics.matthews_corrcoef(*pair)) if several else 0.0,
    }
    if self._of_labels is not None:
      scores["log_loss"] = float(self._losses().mean())
    if self.confidences is not None:
      scores["calibration_error"] = calibration_error(reliability(self.confidences, self.right()))
    return scores

  def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores, but for the calibration error, of resamples [R, N]; [R] each."""
    count, total = len(self.names), weights.sum(axis=1)
    labelled, predicted = (sums_by_code(weights, codes, count) for codes in (self.labels, self.predictions))
    right = sums_by_code(weights * self.right(), self.labels, count)
    f1, occurs = f1_of(right, predicted, labelled), labelled + predicted > 0
    macro = ratio(f1[:, self._known].sum(axis=1), occurs[:, self._known].sum(axis=1))
    # Matthews' coefficient of several classes, from the covariances of the one-hot labels and predictions.
    covariance = lambda a, b, same: same * total - (a * b).sum(axis=1)
    both = covariance(labelled, predicted, right.sum(axis=1))
    spread = np.sqrt(covariance(labelled, labelled, total) * covariance(predicted, predicted, total))
    scores = {
      "accuracy": right.sum(axis=1) / total,
      "f1": macro if self.positive is None else f1[:, self.positive],
      "f1_macro": macro,
      "matthews": ratio(both, spread),
    }
    if self._of_labels is not None:
      scores["log_loss"] = weights @ self._losses() / total
    return scores

  def _losses(self) -> np.ndarray:
    """Negative log likelihood of each label."""
    assert self._of_labels is not None
    return -np.log(np.maximum(self._of_labels, SMALLEST))


def class_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """The classes: those of the probabilities in their order, then any others, sorted."""
  known = dict.fromkeys(name for row in rows for name in row.get("probabilities") or ())
  others = {row[key] for row in rows for key in ("label", "prediction")} - {None} - known.keys()
  return [*known, *sorted(others)]


def reliability(confidences: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[Bin]:
  """The bins of equal width that have examples, for the calibration error and the reliability diagram."""
  places = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
  out = []
  for place in np.unique(places):
    inside = places == place
    mean, share = float(confidences[inside].mean()), float(right[inside].mean())
    out.append(Bin(place / bins, (place + 1) / bins, int(inside.sum()), mean, share))
  return out


def calibration_error(bins: Sequence[Bin]) -> float:
  """Expected calibration error: mean distance of accuracy and confidence, weighted by the examples of each bin."""
  return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / sum(one.count for one in bins)


def _probabilities(rows: Sequence[Mapping[str, Any]], of: str) -> np.ndarray | None:
  """The probability of each row's label or prediction; None if a row lacks it."""
  values = [(row.get("probabilities") or {}).get(row[of]) for row in rows]
  return None if None in values else np.array(values, np.float64)
