"""Scores of the form "answers": spans of a text that answer a question.

English, and every other language but Chinese: the official scripts of SQuAD (Rajpurkar et al. 2016, 2018). Chinese:
that of CMRC 2018 (Cui et al. 2019).
"""

import functools
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfm_jax.tasks.scoring.bootstrap import ratio

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CHINESE = re.compile(r"[\u4e00-\u9fa5]")
# The characters that the script of CMRC 2018 removes.
_CHINESE_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# That script splits what is not Chinese by NLTK's tokenizer: words, with their inner points and commas, and signs.
_PIECE = re.compile(r"[\u4e00-\u9fa5]|[^\W\u4e00-\u9fa5]+(?:[.,'&][^\W\u4e00-\u9fa5]+)*|[^\w\s]")


class Answers:
  """Predicted answers with their references.

  Attributes:
    language: "zh", or "en" for all others; detected by the characters of the references unless given.
    has_answer: [N] bool, whether the question has an answer.
    exact, f1: [N], the best over the references.
  """

  def __init__(self, rows: Sequence[Mapping[str, Any]], language: str = "") -> None:
    self.language = language or language_of(text for row in rows for text in row["label"])
    self.has_answer = np.array([bool(row["label"]) for row in rows])
    self._unanswerable = not self.has_answer.all()
    self._rows = rows
    self.exact, self.f1 = self._compared([row["prediction"] for row in rows])

  def right(self) -> np.ndarray:
    """Whether each answer equals a reference: [N] bool."""
    return self.exact > 0

  def scores(self) -> dict[str, float]:
    """`exact_match` and `f1`; where questions are unanswerable also `has_answer_f1`, `no_answer_f1` and `best_f1`."""
    scores = {name: float(values[0]) for name, values in self.resampled(np.ones((1, len(self._rows)))).items()}
    return scores | (self._best() if self._unanswerable else {})

  def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores, but for the best threshold, of resamples [R, N]; [R] each."""
    mean = lambda values, of: ratio(weights @ (values * of), weights @ of)
    every = np.ones(len(self._rows))
    scores = {"exact_match": mean(self.exact, every), "f1": mean(self.f1, every)}
    if self._unanswerable:
      scores["has_answer_f1"] = mean(self.f1, self.has_answer.astype(float))
      scores["no_answer_f1"] = mean(self.f1, (~self.has_answer).astype(float))
    return scores

  def _compared(self, predictions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(exact, f1) of predictions, one per row."""
    pairs = [
      compared(prediction, tuple(row["label"]), self.language, self._unanswerable)
      for prediction, row in zip(predictions, self._rows, strict=True)
    ]
    exact, f1 = np.array(pairs, np.float64).reshape(-1, 2).T
    return exact, f1

  def _best(self) -> dict[str, float]:
    """The best F1 of all thresholds: a question has no answer if `no_answer` is above it.

    Below the threshold counts the best text, also where the prediction is that there is no answer.
    """
    texts = [row["prediction"] or _best_text(row) for row in self._rows]
    _, f1 = self._compared(texts)
    gains = np.where(self.has_answer, f1, [-1.0 if text else 0.0 for text in texts])
    levels = np.array([row["no_answer"] for row in self._rows], np.float64)
    order = np.argsort(levels, kind="stable")
    totals = np.cumsum([(~self.has_answer).sum(), *gains[order]])  # summed in the official order: ties stay ties
    best = int(np.argmax(totals))
    threshold = float(levels[order[best - 1]]) if best else 0.0  # 0, as in the official script, if none is better
    return {"best_f1": float(totals[best] / len(totals[1:])), "best_f1_threshold": threshold}


def language_of(texts: Iterable[str]) -> str:
  """Returns "zh" if most letters are Chinese characters, else "en"."""
  text = "".join(texts)
  return "zh" if 2 * len(_CHINESE.findall(text)) > sum(map(str.isalpha, text)) else "en"


@functools.lru_cache(100_000)  # reports score parts of the same rows again
def compared(prediction: str, references: tuple[str, ...], language: str, unanswerable: bool) -> tuple[float, float]:
  """The best exact match and the best F1 of an answer over its references.

  Args:
    prediction: "" for no answer.
    references: empty if there is no answer.
    language: "en" or "zh".
    unanswerable: whether the data set has unanswerable questions. SQuAD 2.0 then skips references of which the
      normalisation leaves nothing, and counts two empty texts as equal.
  """
  if language == "zh":
    if not references:
      return float(not prediction), float(not prediction)
    exact = max(_chinese(prediction) == _chinese(reference) for reference in references)
    return float(exact), max(_chinese_f1(prediction, reference) for reference in references)
  if unanswerable:
    references = tuple(filter(normalised, references)) or ("",)
  exact = max(normalised(prediction) == normalised(reference) for reference in references)
  return float(exact), max(_f1(prediction, reference, empty_is_equal=unanswerable) for reference in references)


def normalised(text: str) -> str:
  """SQuAD's normalisation: lower case, without punctuation (of ASCII), articles and extra white space."""
  return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(prediction: str, reference: str, empty_is_equal: bool) -> float:
  """F1 of the words of normalised texts."""
  ours, theirs = normalised(prediction).split(), normalised(reference).split()
  if empty_is_equal and not (ours and theirs):
    return float(ours == theirs)
  common = sum((Counter(ours) & Counter(theirs)).values())
  if not common:
    return 0.0
  precision, recall = common / len(ours), common / len(theirs)
  return (2 * precision * recall) / (precision + recall)  # to the last bit the official value, which decides ties


def _chinese(text: str) -> str:
  """The normalisation of CMRC 2018."""
  return text.lower().strip().translate(_CHINESE_PUNCTUATION)


def _chinese_f1(prediction: str, reference: str) -> float:
  """F1 by the longest run of characters (words, where not Chinese) that both have."""
  ours, theirs = _PIECE.findall(_chinese(prediction)), _PIECE.findall(_chinese(reference))
  longest, above = 0, [0] * (len(theirs) + 1)
  for one in ours:
    above = [0, *(above[j] + 1 if one == other else 0 for j, other in enumerate(theirs))]
    longest = max(longest, *above)
  return 2 * longest / (len(ours) + len(theirs)) if longest else 0.0


def _best_text(row: Mapping[str, Any]) -> str:
  """The best candidate that is an answer; "" if there is none."""
  texts = (one["text"] for one in row.get("probabilities") or ())
  return next((text for text in texts if text), "")
