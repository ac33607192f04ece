"""Tasks written as text: classes, numbers, tags and answers with T5's prefixes (Raffel et al. 2020, appendix D).

What the model writes is read back as a prediction of the task's own form, and scored by the task's own scores.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossTerms
from tfm_jax.tasks.generation import Generation
from tfm_jax.tasks.glue import GLUE
from tfm_jax.tasks.labelled.task import LabelledTask, Prediction
from tfm_jax.tasks.labelled.texts import TextExample
from tfm_jax.tasks.multiple_choice import Choice, MultipleChoice
from tfm_jax.tasks.question_answering import QuestionAnswering
from tfm_jax.tasks.scoring.classes import OTHER
from tfm_jax.tasks.scoring.tags import entities, marks_entities
from tfm_jax.tasks.sequence_classification import SequenceClassification, SequenceRegression, number_of, shown
from tfm_jax.tasks.token_classification import TokenClassification
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.examples.conll import Sentence
from tfm_jax.text.examples.pairs import Pair
from tfm_jax.text.examples.squad import Question
from tfm_jax.text.examples.tables import Table
from tfm_jax.text.tokenizers.table import Tokenizer
from tfm_jax.training.config import Config
from tfm_jax.training.loss import LossFunction

DATA_SETS = {"squad": "question_answering", "conll2003": "token_classification"}
"""Other names that `task.source_task` may have, which also stand in the source text."""
_NO_NUMBER = -1.0  # the prediction where the model wrote no number, as in T5's evaluation
_NO_ENTITY = "none"


class Writer(Protocol):
  """How the examples of one kind of task are written as text.

  Args:
    name: of the task, which begins the source text.
    labels: the classes or tags of the training data, where there are any.
  """

  def __init__(self, name: str, labels: Sequence[str] = ()) -> None: ...

  def source(self, example: Any) -> str:
    """The text that the model reads."""

  def target(self, example: Any) -> str | None:
    """The text that it should write; None: the example has no label."""

  def row(self, example: Any, text: str) -> Prediction:
    """What it wrote, as a row of the task's form: see `tasks.scores`."""


class Classes:
  """`sst2 sentence: ...` -> `positive`: the class by its name."""

  def __init__(self, name: str, labels: Sequence[str] = ()) -> None:
    self._name, self._glue = name, GLUE.get(name)
    self._labels = {self._word(label): label for label in labels}

  def source(self, example: TextExample) -> str:
    names = ("sentence1", "sentence2")[: len(example.texts)] if len(example.texts) > 1 else ("sentence",)
    if self._glue is not None:
      names = tuple(columns[0] for columns in (self._glue.text, self._glue.pair) if columns)
    # T5 sorts them by name: "mnli hypothesis: ... premise: ...".
    parts = sorted(zip(names, example.texts, strict=True))
    return " ".join([self._name, *(f"{name}: {text}" for name, text in parts)])

  def target(self, example: TextExample) -> str | None:
    return None if example.label is None else self._word(example.label)

  def row(self, example: TextExample, text: str) -> Prediction:
    return {"prediction": self._labels.get(text, OTHER), "label": example.label, **shown(example)}

  def _word(self, label: str) -> str:
    """The name of a class: that of GLUE if the file has its number."""
    words = self._glue.words if self._glue else ()
    return words[int(label)] if label.isdecimal() and int(label) < len(words) else label


class Numbers(Classes):
  """`stsb sentence1: ... sentence2: ...` -> `3.8`: of STS-B, rounded to a multiple of 0.2."""

  def target(self, example: TextExample) -> str | None:
    if example.label is None:
      return None
    value = number_of(example)
    return f"{round(5 * value) / 5:.1f}" if self._name == "stsb" else f"{value:.2f}"

  def row(self, example: TextExample, text: str) -> Prediction:
    try:
      value = float(text)
    except ValueError:
      value = _NO_NUMBER
    label = None if example.label is None else number_of(example)
    return {"prediction": value if abs(value) < float("inf") else _NO_NUMBER, "label": label, **shown(example)}


class Answers:
  """`question: ... context: ...` -> the answer; without an answer, nothing."""

  def __init__(self, name: str, labels: Sequence[str] = ()) -> None:
    pass

  def source(self, example: Question) -> str:
    return f"question: {example.question} context: {example.context}"

  def target(self, example: Question) -> str | None:
    if example.answers is None:
      return None
    return example.answers[0].text if example.answers else ""

  def row(self, example: Question, text: str) -> Prediction:
    start = example.context.find(text) if text else -1
    return {
      "id": example.id,
      "prediction": text,
      "label": None if example.answers is None else [answer.text for answer in example.answers],
      "start": start,
      "end": start + len(text) if start >= 0 else -1,
      "no_answer": float(not text),
      "question": example.question,
      "context": example.context,
    }


