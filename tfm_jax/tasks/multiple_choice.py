"""Multiple choice: which of several endings belongs to a text (Zellers et al. 2018)."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.tasks.labelled.rows import Rows
from tfm_jax.tasks.labelled.task import LabelledTask, Outputs, Prediction
from tfm_jax.tasks.labelled.texts import text_rows
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.examples.tables import Column, Table, check_text, place_of, read_table
from tfm_jax.training.config import Config

_CHOICES = ("endings", "choices", "candidates", "options")
_TEXT = ("ctx", "context", "question", "text", "premise", "sentence")


class Choice(NamedTuple):
  """A text, its candidates, and the number (from 0) of the right one; None: not known."""

  file: Table
  line: int
  text: str
  candidates: tuple[str, ...]
  label: int | None


class MultipleChoice(LabelledTask[Choice]):
  """A score for each candidate of a text, from JSON lines with a list of candidates and the number of the right one.

  `task.pair` names the key of the list. Classes in predictions are numbers from 1; labels in the file are numbers from
  0, or letters from A.
  """

  form: ClassVar[str] = "classes"
  head_name: ClassVar[str] = "multiple_choice"

  @classmethod
  def read(cls, config: Config, files: Sequence[Table], labelled: bool, counts: Counts) -> list[Choice]:
    """See `LabelledTask`."""
    task = config.task
    columns = {
      "text": Column(task.text, _TEXT),
      "pair": Column(task.pair, _CHOICES),
      "label": Column(task.label, ("label", "answer"), required=labelled),
    }
    examples = []
    for row in read_table(files, columns, config.data.errors, counts):
      place = row.place
      text, candidates, label = row.values["text"], row.values["pair"], row.values["label"]
      strings = isinstance(candidates, list) and all(isinstance(one, str) for one in candidates)
      if not strings or len(candidates) < 2 or not isinstance(text, str):
        raise UserError(f"{place}: expected a text and a list of at least two texts: set task.text and task.pair")
      for one in (text, *candidates):
        check_text(one, place)
      known = label not in (None, "", -1)  # -1: in data sets of TFDS
      if labelled and not known:
        raise UserError(f"{place}: no label")
      number = _number(str(label), len(candidates), place) if known else None
      examples.append(Choice(row.file, row.line, text, tuple(candidates), number))
    return examples

  @classmethod
  def head(cls, config: Config, examples: Sequence[Choice]) -> dict[str, Any]:
    """See `LabelledTask`."""
    most = max(len(example.candidates) for example in examples)
    names = "|".join(str(number + 1) for number in range(most))
    return {"head.name": cls.head_name, "head.num_labels": most, "head.labels": names}

  @classmethod
  def texts(cls, example: Choice) -> Sequence[str]:
    """See `LabelledTask`."""
    return (example.text, *example.candidates)

  def rows(self, examples: Sequence[Choice]) -> Rows:
    """See `LabelledTask`."""
    members = self.config.model.head.num_labels
    for example in examples:
      if len(example.candidates) != members:
        raise UserError(
          f"{place_of(example.file, example.line)}: {len(example.candidates)} candidates, where others have {members}: "
          f"all examples need the same number"
        )
    texts = [(example.text, candidate) for example in examples for candidate in example.candidates]
    types = self.config.model.token_types > 1
    flat = text_rows(texts, {}, self.tokenizer, self.vocabulary, self.config.data.seq_len, types)
    labels = np.array([-1 if example.label is None else example.label for example in examples], np.int32)
    arrays = {"targets": np.maximum(labels, 0), "weights": (labels >= 0).astype(np.float32)}
    return flat.grouped(members, arrays)

  def predictions(self, examples: Sequence[Choice], rows: Rows, outputs: Mapping[int, Outputs]) -> list[Prediction]:
    """See `LabelledTask`."""
    found = []
    for row, output in sorted(outputs.items()):
      example = examples[row]
      probabilities = {str(i + 1): round(float(p), 6) for i, p in enumerate(output["probabilities"])}
      label = None if example.label is None else str(example.label + 1)
      prediction = {"prediction": str(int(output["class"]) + 1), "label": label, "probabilities": probabilities}
      found.append({**prediction, "text": example.text, "choices": list(example.candidates)})
    return found


def _number(label: str, candidates: int, place: str) -> int:
  """The number of a candidate, from 0. Raises UserError."""
  number = int(label) if label.isdecimal() else ascii_uppercase.find(label.upper()) if len(label) == 1 else -1
  if not 0 <= number < candidates:
    raise UserError(f"{place}: the label {label!r} is no number of a candidate from 0 to {candidates - 1}")
  return number
