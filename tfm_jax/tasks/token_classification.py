"""Classification of words: names, parts of speech; CoNLL columns, BIO tags."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.models.families.table import find_family
from tfm_jax.tasks.labelled.rows import Rows, make_rows
from tfm_jax.tasks.labelled.task import LabelledTask, Outputs, Prediction
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.examples.conll import Sentence, read_conll
from tfm_jax.text.examples.tables import Table, listed, only_files
from tfm_jax.training.config import Config

_NONE = "O"  # the tag of a word that is part of nothing


class TokenClassification(LabelledTask[Sentence]):
  """A tag for each word of sentences in columns.

  Words are joined by spaces, and the first piece of each word has its tag; other pieces have no label. In a causal
  model it is the last piece, at which the word has been read. A sentence that is longer than a row is divided into
  several, between words.
  """

  form: ClassVar[str] = "tags"
  head_name: ClassVar[str] = "token_classification"

  @classmethod
  def read(cls, config: Config, files: Sequence[Table], labelled: bool, counts: Counts) -> list[Sentence]:
    """See `LabelledTask`."""
    task, errors = config.task, config.data.errors
    return read_conll(only_files(files, task.name), task.text, task.label, labelled, errors, counts)

  @classmethod
  def head(cls, config: Config, examples: Sequence[Sentence]) -> dict[str, Any]:
    """See `LabelledTask`."""
    tags = {tag for sentence in examples for tag in sentence.tags or ()}
    if len(tags) < 2:
      raise UserError(
        f"{config.data.path} has {len(tags)} tag ({listed(sorted(tags))}): two are needed; set task.label"
      )
    if any("|" in tag for tag in tags):
      raise UserError(f"{config.data.path}: a tag must not contain '|', which separates the labels in head.labels")
    if len(tags) > 1000:
      raise UserError(f"{config.data.path} has {len(tags):,} different tags: set task.label to the column of tags")
    names = sorted(tags, key=lambda tag: (tag != _NONE, tag.partition("-")[2] or tag, tag))
    return {"head.name": cls.head_name, "head.num_labels": len(names), "head.labels": "|".join(names)}

  @classmethod
  def texts(cls, example: Sentence) -> Sequence[str]:
    """See `LabelledTask`."""
    return (" ".join(example.words),)

  @property
  def tags(self) -> list[str]:
    """The names of the tags, in the order of their numbers."""
    return self.config.model.head.labels.split("|")

  def rows(self, examples: Sequence[Sentence]) -> Rows:
    """See `LabelledTask`."""
    numbers = {tag: number for number, tag in enumerate(self.tags)}
    vocabulary, causal = self.vocabulary, find_family(self.config.family).causal
    begin = np.array([vocabulary.bos_id] if vocabulary.bos_id >= 0 else [], np.int32)
    end = np.array([vocabulary.eos_id], np.int32)
    room = self.config.data.seq_len - len(begin) - 1
    sequences: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    words: list[np.ndarray] = []
    owners: list[int] = []
    truncated = 0
    encoded = self.tokenizer.encode_with_spans([self.texts(sentence)[0] for sentence in examples])
    for number, (sentence, (ids, spans)) in enumerate(zip(examples, encoded, strict=True)):
      labels = self._labels(sentence, numbers)
      first, last = _pieces(sentence.words, spans)
      tagged = last if causal else first
      for start, stop, cut in _chunks(first, len(ids), room):
        truncated += cut
        inside = (first >= start) & (first < stop)
        row = np.zeros(stop - start + len(begin) + 1, np.int32)
        weight = np.zeros(len(row), np.float32)
        word = np.full(len(row), -1, np.int32)
        places = np.minimum(tagged[inside], stop - 1) - start + len(begin)  # a word may be cut
        row[places] = np.maximum(labels[inside], 0)
        weight[places] = labels[inside] >= 0
        word[places] = np.flatnonzero(inside)
        sequences.append(np.concatenate([begin, ids[start:stop], end]))
        targets.append(row)
        weights.append(weight)
        words.append(word)
        owners.append(number)
    return make_rows(sequences, None, {}, {"targets": targets, "weights": weights}, owners, truncated, sources=words)

  def _labels(self, sentence: Sentence, numbers: Mapping[str, int]) -> np.ndarray:
    """The number of each word's tag; -1 without tags. Raises UserError for a tag that training does not have."""
    if sentence.tags is None:
      return np.full(len(sentence.words), -1)
    for i, tag in enumerate(sentence.tags):
      if tag not in numbers:
        raise UserError(
          f"{sentence.file}, line {sentence.line + i}: the tag {tag!r} is not one of the training data, whose "
          f"tags are {listed(self.tags)}"
        )
    return np.array([numbers[tag] for tag in sentence.tags])

  def predictions(self, examples: Sequence[Sentence], rows: Rows, outputs: Mapping[int, Outputs]) -> list[Prediction]:
    """See `LabelledTask`. A word without a piece of its own has the tag O."""
    tags, probabilities = {}, {}
    wanted = np.bincount(rows.examples, minlength=len(examples))  # rows per example
    seen = np.bincount(rows.examples[list(outputs)], minlength=len(examples)) if outputs else 0 * wanted
    complete = [number for number in range(len(examples)) if seen[number] == wanted[number]]
    default = _NONE if _NONE in self.tags else self.tags[0]
    for number in complete:
      tags[number] = [default] * len(examples[number].words)
      probabilities[number] = [0.0] * len(examples[number].words)
    for row, output in outputs.items():
      number = int(rows.examples[row])
      if number in tags:
        for place, word in enumerate(rows.sources_of(row).tolist()):
          if word >= 0:
            tag = int(output["classes"][place])
            tags[number][word] = self.tags[tag]
            probabilities[number][word] = round(float(output["probabilities"][place, tag]), 6)
    return [
      {
        "prediction": tags[number],
        "label": None if examples[number].tags is None else list(examples[number].tags or ()),
        "probabilities": probabilities[number],
        "words": list(examples[number].words),
      }
      for number in complete
    ]


def _pieces(words: Sequence[str], spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The numbers of the first and of the last piece that begins in each word of a text of these words; -1: none does."""
  ends = np.cumsum([len(word) + 1 for word in words])
  of_piece = np.searchsorted(ends, spans[:, 0], side="right")
  of_piece = np.where(spans[:, 1] > spans[:, 0], of_piece, len(words))  # pieces that stand for no character
  numbers = np.arange(len(of_piece))
  first = np.full(len(words) + 1, -1)
  first[of_piece[::-1]] = numbers[::-1]
  last = first.copy()
  in_word = spans[:, 0] + 1 < np.append(ends, 0)[of_piece]  # rather than in the space after it
  last[of_piece[in_word]] = numbers[in_word]
  return first[: len(words)], last[: len(words)]


def _chunks(first: np.ndarray, pieces: int, room: int) -> Iterator[tuple[int, int, bool]]:
  """(start, stop, whether a word is cut) of the rows of a sentence: as many whole words as fit, at least one."""
  starts = [int(place) for place in first if place >= 0]  # ascending
  if not starts:
    yield 0, min(pieces, room), pieces > room
    return
  begin = 0
  while True:
    after, last = bisect.bisect_right(starts, begin), bisect.bisect_right(starts, begin + room)
    if begin + room >= pieces:
      yield begin, pieces, False
      return
    whole = after < last
    stop = starts[last - 1] if whole else begin + room
    yield begin, stop, not whole
    begin = stop if whole else starts[after] if after < len(starts) else pieces
    if begin >= pieces:
      return
