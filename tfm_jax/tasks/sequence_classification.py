"""Classification of texts or pairs of texts, and regression: SST-2, MRPC, STS-B and any table."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.tasks.glue import GLUE
from tfm_jax.tasks.labelled.rows import Rows
from tfm_jax.tasks.labelled.task import LabelledTask, Outputs, Prediction
from tfm_jax.tasks.labelled.texts import (
  LABEL,
  PAIR,
  TEXT,
  TextExample,
  check_labels,
  check_pairs,
  classes_of,
  read_texts,
  text_rows,
)
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.examples.tables import Table
from tfm_jax.training.config import Config


class SequenceClassification(LabelledTask[TextExample]):
  """A class for each text, or pair of texts, of a table.

  Columns are guessed from a plain header, or by the names in GLUE's files where `task.name` is one of its tasks.
  """

  form: ClassVar[str] = "classes"
  head_name: ClassVar[str] = "sequence_classification"

  @classmethod
  def read(cls, config: Config, files: Sequence[Table], labelled: bool, counts: Counts) -> list[TextExample]:
    """See `LabelledTask`."""
    glue = GLUE.get(config.task.name)
    names = {"text": glue.text, "pair": glue.pair, "label": glue.label} if glue else {}
    usual = {"text": TEXT, "pair": PAIR, "label": LABEL} | names
    return read_texts(config, files, labelled, counts, usual, pairs=bool(glue and glue.pair))

  @classmethod
  def head(cls, config: Config, examples: Sequence[TextExample]) -> dict[str, Any]:
    """See `LabelledTask`."""
    classes = classes_of(config, examples)
    return {"head.name": cls.head_name, "head.num_labels": len(classes), "head.labels": "|".join(classes)}

  @classmethod
  def task_keys(cls, examples: Sequence[TextExample]) -> dict[str, Any]:
    """See `LabelledTask`: whether there are pairs."""
    return {"texts": len(examples[0].texts)}

  @classmethod
  def texts(cls, example: TextExample) -> Sequence[str]:
    """See `LabelledTask`."""
    return example.texts

  @property
  def classes(self) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    return self.config.model.head.labels.split("|")

  def rows(self, examples: Sequence[TextExample]) -> Rows:
    """See `LabelledTask`."""
    check_labels(self.config, self.classes, examples)
    numbers = {name: number for number, name in enumerate(self.classes)}
    labels = np.array([numbers.get(example.label or "", -1) for example in examples], np.int32)
    arrays = {"targets": np.maximum(labels, 0), "weights": (labels >= 0).astype(np.float32)}
    return self._text_rows(examples, arrays)

  def _text_rows(self, examples: Sequence[TextExample], labels: Mapping[str, np.ndarray]) -> Rows:
    check_pairs(self.config.task.texts, examples)
    texts = [example.texts for example in examples]
    token_types = self.config.model.token_types > 1
    return text_rows(texts, labels, self.tokenizer, self.vocabulary, self.config.data.seq_len, token_types)

  def training_rows(self, rows: Rows) -> Rows:
    """Weights by class (`task.class_weights`); their mean over the examples is 1."""
    setting = self.config.task.class_weights
    if not setting:
      return rows
    counts = np.bincount(rows.labels["targets"], minlength=len(self.classes))
    if setting == "balanced":
      weights = len(rows) / (len(counts) * np.maximum(counts, 1))
    else:
      weights = _numbers(setting, len(self.classes))
    per_row = weights[rows.labels["targets"]]
    return rows.with_labels({"weights": (per_row / per_row.mean()).astype(np.float32)})

  def predictions(
    self, examples: Sequence[TextExample], rows: Rows, outputs: Mapping[int, Outputs]
  ) -> list[Prediction]:
    """See `LabelledTask`."""
    predicted = ((examples[rows.examples[row]], output) for row, output in sorted(outputs.items()))
    return [{**self.prediction(example, output), **shown(example)} for example, output in predicted]

  def prediction(self, example: TextExample, output: Outputs) -> Prediction:
    """What the head's output for one example says, without its texts."""
    probabilities = dict(zip(self.classes, map(_rounded, output["probabilities"]), strict=True))
    return {
      "prediction": self.classes[int(output["class"])],
      "label": example.label,
      "probabilities": probabilities,
    }


class SequenceRegression(SequenceClassification):
  """A number for each text, or pair of texts, of a table, by the mean squared error."""

  form: ClassVar[str] = "numbers"

  @classmethod
  def head(cls, config: Config, examples: Sequence[TextExample]) -> dict[str, Any]:
    """See `LabelledTask`."""
    return {"head.name": cls.head_name, "head.num_labels": 1, "head.labels": ""}

  def rows(self, examples: Sequence[TextExample]) -> Rows:
    """See `LabelledTask`."""
    labels = np.array([number_of(example) for example in examples], np.float32)
    known = ~np.isnan(labels)
    return self._text_rows(examples, {"targets": np.where(known, labels, 0), "weights": known.astype(np.float32)})

  def training_rows(self, rows: Rows) -> Rows:
    """See `LabelledTask`: there are no classes."""
    return LabelledTask.training_rows(self, rows)

  def prediction(self, example: TextExample, output: Outputs) -> Prediction:
    """See `SequenceClassification`."""
    label = None if example.label is None else number_of(example)
    return {"prediction": _rounded(output["value"]), "label": label}


def shown(example: TextExample) -> dict[str, str]:
  """The texts of an example, as predictions.jsonl has them."""
  return dict(zip(("text", "pair"), example.texts, strict=False))


def number_of(example: TextExample) -> float:
  """The label; NaN if there is none. Raises UserError, which names file and line."""
  if example.label is None:
    return float("nan")
  try:
    value = float(example.label)
  except ValueError:
    value = float("nan")
  if not np.isfinite(value):
    raise UserError(f"{example.place}: the label {example.label!r} is not a number: set task.label")
  return value


def _numbers(setting: str, classes: int) -> np.ndarray:
  """The weights that `task.class_weights` lists. Raises UserError."""
  try:
    weights = np.array([float(part) for part in setting.split(",")])
  except ValueError:
    weights = np.zeros(0)
  if len(weights) != classes or not (weights > 0).all():
    raise UserError(f"task.class_weights={setting}: expected balanced, or {classes} numbers above 0, one per class")
  return weights


def _rounded(value: Any) -> float:
  return round(float(value), 6)
