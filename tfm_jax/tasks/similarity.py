"""Vectors of sentences: similar texts have a cosine near 1 (Reimers & Gurevych 2019, Gao et al. 2021)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.tasks.labelled.rows import Rows
from tfm_jax.tasks.labelled.task import LabelledTask, Outputs, Prediction
from tfm_jax.tasks.labelled.texts import LABEL, PAIR, TEXT, TextExample, read_texts, text_rows
from tfm_jax.tasks.sequence_classification import number_of, shown
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.examples.tables import Table
from tfm_jax.training.config import Config


class Similarity(LabelledTask[TextExample]):
  """The cosine of the vectors of two texts, which one encoder reads one by one.

  A file with labels teaches it how similar the texts are: labels are divided by the largest one. A file without a
  column of labels has pairs that belong together, and teaches it by the other pairs of the batch (contrastive loss).
  Vectors are means over the tokens (`head.pooling`).
  """

  form: ClassVar[str] = "numbers"
  head_name: ClassVar[str] = "similarity"

  @classmethod
  def read(cls, config: Config, files: Sequence[Table], labelled: bool, counts: Counts) -> list[TextExample]:
    """See `LabelledTask`. Labels are never required."""
    examples = read_texts(config, files, False, counts, {"text": TEXT, "pair": PAIR, "label": LABEL}, pairs=True)
    for example in examples:
      number_of(example)  # raises for what is no number
    return examples

  @classmethod
  def head(cls, config: Config, examples: Sequence[TextExample]) -> dict[str, Any]:
    """See `LabelledTask`."""
    known = sum(example.label is not None for example in examples)
    if 0 < known < len(examples):
      raise UserError(f"{config.data.path}: {len(examples) - known:,} of {len(examples):,} pairs have no label")
    if known and max(map(number_of, examples)) <= 0:
      raise UserError(f"{config.data.path}: no label is above 0")
    return {"head.name": cls.head_name, "head.num_labels": 1 if known else 2, "head.labels": "", "head.pooling": "mean"}

  @classmethod
  def task_keys(cls, examples: Sequence[TextExample]) -> dict[str, Any]:
    """See `LabelledTask`: the scale of the labels."""
    largest = max((number_of(example) for example in examples if example.label is not None), default=1.0)
    return {"scale": largest}

  @classmethod
  def texts(cls, example: TextExample) -> Sequence[str]:
    """See `LabelledTask`."""
    return example.texts

  def rows(self, examples: Sequence[TextExample]) -> Rows:
    """See `LabelledTask`."""
    texts = [(text,) for example in examples for text in example.texts]
    flat = text_rows(texts, {}, self.tokenizer, self.vocabulary, self.config.data.seq_len, token_types=False)
    labels = np.array([number_of(example) for example in examples], np.float32)
    known = ~np.isnan(labels) if self.config.model.head.num_labels == 1 else np.ones(len(labels), bool)
    scaled = np.where(known & ~np.isnan(labels), labels, 0) / self.config.task.scale
    return flat.grouped(2, {"targets": scaled.astype(np.float32), "weights": known.astype(np.float32)})

  def predictions(
    self, examples: Sequence[TextExample], rows: Rows, outputs: Mapping[int, Outputs]
  ) -> list[Prediction]:
    """See `LabelledTask`: the cosine on the scale of the training labels.

    Without labels also `rank`: the place of the second text among those of all examples, by the cosine, from 1.
    """
    places = sorted(outputs)
    if not places:
      return []
    vectors = np.stack([outputs[row]["vectors"] for row in places])
    values = (vectors[:, 0] * vectors[:, 1]).sum(1) * self.config.task.scale
    found = []
    for row, value in zip(places, values, strict=True):
      label = None if examples[row].label is None else number_of(examples[row])
      found.append({"prediction": round(float(value), 6), "label": label, **shown(examples[row])})
    if any(one["label"] is not None for one in found):
      return found
    return [one | {"rank": rank} for one, rank in zip(found, _ranks(vectors), strict=True)]

  def scores(self, predictions: Sequence[Prediction], intervals: bool = True) -> dict[str, float]:
    """Correlations with labels; without labels, how often the pair of a text is the nearest of all second texts."""
    found = super().scores(predictions, intervals)
    if found or not predictions:
      return found
    ranks = np.array([row["rank"] for row in predictions])
    return {
      "recall_at_1": float((ranks == 1).mean()),
      "recall_at_10": float((ranks <= 10).mean()),
      "mean_reciprocal_rank": float((1 / ranks).mean()),
    }


def _ranks(vectors: np.ndarray) -> list[int]:
  """For each pair of vectors [N, 2, D], the place of its second one among all second ones, the nearest first."""
  ranks = []
  for first in range(0, len(vectors), 1000):
    cosines = vectors[first : first + 1000, 0] @ vectors[:, 1].T
    own = cosines[np.arange(len(cosines)), first + np.arange(len(cosines))]
    ranks += (1 + (cosines > own[:, None]).sum(1)).tolist()
  return ranks
