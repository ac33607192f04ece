"""Scores of the form "tags": one tag per word, which mark entities in BIO or a similar scheme."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfm_jax.tasks.scoring.bootstrap import f1_of, ratio

Entity = tuple[str, int, int]  # type, first word, last word
_ENTITY_TAG = re.compile(r"O|[BIES](-.*)?", re.DOTALL)


class Tags:
  """Labelled predictions of tags.

  Attributes:
    marks_entities: whether the tags mark entities (B-PER, I-PER, O). Others, such as parts of speech, have only
      an accuracy.
    predicted, labelled: the entities of each sentence; sets of (type, first word, last word).
  """

  def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
    self._labels, self._predictions = ([list(row[key]) for row in rows] for key in ("label", "prediction"))
    self.marks_entities = marks_entities(rows)
    self.labelled, self.predicted = (
      ([], [])
      if not self.marks_entities
      else ([set(entities(tags)) for tags in sentences] for sentences in (self._labels, self._predictions))
    )
    pairs = list(zip(self._labels, self._predictions, strict=True))
    self._words = np.array([len(labels) for labels in self._labels], np.float64)
    self._words_right = np.array([sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs], np.float64)
    self._counts = np.array(
      [(len(a & b), len(b), len(a)) for a, b in zip(self.labelled, self.predicted, strict=True)], np.float64
    ).reshape(-1, 3)

  def right(self) -> np.ndarray:
    """Whether all entities (all tags, where they mark none) of each sentence are right: [N] bool."""
    if not self.marks_entities:
      return self._words == self._words_right
    return np.array([a == b for a, b in zip(self.labelled, self.predicted, strict=True)])

  def scores(self) -> dict[str, float]:
    """seqeval's `precision`, `recall` and `f1` of entities, `accuracy` of words, `bio_faults` of the predictions."""
    accuracy = {"accuracy": float(ratio(self._words_right.sum(), self._words.sum()))}
    if not self.marks_entities:
      return accuracy
    # Late: importing it takes a second, which commands that score nothing save.
    from seqeval.metrics import sequence_labeling as seqeval

    precision, recall, f1, _ = seqeval.precision_recall_fscore_support(
      self._labels, self._predictions, average="micro", zero_division=0
    )
    faults = sum(map(bio_faults, self._predictions))
    return {
      "precision": float(precision),
      "recall": float(recall),
      "f1": float(f1),
      **accuracy,
      "bio_faults": float(faults),
    }

  def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores, but for the faults, of resamples [R, N] of sentences; [R] each."""
    accuracy = {"accuracy": ratio(weights @ self._words_right, weights @ self._words)}
    if not self.marks_entities:
      return accuracy
    right, predicted, labelled = (weights @ self._counts).T
    scores = {"precision": ratio(right, predicted), "recall": ratio(right, labelled)}
    return scores | {"f1": f1_of(right, predicted, labelled)} | accuracy

  def by_type(self) -> dict[str, tuple[int, int, int]]:
    """Entities by type, sorted: (right, predicted, labelled)."""
    right, predicted, labelled = Counter[str](), Counter[str](), Counter[str]()
    for ours, theirs in zip(self.predicted, self.labelled, strict=True):
      right.update(kind for kind, _, _ in ours & theirs)
      predicted.update(kind for kind, _, _ in ours)
      labelled.update(kind for kind, _, _ in theirs)
    return {kind: (right[kind], predicted[kind], labelled[kind]) for kind in sorted(predicted | labelled)}


def entities(tags: Sequence[str]) -> list[Entity]:
  """The entities of a sentence as the CoNLL scorer reads them: an I- without its B- begins one, so does a new type."""
  from seqeval.metrics.sequence_labeling import get_entities  # late, as above

  return get_entities(list(tags))


def marks_entities(rows: Sequence[Mapping[str, Any]]) -> bool:
  """Whether all tags of all rows are O or have a prefix of BIO, IOBES or the like."""
  every = {tag for row in rows for key in ("label", "prediction") for tag in row[key] or ()}
  return all(map(_ENTITY_TAG.fullmatch, every))


def bio_faults(tags: Sequence[str]) -> int:
  """The number of I- tags that do not continue an entity of their type."""
  before = ("O", *tags)
  continues = lambda last, tag: last[:1] in "BI" and last[1:] == tag[1:]
  return sum(tag.startswith("I-") and not continues(last, tag) for last, tag in zip(before, tags, strict=False))
