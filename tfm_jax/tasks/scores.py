"""Scores of predictions with bootstrap intervals, and whether two runs differ by more than chance.

Rows are those of predictions.jsonl. Every score that is a share (accuracy, F1, exact match, ROUGE, ...) is in 0 .. 1;
BLEU and chrF are in 0 .. 100.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.tasks.scoring.answers import Answers
from tfm_jax.tasks.scoring.bootstrap import RESAMPLES, percentiles, resamples
from tfm_jax.tasks.scoring.classes import Classes
from tfm_jax.tasks.scoring.numbers import Numbers
from tfm_jax.tasks.scoring.tags import Tags
from tfm_jax.tasks.scoring.texts import Texts

Row = Mapping[str, Any]
# The score that a form is compared by.
MAIN = {"classes": "accuracy", "numbers": "pearson", "tags": "f1", "answers": "f1", "texts": "chrf"}


class Scored(Protocol):
  """Labelled predictions of one form."""

  def scores(self) -> dict[str, float]:
    """Scores by name."""

  def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores that have an interval, [R] each, where resample r has example n `weights[r, n]` times."""

  def right(self) -> np.ndarray | None:
    """Whether each example is right, [N] bool; None if the form has no right and wrong.

    Then `errors()` says how far each is from its label, [N].
    """


def score(
  form: str,
  rows: Sequence[Row],
  intervals: bool = True,
  seed: int = 0,
  positive: str = "",
  language: str = "",
) -> dict[str, float]:
  """Scores by name, and as NAME_low and NAME_high their 95 % percentile bootstrap intervals over examples.

  - classes: `accuracy`, `f1` (of the positive class if there are two, else the mean over classes), `f1_macro`,
    `matthews` (0 for constant predictions), and with probabilities `log_loss` and `calibration_error` (15 bins).
  - numbers: `pearson`, `spearman` (0 if the labels or the predictions are all equal), `mean_squared_error`,
    `mean_absolute_error`.
  - tags: `precision`, `recall`, `f1` of entities as seqeval and conlleval count them, `accuracy` per word, and the
    number of `bio_faults` in the predictions. Tags that mark no entities have only the accuracy.
  - answers: `exact_match`, `f1` of SQuAD or, in Chinese, CMRC 2018. Where some questions are unanswerable those of
    SQuAD 2.0, with `has_answer_f1`, `no_answer_f1`, and `best_f1` at `best_f1_threshold` of `no_answer`.
  - texts: `bleu`, `chrf`, `rouge1`, `rouge2`, `rougeL`; see `scoring.texts`.

  Args:
    form: "classes", "numbers", "tags", "answers" or "texts".
    rows: those of which the label is None are left out.
    intervals: whether to bootstrap; of tags, whole sentences are drawn.
    seed: of the bootstrap.
    positive: the class that `f1` is about; "": the second one of two.
    language: of answers and texts, "en" or "zh"; "": detected by the characters of the references.

  Returns:
    Finite numbers only; {} if no row has a label.

  Raises:
    UserError: if the positive class is not a class of the data.
  """
  labelled = [row for row in rows if row["label"] is not None]
  if not labelled:
    return {}
  scored = scored_rows(form, labelled, positive, language)
  scores, ends = scored.scores(), _intervals(scored, len(labelled), seed) if intervals else {}
  out: dict[str, float] = {}
  for name, value in scores.items():
    low, high = ends.get(name, (math.nan, math.nan))
    out |= {name: value, f"{name}_low": low, f"{name}_high": high}
  return {name: value for name, value in out.items() if math.isfinite(value)}


def signatures(form: str, rows: Sequence[Row]) -> dict[str, str]:
  """How the scores of generated texts were computed, by score; {} for other forms, or if no row has a label."""
  labelled = [row for row in rows if row["label"] is not None] if form == "texts" else []
  return Texts(labelled).signatures() if labelled else {}


def scored_rows(form: str, rows: Sequence[Row], positive: str = "", language: str = "") -> Scored:
  """Labelled rows as the object of their form."""
  if form == "classes":
    return Classes(rows, positive)
  if form == "answers":
    return Answers(rows, language)
  if form == "tags":
    return Tags(rows)
  if form == "numbers":
    return Numbers(rows)
  if form == "texts":
    return Texts(rows, language)
  raise ValueError(f"unknown form {form!r}")


