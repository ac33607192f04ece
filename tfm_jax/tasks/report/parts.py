"""Pieces that the pages of all forms share: examples with verdicts, tables with bars, confusion matrices."""

import dataclasses
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, Protocol

import numpy as np

from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.page import Html
from tfm_jax.tasks.scores import MAIN, score
from tfm_jax.tasks.scoring.answers import language_of
from tfm_jax.tasks.scoring.bootstrap import ratio

Row = Mapping[str, Any]
OPEN = 10  # examples of a list that are not folded
LONGEST = 600  # characters of a text that are shown at once
LEAST = 25  # examples of a group of lengths, on average
MOST_CLASSES = 20  # rows and columns of a confusion matrix
OTHER = "(other)"
# Scores that are shares, shown as percent.
SHARES = (
  "accuracy", "f1", "f1_macro", "precision", "recall", "exact_match", "has_answer_f1", "no_answer_f1", "best_f1",
  "calibration_error", "rouge1", "rouge2", "rougeL",
)  # fmt: skip
TITLES = {
  "accuracy": "accuracy",
  "f1": "F1",
  "f1_macro": "F1, mean over classes",
  "matthews": "Matthews correlation",
  "pearson": "Pearson correlation",
  "spearman": "Spearman correlation",
  "has_answer_f1": "F1, questions with an answer",
  "no_answer_f1": "F1, questions without one",
  "best_f1": "best F1 of any no-answer threshold",
  "best_f1_threshold": "no-answer threshold of the best F1",
  "bio_faults": "BIO faults",
  "bleu": "BLEU",
  "chrf": "chrF",
  "rouge1": "ROUGE-1",
  "rouge2": "ROUGE-2",
  "rougeL": "ROUGE-L",
}
NEAR_OR_FAR = ("numbers", "texts")  # forms whose predictions are not right or wrong
CORRELATIONS = ("matthews", "pearson", "spearman")


class FormReport(Protocol):
  """What the pages show of the rows of one form. It is made from all rows; those without a label are not judged.

  Attributes:
    order: says in which order `mistakes` come.
    full: whether a verdict needs the width of the page.
  """

  order: str
  full: bool

  def mistakes(self) -> list[int]:
    """Indices of the rows that are wrong, the worst first."""

  def example(self, row: Row) -> str:
    """HTML: the input."""

  def verdict(self, row: Row) -> str:
    """HTML: the prediction and, if there is one, the label."""

  def short(self, row: Row) -> tuple[str, str]:
    """Plain text for the terminal: prediction and label; the input."""

  def sections(self) -> list[str]:
    """HTML: the sections of the form, for rows of which at least one has a label."""


@dataclasses.dataclass(frozen=True)
class Group:
  """Some of the examples: their score and its interval."""

  name: str
  count: int
  value: float
  low: float
  high: float


def score_title(name: str) -> str:
  """The name of a score as text."""
  return TITLES.get(name, name.replace("_", " "))


def score_text(name: str, value: float) -> str:
  """A score as text: shares as percent."""
  if name in SHARES:
    return f"{value:.2%}"
  return f"{value:,.0f}" if name == "bio_faults" else f"{value:.3f}"


def score_names(scores: Mapping[str, float]) -> list[str]:
  """The scores, without the ends of their intervals, and without `f1_macro` where that is the F1."""
  hidden = {f"{name}_{end}" for name in scores for end in ("low", "high")}
  if scores.get("f1_macro") == scores.get("f1"):
    hidden.add("f1_macro")
  return [name for name in scores if name not in hidden]


def interval_text(name: str, low: float, high: float) -> str:
  """An interval as text."""
  return f"{100 * low:.1f} to {100 * high:.1f}%" if name in SHARES else f"{low:.3f} to {high:.3f}"


def scores_table(scores: Mapping[str, float]) -> str:
  """All scores with their intervals, and bars where a score has bounds."""
  rows = []
  for name in score_names(scores):
    low, high = scores.get(f"{name}_low"), scores.get(f"{name}_high")
    drawn = page.bar(scores[name], low, high) if name in SHARES or name in CORRELATIONS else ""
    interval = "" if low is None or high is None else interval_text(name, low, high)
    rows.append([score_title(name), drawn, score_text(name, scores[name]), interval])
  return page.table(["score", "", "value", "95% interval"], rows, text_columns=2)


def cases(report: FormReport, rows: Sequence[tuple[int, Row]]) -> str:
  """Examples one below the other: the number of the row in the file, the input, the verdict. Most are folded."""
  return _listed([_case(number, report.example(row), report.verdict(row), report.full) for number, row in rows])