class Tags:
  """`conll2003 sentence: ...` -> `ORG: EU; MISC: German`: the entities in their order. T5 has no such task."""

  def __init__(self, name: str, labels: Sequence[str] = ()) -> None:
    self._name = name
    self._types = {label.partition("-")[2] for label in labels if label != "O"}

  def source(self, example: Sentence) -> str:
    return f"{self._name} sentence: {' '.join(example.words)}"

  def target(self, example: Sentence) -> str | None:
    if example.tags is None:
      return None
    if not marks_entities([{"label": example.tags, "prediction": None}]):
      raise UserError(f"{example.file}, line {example.line}: the tags mark no entities (B-PER, I-PER, O)")
    found = [f"{kind}: {' '.join(example.words[low : high + 1])}" for kind, low, high in entities(example.tags)]
    return "; ".join(found) or _NO_ENTITY

  def row(self, example: Sentence, text: str) -> Prediction:
    """Each entity is looked for after the one before it, and then anywhere."""
    words, tags, after = list(example.words), ["O"] * len(example.words), 0
    for part in text.split(";"):
      kind, _, entity = part.strip().partition(": ")
      wanted = entity.split()
      if kind not in self._types or not wanted:
        continue
      free = [
        place
        for place in range(len(words) - len(wanted) + 1)
        if words[place : place + len(wanted)] == wanted and {*tags[place : place + len(wanted)]} == {"O"}
      ]
      place = next((place for place in free if place >= after), free[0] if free else None)
      if place is not None:
        after = place + len(wanted)
        tags[place:after] = [f"B-{kind}", *[f"I-{kind}"] * (len(wanted) - 1)]
    return {"prediction": tags, "label": None if example.tags is None else list(example.tags), "words": words}


class Choices:
  """`NAME choice1: ... choice2: ... premise: ...` -> `choice1`, as T5 has COPA."""

  def __init__(self, name: str, labels: Sequence[str] = ()) -> None:
    self._name = name

  def source(self, example: Choice) -> str:
    listed = [f"choice{number}: {text}" for number, text in enumerate(example.candidates, 1)]
    return " ".join([self._name, *listed, f"premise: {example.text}"])

  def target(self, example: Choice) -> str | None:
    return None if example.label is None else f"choice{example.label + 1}"

  def row(self, example: Choice, text: str) -> Prediction:
    numbers = {f"choice{number}": str(number) for number in range(1, len(example.candidates) + 1)}
    label = None if example.label is None else str(example.label + 1)
    return {
      "prediction": numbers.get(text, OTHER), "label": label, "text": example.text, "choices": [*example.candidates]
    }  # fmt: skip


WRITERS: dict[type[LabelledTask], type[Writer]] = {
  SequenceClassification: Classes,
  SequenceRegression: Numbers,
  QuestionAnswering: Answers,
  TokenClassification: Tags,
  MultipleChoice: Choices,
}
_READERS: dict[type, type[LabelledTask]] = {
  TextExample: SequenceClassification,
  Question: QuestionAnswering,
  Sentence: TokenClassification,
  Choice: MultipleChoice,
}


class TextToText(Generation):
  """Any task of `WRITERS`, named by `task.source_task`, as text: its files are read as that task reads them."""

  @classmethod
  def files(cls, path: str, target_path: str, key: str) -> list[Path]:
    """See `LabelledTask`."""
    return super().files(path, "", key)

  @classmethod
  def read(cls, config: Config, files: Sequence[Table], labelled: bool, counts: Counts) -> list[Pair]:
    """See `LabelledTask`."""
    kind, own = _source_task(config)
    writer = WRITERS[kind](config.task.source_task)
    pairs = []
    for example in kind.read(own, files, labelled, counts):
      target = writer.target(example)
      targets = None if target is None else (target,)
      pairs.append(Pair(example.file, getattr(example, "line", 0), writer.source(example), targets, example))
    return pairs

  @classmethod
  def form_of(cls, config: Config) -> str:
    """See `LabelledTask`: that of the task that is written as text."""
    return _source_task(config)[0].form

  @classmethod
  def shared(cls, example: Pair) -> str:
    """See `LabelledTask`: the same as of the task that is written as text, whose split is then this one's too."""
    return _READERS[type(example.origin)].shared(example.origin)

  @classmethod
  def head(cls, config: Config, examples: Sequence[Pair]) -> dict[str, Any]:
    """See `LabelledTask`: `head.labels` has the classes or tags that the model may write."""
    kind, own = _source_task(config)
    keys = kind.head(own, [example.origin for example in examples])
    named = ("head.labels", "head.num_labels") if keys.get("head.labels") else ()
    return super().head(config, examples) | {key: keys[key] for key in named}

  def _set(self, config: Config, tokenizer: Tokenizer) -> None:
    super()._set(config, tokenizer)
    kind, _ = _source_task(config)
    labels = config.model.head.labels
    self.form = self.form_of(config)  # type: ignore[misc]
    self._writer = WRITERS[kind](config.task.source_task, labels.split("|") if labels else ())

  def loss(self, model: Model) -> LossFunction:
    """See `Task`. The share of right tokens is `token_accuracy`: the task may have an accuracy of its own."""
    of_tokens = super().loss(model)

    def loss(params: Any, batch: Any, noise: Noise | None) -> LossTerms:
      terms = of_tokens(params, batch, noise)
      return terms._replace(metrics={f"token_{name}": pair for name, pair in terms.metrics.items()})

    return loss

  def prediction(self, example: Pair, text: str) -> Prediction:
    """See `Generation`: in the form of the task that is written as text, with the text as `generated`."""
    return {**self._writer.row(example.origin, text), "generated": text}


def _source_task(config: Config) -> tuple[type[LabelledTask], Config]:
  """The task that is written as text, and the configuration by which it reads its files. Raises UserError."""
  from tfm_jax.tasks.table import TASKS  # late: the table has `TextToText` too

  given = config.task.source_task
  name = DATA_SETS.get(given, given)
  kind = TASKS.get(name)
  if kind not in WRITERS:
    known = [*DATA_SETS, *(name for name, kind in TASKS.items() if kind in WRITERS)]
    raise UserError(f"task.source_task={given!r} names no task that is written as text: choose {', '.join(known)}")
  return kind, dataclasses.replace(config, task=dataclasses.replace(config.task, name=name))
