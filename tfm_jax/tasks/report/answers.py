"""Errors of the form "answers"."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np

from tfm_jax.runtime.reporting import page
from tfm_jax.tasks.report.parts import (
  Row,
  by_size,
  grouped,
  groups_table,
  lengths,
  matrix,
  odds,
  plain,
  section_by_length,
)
from tfm_jax.tasks.scoring.answers import compared, language_of

AROUND = 140  # characters of the context around a span
CANDIDATES = 3  # of the n-best list that are shown
NO_ANSWER = "(no answer)"
LEGEND = (
  '<ul class="legend"><li><mark class="predicted">predicted</mark></li><li><mark class="label">reference</mark></li>'
  '<li><mark class="predicted label">both</mark></li></ul>'
)
_ENGLISH = re.compile(r"\b(how (?:many|much|long|old|far|often)|how|what|which|who|when|where|why)(?:m|se|'s)?\b", re.I)
# In this order: the first that is in the question.
_CHINESE = {
  "为什么, 为何 (why)": "为什么|为何|为甚么|何以",
  "什么时候, 何时 (when)": "什么时候|什么时间|何时|哪一?年|哪一?天|几月|几年|哪个?(?:月|时期|时间)",
  "多少, 几 (how many)": "多少|几|多[大长高远久]",
  "谁 (who)": "谁|哪位|何人",
  "哪里, 何处 (where)": "哪里|哪儿|何处|何地|什么地方|哪个?(?:国家|城市|省|地|市|县)",
  "怎么, 如何 (how)": "怎么|怎样|如何|怎",
  "哪 (which)": "哪",
  "什么 (what)": "什么|何",
}


class AnswersReport:
  """A `FormReport` of answers."""

  order = (
    "The most confident come first: by the probability of the answer and by how little it shares with a reference."
  )
  full = True

  def __init__(self, rows: Sequence[Row]) -> None:
    self._rows = rows
    self._labelled = [row for row in rows if row["label"] is not None]
    self._language = language_of(text for row in self._labelled for text in row["label"])
    self._unanswerable = any(not row["label"] for row in self._labelled)

  def mistakes(self) -> list[int]:
    """By descending probability times the missing part of the F1."""
    cost = {}
    for i, row in enumerate(self._rows):
      if row["label"] is not None:
        exact, f1 = self._judged(row)
        if not exact:
          cost[i] = (confidence(row) or 1e-9) * (1 - f1)
    return sorted(cost, key=lambda i: -cost[i])

  def example(self, row: Row) -> str:
    """The question."""
    return f'<p class="question">{escape(row["question"])}</p>'

  def verdict(self, row: Row) -> str:
    """The context around the answer and the reference, both marked; the best candidates."""
    spans = [(row["start"], row["end"], "predicted")] if row["start"] >= 0 else []
    if row["label"]:
      spans += [(*found, "label") for found in [reference_span(row)] if found]
    return f'<p class="text">{excerpt(row["context"], spans)}</p>{self._said(row)}{self._candidates(row)}'

  def short(self, row: Row) -> tuple[str, str]:
    """Answer and references; the question."""
    references = " | ".join(dict.fromkeys(row["label"])) or NO_ANSWER
    return plain(f"predicted {row['prediction'] or NO_ANSWER}, reference {references}"), plain(row["question"])

  def sections(self) -> list[str]:
    """Answered or not, by question word, by length of the answer and of the context."""
    return [
      self._answered(), self._by_question(), self._by_answer(),
      section_by_length("answers", self._labelled, lambda row: row["context"], "context", language=self._language),
    ]  # fmt: skip

  def _judged(self, row: Row) -> tuple[float, float]:
    """(exact, F1) of a row."""
    return compared(row["prediction"], tuple(row["label"]), self._language, self._unanswerable)

  def _said(self, row: Row) -> str:
    """Answer, references and F1 as text."""
    answer = row["prediction"] or NO_ANSWER
    if row["label"] is None:
      return f'<p class="text"><span class="part">predicted</span>{escape(answer)}</p>'
    references = list(dict.fromkeys(row["label"])) or [NO_ANSWER]
    exact, f1 = self._judged(row)
    said = "right" if exact else f"F1 {f1:.0%}"
    listed = ", ".join(f'<span class="good">{escape(text)}</span>' for text in references)
    return (
      f'<p class="text"><span class="{"good" if exact else "bad"}">{escape(answer)}</span> <small>({said})</small>, '
      f"reference: {listed}</p>"
    )

  def _candidates(self, row: Row) -> str:
    """The best candidates with their probabilities, and the score of there being no answer."""
    best = [
      (one["text"] or NO_ANSWER, one["probability"], _kind(one["text"], row))
      for one in (row.get("probabilities") or ())[:CANDIDATES]
    ]
    return odds(best) if best else ""

  def _answered(self) -> str:
    """Where questions have no answer: whether the model says so."""
    if not self._unanswerable:
      return ""
    counts = np.zeros((2, 2), int)
    for row in self._labelled:
      counts[int(not row["label"]), int(not row["prediction"])] += 1
    names = ["answer", NO_ANSWER]
    explained = "Whether the model gives an answer, right or wrong, where there is one."
    return page.section("Answer or none", explained, matrix(names, names, counts))

  def _by_question(self) -> str:
    """F1 by question word, the most frequent first."""
    words = [question_word(row["question"], self._language) for row in self._labelled]
    frequent = Counter(words)
    order = sorted(range(len(words)), key=lambda i: (-frequent[words[i]], words[i]))
    groups = grouped("answers", [self._labelled[i] for i in order], [words[i] for i in order], "", self._language)
    return page.section("By question word", "", groups_table(groups, "f1", "question"))

  def _by_answer(self) -> str:
    """F1 by the length of the first reference."""
    answered = [row for row in self._labelled if row["label"]]
    sizes, unit = lengths([row["label"][0] for row in answered])
    groups = by_size("answers", answered, sizes, unit, "", self._language)
    explained = "The length of the first reference."
    return page.section("By length of the answer", explained, groups_table(groups, "f1", "answer")) if groups else ""


def confidence(row: Row) -> float:
  """The probability of the prediction, in the n-best list or as `no_answer`; 0 where it is not there."""
  if not row["prediction"]:
    return float(row.get("no_answer") or 0.0)
  return next(
    (float(one["probability"]) for one in row.get("probabilities") or () if one["text"] == row["prediction"]), 0.0
  )


def question_word(question: str, language: str) -> str:
  """The question word, by which questions are grouped; "other" if none is found."""
  if language == "zh":
    return next((name for name, pattern in _CHINESE.items() if re.search(pattern, question)), "other")
  match = _ENGLISH.search(question)
  return match[1].lower() if match else "other"


def reference_span(row: Row) -> tuple[int, int] | None:
  """Where a reference stands in the context: the place nearest to the prediction; None if there is none.

  The rows have the texts of the references, and not their places.
  """
  near = max(row["start"], 0)
  places = [
    (match.start(), match.end())
    for text in dict.fromkeys(row["label"]) if text
    for match in re.finditer(re.escape(text), row["context"])
  ]  # fmt: skip
  return min(places, key=lambda place: abs(place[0] - near), default=None)


def excerpt(context: str, spans: Sequence[tuple[int, int, str]]) -> str:
  """HTML: the context around spans (start, end, class of the mark), with the spans marked."""
  if not spans:
    return escape(context[: 2 * AROUND]) + (" ..." if len(context) > 2 * AROUND else "")
  windows: list[tuple[int, int]] = []
  for start, end, _ in sorted(spans):
    low, high = max(start - AROUND, 0), min(end + AROUND, len(context))
    # Not within a word, where there are spaces.
    low = context.rfind(" ", max(low - 20, 0), low) + 1 or low
    high = max(context.find(" ", high, high + 20), high) if high < len(context) else high
    if windows and low <= windows[-1][1] + AROUND:
      windows[-1] = (windows[-1][0], max(high, windows[-1][1]))
    else:
      windows.append((low, high))
  out = []
  for low, high in windows:
    cuts = sorted({low, high, *(place for start, end, _ in spans for place in (start, end) if low < place < high)})
    for start, end in itertools.pairwise(cuts):
      kinds = sorted({kind for first, last, kind in spans if first <= start and end <= last})
      text = escape(context[start:end])
      out.append(f'<mark class="{" ".join(kinds)}">{text}</mark>' if kinds else text)
    out.append(" ... " if high < len(context) else "")
  return ("... " if windows[0][0] else "") + "".join(out)


def _kind(text: str, row: Row) -> str:
  """The colour of a candidate."""
  if row["label"] is None:
    return ""
  right = text in row["label"] or (not text and not row["label"])
  return "good" if right else "bad" if text == row["prediction"] else ""
