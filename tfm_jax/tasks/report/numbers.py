"""Errors of the form "numbers"."""

from collections.abc import Sequence

import numpy as np

from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.chart import Line, line_chart
from tfm_jax.tasks.report.parts import Row, passage, plain, section_by_length

MOST_POINTS = 2000  # of the scatter plot


class NumbersReport:
  """A `FormReport` of numbers: every prediction that is not its label counts as a mistake, by its size."""

  order = "The largest errors come first."
  full = False

  def __init__(self, rows: Sequence[Row]) -> None:
    self._rows = rows
    self._labelled = [row for row in rows if row["label"] is not None]
    every = [float(row[key]) for row in self._labelled for key in ("label", "prediction")]
    finite = [value for value in every if np.isfinite(value)] or [0.0, 1.0]
    self._low, self._span = min(finite), max(max(finite) - min(finite), 1e-9)

  def mistakes(self) -> list[int]:
    """By descending absolute error."""
    size = {i: abs(row["prediction"] - row["label"]) for i, row in enumerate(self._rows) if row["label"] is not None}
    return sorted((i for i, error in size.items() if error != 0), key=lambda i: -size[i] if size[i] == size[i] else 0)

  def example(self, row: Row) -> str:
    """The text or both texts."""
    if row.get("pair") is None:
      return passage(row.get("text", ""))
    return passage(row.get("text", ""), "first") + passage(row["pair"], "second")

  def verdict(self, row: Row) -> str:
    """Prediction and label on one scale."""
    shown = [("predicted", row["prediction"], "bad" if row["label"] is not None else "")]
    if row["label"] is not None:
      shown.append(("label", row["label"], "good"))
    lines = (
      f'<span class="name {kind}">{name}</span>{page.bar(self._place(value), kind=kind)}<span>{value:.3g}</span>'
      for name, value, kind in shown
    )
    return f'<div class="odds scale">{"".join(lines)}</div>'

  def short(self, row: Row) -> tuple[str, str]:
    """Prediction and label; the texts."""
    texts = [row.get("text", ""), *([row["pair"]] if row.get("pair") else [])]
    return f"predicted {row['prediction']:.3g}, label {row['label']:.3g}", plain(" | ".join(texts))

  def sections(self) -> list[str]:
    """Scatter plot, residuals by label, errors by length."""
    whole = lambda row: " ".join(filter(None, (row.get("text"), row.get("pair"))))
    pairs = np.array([(row["label"], row["prediction"]) for row in self._labelled], np.float64)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    charts = f'<div class="beside"><div>{_scatter(pairs)}</div><div>{_residuals(pairs)}</div></div>'
    explained = (
      "Left: every example (of many, a part); the dashed line is a perfect prediction. Right: prediction minus label, "
      "the mean over neighbouring labels with its 95% interval; above 0 the model predicts too much."
    )
    return [
      page.section("Predictions and labels", explained, charts),
      section_by_length("numbers", self._labelled, whole, "text", "mean_absolute_error"),
    ]

  def _place(self, value: float) -> float:
    """Where a value is on the scale from the least to the largest."""
    return (value - self._low) / self._span if np.isfinite(value) else 0.0


def _scatter(pairs: np.ndarray) -> str:
  """Predictions over labels."""
  if not len(pairs):
    return ""
  if len(pairs) > MOST_POINTS:
    pairs = np.random.default_rng(0).permutation(pairs)[:MOST_POINTS]
  low, high = float(pairs[:, 0].min()), float(pairs[:, 0].max())
  lines = [
    Line("", [(float(x), float(y)) for x, y in pairs], form="points"),
    Line("", [(low, low), (high, high)], 0, "dashed"),
  ]
  return line_chart("Predictions over labels", lines, x_name="label", size=(540, 380), x_text=_number, text=_number)


def _residuals(pairs: np.ndarray) -> str:
  """Mean residuals of about ten groups of labels."""
  if len(pairs) < 2:
    return ""
  pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
  edges = np.unique(np.quantile(pairs[:, 0], np.linspace(0, 1, min(10, len(pairs) // 5 + 1) + 1)[1:-1]))
  points, ranges = [], []
  for place in np.unique(places := np.searchsorted(edges, pairs[:, 0])):
    labels, predictions = pairs[places == place].T
    residuals = predictions - labels
    mean, half = residuals.mean(), 1.96 * residuals.std() / np.sqrt(len(residuals))
    points.append((float(labels.mean()), float(mean)))
    ranges.append((float(mean - half), float(mean + half)))
  zero = Line("", [(points[0][0], 0.0), (points[-1][0], 0.0)], 0, "dashed")
  mean_line = Line("", points, 1, marks="filled", ranges=ranges)
  return line_chart(
    "Residuals by label", [zero, mean_line], x_name="label", size=(540, 380), x_text=_number, text=_number
  )


def _number(value: float) -> str:
  """A value in a few digits."""
  return f"{value:.3g}"
