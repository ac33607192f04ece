"""Errors as a short text for the terminal."""

from collections.abc import Mapping, Sequence

from tfm_jax.tasks.report.forms import FORMS
from tfm_jax.tasks.report.parts import (
  NEAR_OR_FAR,
  Row,
  columns_of,
  confusion,
  cut,
  interval_text,
  named,
  plain,
  score_names,
  score_text,
  score_title,
)
from tfm_jax.tasks.scoring.classes import class_names

COLUMNS = 100
MISTAKES = 5
MOST_CLASSES = 8  # of the confusion matrix
NAME = 14  # columns of a class's name


def errors_text(form: str, rows: Sequence[Row], scores: Mapping[str, float]) -> str:
  """Scores with intervals, the worst mistakes, and the confusion matrix of few classes: about 40 lines of 100 columns.

  Args:
    form, rows, scores: as for `errors_page`.
  """
  labelled = [row for row in rows if row["label"] is not None]
  if not labelled:
    why = "the scores need none" if scores else "so nothing is scored"
    return "\n".join([f"{len(rows):,} predictions; no example has a label, {why}", *_scores(scores)])
  lines = [f"{len(labelled):,} examples", *_scores(scores), *_mistakes(form, rows)]
  if form == "classes":
    lines += _confusion(labelled)
  return "\n".join(cut(line, COLUMNS) for line in lines)


def _scores(scores: Mapping[str, float]) -> list[str]:
  """One line per score."""
  names = score_names(scores)
  width = max(map(len, map(score_title, names)), default=0)
  lines = []
  for name in names:
    low, high = scores.get(f"{name}_low"), scores.get(f"{name}_high")
    interval = "" if low is None or high is None else f"  [{interval_text(name, low, high)}]"
    lines.append(f"  {score_title(name):<{width}}  {score_text(name, scores[name]):>8}{interval}")
  return lines


def _mistakes(form: str, rows: Sequence[Row]) -> list[str]:
  """Two lines per mistake."""
  report = FORMS[form](rows)
  wrong = report.mistakes()
  if not wrong:
    return ["no mistakes"]
  lines = ["", "largest errors" if form in NEAR_OR_FAR else f"{len(wrong):,} mistakes, the most confident:"]
  for i in wrong[:MISTAKES]:
    verdict, text = report.short(rows[i])
    lines += [f"  row {i + 1}: {verdict}", f"    {text}"]
  return lines


def _confusion(labelled: Sequence[Row]) -> list[str]:
  """The confusion matrix; none if there are too many classes."""
  names = class_names(labelled)
  if len(names) > MOST_CLASSES:
    return []
  _, counts = confusion(((row["label"], row["prediction"]) for row in labelled), names)
  room = (COLUMNS - NAME - len("  predicted")) // len(names) - 2
  width = min(max(len(f"{counts.max():,}"), *(columns_of(named(name)) for name in names)), room)
  lines = ["", _cell("label", NAME) + "".join(f"  {_cell(named(name), width, right=True)}" for name in names)]
  lines[-1] += "  predicted"
  for name, row in zip(names, counts, strict=True):
    lines.append(_cell(named(name), NAME) + "".join(f"  {count:>{width},}" for count in row))
  return lines


def _cell(text: str, columns: int, right: bool = False) -> str:
  """A name cut and filled to so many columns."""
  text = cut(plain(text), columns)
  space = " " * (columns - columns_of(text))
  return space + text if right else text + space