def paired_cases(
  reports: tuple[FormReport, FormReport], rows: Sequence[tuple[int, Row, Row]], names: tuple[str, str]
) -> str:
  """Examples with the verdicts of two runs."""
  items = []
  for number, *pair in rows:
    verdicts = "".join(
      f'<p class="run">{escape(name)}</p>{report.verdict(row)}'
      for name, report, row in zip(names, reports, pair, strict=True)
    )
    items.append(_case(number, reports[0].example(pair[0]), verdicts, reports[0].full))
  return _listed(items)


def _listed(items: Sequence[str]) -> str:
  """The first items, and the others folded."""
  listed = lambda part: f'<ol class="cases">{"".join(part)}</ol>'
  if len(items) <= OPEN + 2:
    return listed(items)
  rest = f"<details><summary>{len(items) - OPEN} more</summary>{listed(items[OPEN:])}</details>"
  return listed(items[:OPEN]) + rest


def _case(number: int, example: str, verdict: str, full: bool) -> str:
  """One example."""
  kind = "case full" if full else "case"
  shown = f"<div>{example}</div>" if example else ""
  return f'<li class="{kind}"><small>row {number}</small>{shown}<div class="verdict">{verdict}</div></li>'


def passage(text: str, title: str = "") -> str:
  """A text; the rest of a long one is folded."""
  said = f'<span class="part">{escape(title)}</span>' if title else ""
  if not text.strip():
    return f'<p class="text">{said}<span class="empty">empty</span></p>'
  if len(text) <= LONGEST * 1.2:
    return f'<p class="text">{said}{escape(text)}</p>'
  rest = f"{len(text) - LONGEST:,} more characters"
  return (
    f'<p class="text">{said}{escape(text[:LONGEST])} ...</p>'
    f'<details><summary>{rest}</summary><p class="text">... {escape(text[LONGEST:])}</p></details>'
  )


def named(name: str) -> str:
  """The name of a class; an empty one is said to be empty."""
  return name if name.strip() else "(empty)"


def breakable(name: str) -> Html:
  """A name that may be broken where its parts meet, as a path or an identifier."""
  return Html(re.sub(r"([/_.-])(?=\w)", r"\1<wbr/>", escape(name)))


def odds(rows: Iterable[tuple[str, float, str]]) -> str:
  """Probabilities as bars: (name, probability, "good", "bad" or "")."""
  line = lambda name, value, kind: (
    f'<span class="name {kind}">{breakable(name)}</span>{page.bar(value, kind=kind or "soft")}<span>{value:.1%}</span>'
  )
  return f'<div class="odds">{"".join(line(*row) for row in rows)}</div>'


def matrix(
  rows: Sequence[str],
  columns: Sequence[str],
  counts: np.ndarray,
  corner: str = "label \\ prediction",
  kinds: Sequence[Sequence[str]] | None = None,
) -> str:
  """A confusion matrix: counts and, as text and colour, their shares of the row, or of all where `kinds` are given.

  Args:
    rows, columns: names of the labels and of the predictions.
    counts: [rows, columns].
    corner: the title of the first column.
    kinds: the colour of each cell, "hit", "miss" or "even"; None: a hit if the row and the column have one name.
  """
  totals = counts.sum(axis=1)
  shares = ratio(counts, counts.sum() if kinds else totals[:, None])
  body = []
  for i, row in enumerate(rows):
    cells = []
    for j, column in enumerate(columns):
      share = shares[i, j]
      kind = kinds[i][j] if kinds else "hit" if row == column else "miss"
      part = f"{8 + 52 * share:.0f}%" if counts[i, j] else "0%"
      text = f"{counts[i, j]:,}<small>{share:.0%}</small>" if counts[i, j] else "\u00a0<small>\u00a0</small>"
      cells.append(Html(f'<span class="cell {kind}" style="--part:{part}">{text}</span>'))
    body.append([breakable(named(row)), *cells, f"{totals[i]:,}"])
  titles = [breakable(named(name)) for name in columns]
  if sum(max(len(name), 6) for name in columns) > 90:
    titles = [Html(f'<span class="turned">{title}</span>') for title in titles]
  return page.table([corner, *titles, "all"], body, kind="matrix dense" if len(columns) > 12 else "matrix")


def confusion(pairs: Iterable[tuple[str, str]], names: Sequence[str]) -> tuple[list[str], np.ndarray]:
  """(names, counts [label, prediction]) of (label, prediction) pairs; rare classes beyond the most are `OTHER`."""
  counts = Counter(pairs)
  support: Counter[str] = Counter()
  for (label, prediction), count in counts.items():
    support[label] += count
    support[prediction] += 0
  kept = list(names)
  if len(names) > MOST_CLASSES:
    common = {name for name, _ in support.most_common(MOST_CLASSES - 1)}
    kept = [name for name in names if name in common]
  index = {name: i for i, name in enumerate(kept)}
  shown = kept if len(kept) == len(names) else [*kept, OTHER]
  table = np.zeros((len(shown), len(shown)), int)
  for (label, prediction), count in counts.items():
    table[index.get(label, len(kept)), index.get(prediction, len(kept))] += count
  return shown, table


