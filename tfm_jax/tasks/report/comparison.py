"""The page of two runs over the same examples: what one gets right and the other wrong."""

from collections.abc import Mapping, Sequence

import numpy as np

from tfm_jax.runtime.reporting import page
from tfm_jax.tasks.report.forms import FORMS
from tfm_jax.tasks.report.page import LEGENDS, document
from tfm_jax.tasks.report.parts import (
  NEAR_OR_FAR,
  SHARES,
  FormReport,
  Row,
  breakable,
  matrix,
  paired_cases,
  score_names,
  score_text,
  score_title,
)
from tfm_jax.tasks.scores import Comparison, Difference, compare

SHOWN = 20  # examples in each direction
RIGHT_OR_WRONG = (("even", "miss"), ("hit", "even"))  # colours of the 2 x 2 table: what the second run loses and wins


def comparison_page(
  form: str, rows_a: Sequence[Row], rows_b: Sequence[Row], names: tuple[str, str], facts: Mapping[str, object]
) -> str:
  """One self-contained HTML document about two runs.

  Args:
    form: "classes", "numbers", "tags", "answers" or "texts".
    rows_a, rows_b: the predictions of the runs for the same examples in the same order.
    names: of the runs; plain text.
    facts: by name, for the head of the page; plain text.

  Raises:
    UserError: if the examples differ or have no labels.
  """
  found = compare(form, rows_a, rows_b)
  reports = FORMS[form](rows_a), FORMS[form](rows_b)
  title = f"{names[0]} and {names[1]}"
  intro = "Two runs over the same examples. Rows are those of predictions.jsonl."
  sections = [_scores(found, names), _right_or_wrong(found, names)]
  for better, gains in enumerate(_gains(found, rows_a)):
    sections.append(_examples(form, reports, list(zip(rows_a, rows_b, strict=True)), names, better, gains))
  return document(title, intro, dict(facts) | {"examples": f"{found.examples:,}"}, sections)


def _scores(found: Comparison, names: tuple[str, str]) -> str:
  """Scores of both, their differences and p-values."""
  scale = max((max(abs(one.low), abs(one.high), abs(one.difference)) for one in found.differences.values()), default=0)
  rows = []
  for name in score_names({name: one.a for name, one in found.differences.items()}):
    one = found.differences[name]
    place = lambda value: 0.5 + 0.5 * value / (scale or 1)
    drawn = page.bar(place(one.difference), place(one.low), place(one.high), zero=0.5) if name in SHARES else ""
    rows.append(
      [
        score_title(name), drawn, score_text(name, one.a), score_text(name, one.b), signed(name, one.difference),
        f"{signed(name, one.low)} to {signed(name, one.high)}", p_text(one),
      ]
    )  # fmt: skip
  columns = ["score", "", *map(breakable, names), "difference", "95% interval", "p"]
  explained = (
    f"Difference: {names[1]} minus {names[0]}, with the interval and the two-sided p-value of the paired bootstrap "
    "over the examples. If the interval does not contain 0, chance hardly explains the difference."
  )
  return page.section("Scores", explained, page.table(columns, rows, text_columns=2))


def signed(name: str, value: float) -> str:
  """A difference of a score as text, with its sign; of shares in percentage points."""
  return f"{100 * value:+.2f}" if name in SHARES else f"{value:+.3f}"


def p_text(one: Difference) -> str:
  """A p-value; the smallest that so many resamples can give stands for all below it."""
  return f"{one.p_value:.3f}" if one.p_value >= 0.0025 else "< 0.0025"


def _right_or_wrong(found: Comparison, names: tuple[str, str]) -> str:
  """The 2 x 2 table with McNemar's test."""
  if found.table is None or found.mcnemar_p is None:
    return ""
  counts = np.array(found.table).reshape(2, 2)
  rows = [f"{names[0]} right", f"{names[0]} wrong"]
  columns = [f"{names[1]} right", f"{names[1]} wrong"]
  p = f"{found.mcnemar_p:.4f}" if found.mcnemar_p >= 0.0001 else "< 0.0001"
  explained = (
    f"McNemar's exact test of the {counts[0, 1] + counts[1, 0]:,} examples that only one run gets right: p = {p}. "
    f"Percentages are shares of all examples. Red: lost by {names[1]}; green: won."
  )
  return page.section("Right and wrong", explained, matrix(rows, columns, counts, "", RIGHT_OR_WRONG))


def _gains(found: Comparison, rows_a: Sequence[Row]) -> tuple[list[int], list[int]]:
  """Indices of the rows that only the first, and that only the second gets right, or is nearer to."""
  labelled = [i for i, row in enumerate(rows_a) if row["label"] is not None]
  if found.right_a is not None and found.right_b is not None:
    pairs = list(zip(labelled, found.right_a, found.right_b, strict=True))
    return [i for i, a, b in pairs if a and not b], [i for i, a, b in pairs if b and not a]
  assert found.gains is not None
  gain = dict(zip(labelled, found.gains, strict=True))  # above 0: b is nearer
  order = sorted(gain, key=lambda i: gain[i])
  return [i for i in order if gain[i] < 0], [i for i in order[::-1] if gain[i] > 0]


def _examples(
  form: str,
  reports: tuple[FormReport, FormReport],
  pairs: Sequence[tuple[Row, Row]],
  names: tuple[str, str],
  better: int,
  gains: Sequence[int],
) -> str:
  """Examples that one run gets right and the other wrong: first those of which the other is the surest."""
  ours, theirs = names[better], names[1 - better]
  title = f"{ours} is nearer than {theirs}" if form in NEAR_OR_FAR else f"{ours} right, {theirs} wrong"
  if not gains:
    return page.section(title, "", "<p>No example.</p>")
  if form not in NEAR_OR_FAR:
    place = {i: n for n, i in enumerate(reports[1 - better].mistakes())}
    gains = sorted(gains, key=lambda i: place.get(i, len(place)))
  order = "largest change first" if form in NEAR_OR_FAR else f"the most confident mistakes of {theirs} first"
  shown = [(i + 1, *pairs[i]) for i in gains[:SHOWN]]
  body = LEGENDS.get(form, "") + paired_cases(reports, shown, names)
  return page.section(title, f"{len(gains):,} examples, {order}.", body)
