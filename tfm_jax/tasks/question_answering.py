"""Extractive question answering: SQuAD 1.1 and 2.0, CMRC 2018, XQuAD (Rajpurkar et al. 2016, 2018)."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.tasks.labelled.rows import Rows, make_rows
from tfm_jax.tasks.labelled.task import LabelledTask, Outputs, Prediction
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.examples.squad import Question, read_squad
from tfm_jax.text.examples.tables import Table, only_files
from tfm_jax.training.config import Config

log = logging.getLogger(__name__)

_BEST = 20  # answers that are considered and listed
_NOTHING = -1  # the source of a token outside the context


class _Span(NamedTuple):
  """A possible answer: its characters in the context, and its score (the sum of two log-probabilities)."""

  start: int
  end: int
  score: float


class QuestionAnswering(LabelledTask[Question]):
  """The span of a context that answers a question.

  A row is `bos question eos window eos`, where the windows of a long context overlap by `task.stride` tokens. In
  training, a window without the answer points to its first token; such windows, and questions without an answer, teach
  the model when there is none. Questions whose answer is not in the context are left out of training.
  """

  form: ClassVar[str] = "answers"
  head_name: ClassVar[str] = "question_answering"

  @classmethod
  def read(cls, config: Config, files: Sequence[Table], labelled: bool, counts: Counts) -> list[Question]:
    """See `LabelledTask`."""
    questions = read_squad(only_files(files, config.task.name), counts)
    if labelled:
      known = [question for question in questions if question.answers is not None]
      usable = [question for question in known if not question.answers or any(a.start >= 0 for a in question.answers)]
      counts["questions without an answer in their context, left out"] = len(known) - len(usable)
      if not usable:
        raise UserError(f"{files[0]} has no question with an answer to learn from")
      return usable
    return questions

  @classmethod
  def head(cls, config: Config, examples: Sequence[Question]) -> dict[str, Any]:
    """See `LabelledTask`."""
    return {"head.name": cls.head_name}

  @classmethod
  def task_keys(cls, examples: Sequence[Question]) -> dict[str, Any]:
    """See `LabelledTask`: whether there may be no answer."""
    return {"no_answer": any(example.answers == () for example in examples)}

  @classmethod
  def texts(cls, example: Question) -> Sequence[str]:
    """See `LabelledTask`: questions about the same context stay together."""
    return (example.context, example.question)

  @classmethod
  def corpus(cls, examples: Sequence[Question]) -> Iterable[str]:
    """See `LabelledTask`: each context once, however many questions are about it."""
    return dict.fromkeys(super().corpus(examples))

  def rows(self, examples: Sequence[Question]) -> Rows:
    """See `LabelledTask`."""
    vocabulary, seq_len = self.vocabulary, self.config.data.seq_len
    begin = np.array([vocabulary.bos_id] if vocabulary.bos_id >= 0 else [], np.int32)
    eos = np.array([vocabulary.eos_id], np.int32)
    questions = self.tokenizer.encode_batch([example.question for example in examples])
    unique = list(dict.fromkeys(example.context for example in examples))
    contexts = dict(zip(unique, self.tokenizer.encode_with_spans(unique), strict=True))
    most = max(seq_len // 4, seq_len - len(begin) - 2 - 256, 8)  # of the question, so that the context has room
    sequences, types, sources, owners, targets, weights = [], [], [], [], [], []
    truncated = 0
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
      ids, spans = contexts[example.context]
      truncated += len(question) > most
      question = question[:most]
      before = len(begin) + len(question) + 1
      room = seq_len - before - 1
      stride = min(self.config.task.stride, room // 2)
      if room < 2:
        raise UserError(f"data.seq_len={seq_len} leaves no room for the context: raise it")
      answer = _places(example, spans)
      for start in range(0, max(len(ids) - stride, 1), max(room - stride, 1)):
        part = ids[start : start + room]
        sequences.append(np.concatenate([begin, question, eos, part, eos]))
        types.append((np.arange(len(sequences[-1])) >= before).astype(np.int32))
        outside = np.full((before, 2), _NOTHING)
        sources.append(np.concatenate([outside, spans[start : start + room], outside[:1]]))
        owners.append(number)
        inside = answer is not None and start <= answer[0] and answer[1] < start + len(part)
        targets.append([before + place - start for place in answer] if answer is not None and inside else [0, 0])
        weights.append(float(example.answers is not None))
    labels = {"targets": np.array(targets, np.int32).reshape(-1, 2), "weights": np.array(weights, np.float32)}
    token_types = types if self.config.model.token_types > 1 else None
    return make_rows(sequences, token_types, labels, {}, owners, truncated, sources=sources)

  def predictions(self, examples: Sequence[Question], rows: Rows, outputs: Mapping[int, Outputs]) -> list[Prediction]:
    """See `LabelledTask`. `no_answer` is the probability that there is none, beside the listed answers."""
    wanted = np.bincount(rows.examples, minlength=len(examples))
    seen = np.bincount(rows.examples[list(outputs)], minlength=len(examples)) if outputs else 0 * wanted
    spans: dict[int, list[_Span]] = {number: [] for number in np.flatnonzero(seen == wanted).tolist()}
    nothing: dict[int, float] = {}
    for row, output in outputs.items():
      number = int(rows.examples[row])
      if number in spans:
        source, scores = rows.sources_of(row), output["log_probabilities"]
        spans[number] += _best(source, scores[: len(source)], self.config.task.answer_tokens)
        # The least certain of the windows that say so: an answer in one of them is an answer.
        null = float(scores[0].sum())
        nothing[number] = min(nothing.get(number, null), null)
    # Of an imported model, which has no training data, the labels say whether there may be none.
    unanswerable = self.config.task.no_answer or (
      not self.config.data.path and any(example.answers == () for example in examples)
    )
    return [_prediction(examples[number], found, nothing[number], unanswerable) for number, found in spans.items()]


def _places(example: Question, spans: np.ndarray) -> tuple[int, int] | None:
  """The first and the last token of the answer; None if the context has none, or no token covers it."""
  answer = next((answer for answer in example.answers or () if answer.start >= 0), None)
  if answer is None:
    return None
  inside = np.flatnonzero((spans[:, 1] > answer.start) & (spans[:, 0] < answer.start + len(answer.text)))
  inside = inside[spans[inside, 1] > spans[inside, 0]]
  return (int(inside[0]), int(inside[-1])) if len(inside) else None


def _best(source: np.ndarray, scores: np.ndarray, longest: int) -> list[_Span]:
  """The likeliest spans of a window: pairs of its likeliest starts and ends, at most `longest` tokens."""
  places = np.flatnonzero(source[:, 1] > source[:, 0])
  if not len(places):
    return []
  starts, ends = (places[np.argsort(-scores[places, side], kind="stable")[:_BEST]] for side in (0, 1))
  first, last = (grid.reshape(-1) for grid in np.meshgrid(starts, ends, indexing="ij"))
  valid = (first <= last) & (last - first < longest)
  first, last = first[valid], last[valid]
  total = scores[first, 0] + scores[last, 1]
  best = np.argsort(-total, kind="stable")[:_BEST]
  return [_Span(int(source[first[i], 0]), int(source[last[i], 1]), float(total[i])) for i in best]


def _prediction(example: Question, found: Sequence[_Span], nothing: float, unanswerable: bool) -> Prediction:
  """The best spans of all windows; `unanswerable`: whether "no answer" may win."""
  unique: dict[tuple[int, int], _Span] = {}
  for span in sorted(found, key=lambda span: -span.score):
    unique.setdefault((span.start, span.end), span)
  best = list(unique.values())[:_BEST]
  scores = np.array([*(span.score for span in best), nothing])
  shares = np.exp(scores - scores.max())
  shares /= shares.sum()
  answers = [
    {
      "text": example.context[span.start : span.end],
      "start": span.start,
      "end": span.end,
      "probability": round(float(share), 6),
    }
    for span, share in zip(best, shares, strict=False)
  ]
  answered = best and not (unanswerable and nothing > best[0].score)
  start, end = (best[0].start, best[0].end) if answered else (-1, -1)
  return {
    "id": example.id,
    "prediction": example.context[start:end] if answered else "",
    "label": None if example.answers is None else [answer.text for answer in example.answers],
    "start": start,
    "end": end,
    "probabilities": answers,
    "no_answer": round(float(shares[-1]), 6),
    "question": example.question,
    "context": example.context,
  }