def groups_table(groups: Sequence[Group], name: str, of: str) -> str:
  """A table of groups, with bars from 0 to 1; errors without a bound are drawn from 0 to the largest."""
  bounded = name in SHARES or name in CORRELATIONS
  scale = 1.0 if bounded else max((group.high for group in groups), default=1.0) or 1.0
  rows = [
    [
      group.name,
      page.bar(group.value / scale, group.low / scale, group.high / scale),
      score_text(name, group.value),
      interval_text(name, group.low, group.high),
      f"{group.count:,}",
    ]
    for group in groups
  ]
  return page.table([of, "", score_title(name), "95% interval", "examples"], rows, text_columns=2)


def grouped(
  form: str, rows: Sequence[Row], keys: Sequence[Hashable], name: str = "", language: str = ""
) -> list[Group]:
  """The groups of rows of equal keys, in the order of the keys' first rows."""
  name = name or MAIN[form]
  members: dict[Hashable, list[Row]] = {}
  for row, key in zip(rows, keys, strict=True):
    members.setdefault(key, []).append(row)
  out = []
  for key, own in members.items():
    if form == "classes":  # the bootstrap of a few that are all right would say that nothing else is possible
      right = sum(row["prediction"] == row["label"] for row in own)
      out.append(Group(str(key), len(own), right / len(own), *share_interval(right, len(own))))
      continue
    scores = score(form, own, language=language)
    value = scores.get(name, math.nan)
    out.append(Group(str(key), len(own), value, scores.get(f"{name}_low", value), scores.get(f"{name}_high", value)))
  return [group for group in out if math.isfinite(group.value)]


def share_interval(count: int, of: int) -> tuple[float, float]:
  """The 95 % interval of Wilson (1927) for a share."""
  z = 1.959964
  share, spread = count / of, z * z / of
  middle = (share + spread / 2) / (1 + spread)
  half = z * math.sqrt(share * (1 - share) / of + spread / of / 4) / (1 + spread)
  return max(middle - half, 0.0), min(middle + half, 1.0)


def by_size(
  form: str, rows: Sequence[Row], sizes: Sequence[int], unit: str, name: str = "", language: str = "", most: int = 8
) -> list[Group]:
  """Groups of about equally many examples, by ascending size; [] if there is only one."""
  count = min(most, len(rows) // LEAST)
  if count < 2:
    return []
  edges = np.unique(np.quantile(sizes, np.linspace(0, 1, count + 1)[1:-1], method="inverted_cdf"))
  places = np.searchsorted(edges, sizes)  # a group ends with its edge
  if len(np.unique(places)) < 2:
    return []
  order = np.argsort(places, kind="stable")
  ends = {place: (min(own), max(own)) for place in np.unique(places) for own in [np.asarray(sizes)[places == place]]}
  text = {place: f"{low} {unit}" if low == high else f"{low} to {high} {unit}" for place, (low, high) in ends.items()}
  return grouped(form, [rows[i] for i in order], [text[places[i]] for i in order], name, language)


def lengths(texts: Sequence[str]) -> tuple[list[int], str]:
  """The length of each text, in words or, in Chinese, in characters; and the unit."""
  if language_of(texts[:500]) == "zh":
    return [sum(not char.isspace() for char in text) for text in texts], "characters"
  return [len(text.split()) for text in texts], "words"


def section_by_length(
  form: str, rows: Sequence[Row], text_of: Callable[[Row], str], what: str, name: str = "", language: str = ""
) -> str:
  """The section about the length of a text; "" if there are too few examples or all are equally long."""
  sizes, unit = lengths([text_of(row) for row in rows])
  groups = by_size(form, rows, sizes, unit, name, language)
  if not groups:
    return ""
  explained = "Groups of about equally many examples; the thin mark is the 95% interval."
  return page.section(f"By length of the {what}", explained, groups_table(groups, name or MAIN[form], "length"))


def plain(text: str) -> str:
  """A text on one line, without characters that a terminal would obey."""
  return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def columns_of(text: str) -> int:
  """The columns that a terminal needs for a text: Chinese characters take two."""
  wide = lambda char: 2 if unicodedata.east_asian_width(char) in "WF" else 0 if unicodedata.combining(char) else 1
  return sum(map(wide, text))


def cut(text: str, columns: int) -> str:
  """The text, or as much of its beginning as fits into so many columns with three dots."""
  text = text[: 2 * columns + 1] if len(text) > 2 * columns else text  # far more than fits: quick
  if columns_of(text) <= columns:
    return text
  while columns_of(text) > columns - 3:
    text = text[:-1]
  return text.rstrip() + "..."