@dataclasses.dataclass(frozen=True)
class Difference:
  """A score of two runs, b - a with its 95 % interval, and the two-sided p-value of the paired bootstrap."""

  a: float
  b: float
  difference: float
  low: float
  high: float
  p_value: float


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two runs over the same labelled examples.

  Attributes:
    examples: how many.
    differences: by score.
    right_a, right_b: whether each example is right, [N] bool; None for numbers and texts. Sentences are right if all of
      their entities are, answers if they equal a reference.
    gains: of numbers and texts, how much nearer b is to each label than a, [N]; None for other forms.
    mcnemar_p: of McNemar's exact test: whether the shares of right examples differ by more than chance.
  """

  examples: int
  differences: Mapping[str, Difference]
  right_a: np.ndarray | None
  right_b: np.ndarray | None
  mcnemar_p: float | None
  gains: np.ndarray | None = None

  @property
  def table(self) -> tuple[int, int, int, int] | None:
    """How many examples (both, only a, only b, neither) get right."""
    if self.right_a is None or self.right_b is None:
      return None
    a, b = self.right_a, self.right_b
    both, only_a, only_b, neither = ((one & other).sum() for one in (a, ~a) for other in (b, ~b))
    return int(both), int(only_a), int(only_b), int(neither)


def compare(
  form: str, rows_a: Sequence[Row], rows_b: Sequence[Row], seed: int = 0, positive: str = "", language: str = ""
) -> Comparison:
  """Compares the predictions of two runs on the same examples in the same order.

  Args:
    form, seed, positive, language: as in `score`.
    rows_a, rows_b: rows without a label are left out.

  Raises:
    UserError: if the runs have not predicted the same examples, or none has a label.
  """
  check_same_examples(rows_a, rows_b)
  pairs = [(a, b) for a, b in zip(rows_a, rows_b, strict=True) if a["label"] is not None]
  if not pairs:
    raise UserError("the examples of the two runs have no labels, so their predictions cannot be compared")
  a, b = (scored_rows(form, rows, positive, language) for rows in zip(*pairs, strict=True))
  drawn: dict[str, list[np.ndarray]] = {}
  for weights in resamples(len(pairs), seed):
    ours, theirs = a.resampled(weights), b.resampled(weights)
    for name in ours.keys() & theirs.keys():
      drawn.setdefault(name, []).append(theirs[name] - ours[name])
  values, others = a.scores(), b.scores()
  differences = {
    name: _difference(values[name], others[name], np.concatenate(drawn[name])) for name in values if name in drawn
  }
  right_a, right_b = a.right(), b.right()
  gains = a.errors() - b.errors() if isinstance(a, (Numbers, Texts)) and isinstance(b, (Numbers, Texts)) else None
  return Comparison(len(pairs), differences, right_a, right_b, _mcnemar(right_a, right_b), gains)


def check_same_examples(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> None:
  """Raises UserError unless both are predictions of the same examples in the same order."""
  if len(rows_a) != len(rows_b):
    raise UserError(
      f"the runs have predicted different examples ({len(rows_a):,} and {len(rows_b):,}); compare one file"
    )
  for number, (a, b) in enumerate(zip(rows_a, rows_b, strict=True), 1):
    for key in ("label", "id", "text", "pair", "words", "question", "context"):
      if a.get(key) != b.get(key):
        raise UserError(
          f"the runs have predicted different examples (row {number:,} differs in {key}); compare one file"
        )


def _intervals(scored: Scored, examples: int, seed: int) -> dict[str, tuple[float, float]]:
  """The percentile intervals by score."""
  chunks = [scored.resampled(weights) for weights in resamples(examples, seed)]
  return {name: percentiles(np.concatenate([chunk[name] for chunk in chunks])) for name in chunks[0]}


def _difference(a: float, b: float, drawn: np.ndarray) -> Difference:
  """A difference; its p-value counts the resamples on the other side of 0, and can therefore not be 0."""
  low, high = percentiles(drawn)
  tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
  return Difference(a, b, b - a, low, high, min(2 * (float(tail) + 1) / (RESAMPLES + 1), 1.0))


def _mcnemar(right_a: np.ndarray | None, right_b: np.ndarray | None) -> float | None:
  """McNemar's exact test: whether discordant examples are on both sides equally likely."""
  if right_a is None or right_b is None:
    return None
  from scipy import stats  # late: importing it takes a moment

  only_a, discordant = int((right_a & ~right_b).sum()), int((right_a != right_b).sum())
  return float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0
