"""Errors of the form "classes"."""

from collections.abc import Sequence
from html import escape

import numpy as np

from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.chart import Line, line_chart
from tfm_jax.tasks.report.parts import (
  OTHER,
  Row,
  confusion,
  matrix,
  named,
  odds,
  passage,
  plain,
  section_by_length,
  share_interval,
)
from tfm_jax.tasks.scoring.bootstrap import f1_of, ratio
from tfm_jax.tasks.scoring.classes import Classes, calibration_error, class_names, reliability

SHOWN_CLASSES = 4  # whose probabilities an example shows
MOST_ROWS = 200  # of the table of classes


class ClassesReport:
  """A `FormReport` of classes."""

  order = "The most confident come first: the model gave its wrong class the highest probability."
  full = False

  def __init__(self, rows: Sequence[Row]) -> None:
    self._rows = rows
    self._labelled = [row for row in rows if row["label"] is not None]
    self.names = class_names(rows)

  def mistakes(self) -> list[int]:
    """By descending probability of the prediction."""
    wrong = [i for i, row in enumerate(self._rows) if row["label"] not in (None, row["prediction"])]
    return sorted(wrong, key=lambda i: -confidence(self._rows[i]))

  def example(self, row: Row) -> str:
    """The text, or both texts of a pair, or a text with its choices, or a picture."""
    if "image" in row:
      return f'<p class="text"><img class="thumbnail" src="{row["image"]}" alt=""> {escape(row["id"])}</p>'
    if "choices" in row:
      items = (f"<li>{_choice(text, str(n), row)}</li>" for n, text in enumerate(row["choices"], 1))
      return passage(row.get("text", "")) + f'<ol class="choices">{"".join(items)}</ol>'
    if row.get("pair") is None:
      return passage(row.get("text", ""))
    return passage(row.get("text", ""), "first") + passage(row["pair"], "second")

  def verdict(self, row: Row) -> str:
    """The highest probabilities, with that of the label."""
    prediction, label, probabilities = row["prediction"], row["label"], row.get("probabilities") or {}
    ranked = sorted(probabilities, key=lambda name: (-probabilities[name], name != prediction))[:SHOWN_CLASSES]
    if label is not None and label not in ranked:
      ranked = [*ranked[: SHOWN_CLASSES - 1], label]
    if prediction not in ranked:
      ranked = [prediction, *ranked]
    kind = lambda name: "good" if name == label else "bad" if name == prediction and label is not None else ""
    says = {prediction: " (predicted)", label: " (label)"} if label != prediction else {prediction: " (right)"}
    shown = [(named(name) + says.get(name, ""), probabilities.get(name), kind(name)) for name in ranked]
    if any(value is None for _, value, _ in shown):
      return "".join(f'<p class="{which}">{escape(name)}</p>' for name, _, which in shown)
    return odds((name, value or 0.0, which) for name, value, which in shown)

  def short(self, row: Row) -> tuple[str, str]:
    """The prediction with its probability, and the label; the texts."""
    probability = (row.get("probabilities") or {}).get(row["prediction"])
    sure = "" if probability is None else f" {probability:.1%}"
    texts = [row.get("text", row.get("id", "")), *([row["pair"]] if row.get("pair") else [])]
    return f"predicted {named(row['prediction'])}{sure}, label {named(row['label'])}", plain(" | ".join(texts))

  def sections(self) -> list[str]:
    """Confusion matrix, scores per class, calibration, scores by length."""
    whole = lambda row: " ".join(filter(None, (row.get("text"), row.get("pair"))))
    return [
      self._confusion(),
      self._per_class(),
      self._reliability(),
      section_by_length("classes", self._labelled, whole, "text"),
    ]

  def _confusion(self) -> str:
    """The confusion matrix."""
    pairs = ((row["label"], row["prediction"]) for row in self._labelled)
    names, counts = confusion(pairs, self.names)
    explained = "One row per label. Percentages and colours are shares of the row."
    if names[-1] == OTHER:
      explained += f" {OTHER} stands for the rarest classes, also where they are taken for one another."
    return page.section("Confusion matrix", explained, matrix(names, names, counts))

  def _per_class(self) -> str:
    """Precision, recall, F1 and support of each class, the worst first if there are many."""
    scored = Classes(self._labelled)
    count = len(scored.names)
    labelled, predicted = (np.bincount(codes, minlength=count) for codes in (scored.labels, scored.predictions))
    right = np.bincount(scored.labels[scored.right()], minlength=count)
    f1 = f1_of(right, predicted, labelled)
    rows = class_rows(scored.names, right, predicted, labelled)
    explained = "Support is the number of examples with this label."
    if count > 8:
      order = [i for i in np.argsort(f1, kind="stable") if labelled[i] + predicted[i]]
      rows, explained = [rows[i] for i in order[:MOST_ROWS]], explained + " The lowest F1 comes first."
    return page.section("Classes", explained, class_table("class", rows))

  def _reliability(self) -> str:
    """The reliability diagram; "" without probabilities."""
    scored = Classes(self._labelled)
    if scored.confidences is None:
      return ""
    bins = reliability(scored.confidences, scored.right())
    start = min(one.low for one in bins)
    percent = lambda value: f"{value:.0%}"
    points = Line(
      "accuracy of the examples with this confidence",
      [(one.confidence, one.accuracy) for one in bins],
      marks="filled",
      ranges=[share_interval(round(one.accuracy * one.count), one.count) for one in bins],
    )
    ideal = Line("perfectly calibrated", [(start, start), (1, 1)], 0, "dashed")
    chart = line_chart(
      "Reliability diagram", [ideal, points], x_name="confidence: probability of the predicted class", y_high=1.0,
      size=(560, 330), x_text=percent, text=percent,
    )  # fmt: skip
    rows = [
      [
        f"{one.low:.0%} to {one.high:.0%}",
        page.bar(one.count / len(scored.labels), kind="soft"),
        f"{one.count:,}",
        f"{one.confidence:.1%}",
        f"{one.accuracy:.1%}",
      ]
      for one in bins
    ]
    listed = page.table(["confidence", "", "examples", "mean", "accuracy"], rows, text_columns=2)
    error = f"{calibration_error(bins):.2%}"
    explained = (
      f"Expected calibration error: {error}, the mean distance between confidence and accuracy. Points below the "
      "dashed line: the model is too sure. Vertical lines are 95% intervals."
    )
    return page.section("Reliability", explained, f'<div class="beside"><div>{chart}</div><div>{listed}</div></div>')


def confidence(row: Row) -> float:
  """The probability of the prediction; 0 where it is unknown."""
  return float((row.get("probabilities") or {}).get(row["prediction"], 0.0))


def class_rows(names: Sequence[str], right: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> list[list[str]]:
  """One row per class for `class_table`, from counts."""
  scores = (ratio(right, predicted), ratio(right, labelled), f1_of(right, predicted, labelled))
  return [
    [named(name), page.bar(f1), f"{f1:.1%}", f"{precision:.1%}", f"{recall:.1%}", f"{support:,}", f"{count:,}"]
    for name, precision, recall, f1, support, count in zip(names, *scores, labelled, predicted, strict=True)
  ]


def class_table(of: str, rows: Sequence[Sequence[str]]) -> str:
  """Precision, recall and F1 per class."""
  return page.table([of, "", "F1", "precision", "recall", "support", "predicted"], rows, text_columns=2)


def _choice(text: str, name: str, row: Row) -> str:
  """One choice of several, marked if it is the label or the prediction."""
  if name == row["label"]:
    return f'<span class="good">{escape(text)}</span>'
  wrong = name == row["prediction"] and row["label"] is not None
  return f'<span class="bad">{escape(text)}</span>' if wrong else escape(text)
