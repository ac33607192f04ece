"""Questions about passages in the JSON of SQuAD 1.1 and 2.0, which CMRC 2018 and XQuAD share."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.corpora.opening import READ_ERRORS, open_file
from tfm_jax.text.examples.tables import check_text

_FORM = 'expected {"data": [{"paragraphs": [{"context": ..., "qas": [...]}]}]}'


class Answer(NamedTuple):
  """A reference answer: its text, and where it starts in the context; -1: it is not in the context."""

  text: str
  start: int


class Question(NamedTuple):
  """A question about a context. `answers` is None in a file without answers, empty if the context has none."""

  file: Path
  id: str
  question: str
  context: str
  answers: tuple[Answer, ...] | None


def read_squad(files: Sequence[Path], counts: Counts | None = None) -> list[Question]:
  """The questions of the files, in order.

  An answer that the context does not have at its place is looked up: the occurrence nearest to that place is taken, and
  counted as `moved`; one that is nowhere in the context has the start -1 and is counted as `missing`.

  Raises:
    UserError: an unreadable file, another form of JSON, or no questions. The file and the question are named.
  """
  counts = {} if counts is None else counts
  counts |= {"moved": 0, "missing": 0}
  questions: list[Question] = []
  for file in files:
    before = len(questions)
    questions += _questions(file, _content(file), counts)
    if len(questions) == before:
      raise UserError(f"{file} has no questions: {_FORM}")
  return questions


def _content(file: Path) -> Any:
  try:
    with open_file(file) as stream:
      return json.load(stream)
  except READ_ERRORS as error:
    raise UserError(f"cannot read {file}: {error}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{file} is not JSON ({error}): {_FORM}") from error


def _questions(file: Path, content: Any, counts: Counts) -> Iterator[Question]:
  place = f"{file}"
  try:
    for article in content["data"] if isinstance(content, dict) else content:
      for paragraph in article["paragraphs"]:
        place = f"{file}"
        context = check_text(paragraph["context"], place)
        for entry in paragraph["qas"]:
          place = f"{file}, question {entry.get('id', entry['question'])!r}"
          answers = None
          if "answers" in entry:
            answers = tuple(_answer(answer, context, counts) for answer in entry["answers"])
            answers = () if entry.get("is_impossible") else answers
          question = check_text(entry["question"], place)
          yield Question(file, str(entry.get("id", "")), question, context, answers)
  except UserError:
    raise
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    missing = f"no key {error}" if isinstance(error, KeyError) else str(error)
    raise UserError(f"{place}: {missing}; {_FORM}") from error


def _answer(answer: Any, context: str, counts: Counts) -> Answer:
  text, start = answer["text"], int(answer.get("answer_start", -1))
  if start >= 0 and context.startswith(text, start):
    return Answer(text, start)
  places, place = [], context.find(text) if text else -1
  while place >= 0:
    places.append(place)
    place = context.find(text, place + 1)
  if not places:
    counts["missing"] += 1
    return Answer(text, -1)
  counts["moved"] += 1
  return Answer(text, min(places, key=lambda place: abs(place - max(start, 0))))
