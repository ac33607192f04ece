"""What a model predicts for an example, as choices with log-probabilities: one entry of `KINDS` per head."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.decode.scoring import is_masked
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.tasks.looking.example import Example

_SHOWN = 5  # choices listed per place


class Target(NamedTuple):
  """One predicted choice, whose log-probability is explained.

  Attributes:
    place, choice: the entry of `log_probs` [P, C].
    where: what is predicted there, such as "mask at 3".
    name: the choice as text.
    best: the likeliest choices and this one with their probabilities; of a regression, the choice with its value.
  """

  place: int
  choice: int
  where: str
  name: str
  best: list[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a model predicts for an example.

  Attributes:
    kind: what the model does, such as "fills masks".
    quantity: what the numbers are: "log-probability", or "value" of a regression.
    log_probs: float32 [P, C]: the places of the head and their choices. P are tokens, a single row, or the start and
      the end of an answer; C are pieces, classes or (of an answer) tokens.
    targets: the choices that are explained.
    answer: of question answering, the text of the answer.
  """

  kind: str
  quantity: str
  log_probs: np.ndarray
  targets: tuple[Target, ...]
  answer: str = ""

  @property
  def values(self) -> np.ndarray:
    """The log-probability of each target, [J]."""
    return self.log_probs[[t.place for t in self.targets], [t.choice for t in self.targets]]

  def __str__(self) -> str:
    """One line per target, and the answer."""
    probable = self.quantity != "value"
    lines = []
    for target in self.targets:
      best = ", ".join(f"{name} {number:.1%}" if probable else f"{number:.4g}" for name, number in target.best)
      lines.append(f"{target.where}: {best}")
    return "\n".join([*([f"answer: {self.answer}"] if self.answer else []), *lines])


class Kind(NamedTuple):
  """How predictions of one head are read.

  Attributes:
    log_probs: (logits of one row, size of the vocabulary) -> [P, C].
    targets: (example, log_probs) -> [(place, choice)].
    place: (example, place) -> what is predicted there.
    choice: (example, choice) -> its name.
    kind: (example) -> see `Prediction`.
  """

  log_probs: Callable[[Array, int], Array]
  targets: Callable[[Example, np.ndarray], list[tuple[int, int]]]
  place: Callable[[Example, int], str]
  choice: Callable[[Example, int], str]
  kind: Callable[[Example], str]


@functools.partial(jax.jit, static_argnums=(0, 1))
def log_probs(model: Model, size: int, params: Any, batch: Any) -> Array:
  """The log-probabilities [P, C] of the first row's choices; of a regression, its value [1, 1].

  Args:
    model: a model with a head of `KINDS`.
    size: pieces of the tokenizer: the model's vocabulary may be larger.
    params: its parameters.
    batch: as for `Model.logits`.
  """
  numbers = KINDS[model.config.head.name].log_probs(model.logits(params, batch)[0], size)
  return model.placement.constrain(numbers, (None, None))


def predict(example: Example) -> Prediction | None:
  """What the model predicts for the example; None if its head predicts nothing (`none`, `pooled`).

  Raises UserError for a text of symbols alone, of which nothing is predicted.
  """
  model, head = example.model, example.model.config.head
  if head.name not in KINDS:
    return None
  reading = KINDS[head.name]
  numbers = np.asarray(log_probs(model, example.tokenizer.vocab_size, example.params, example.batch))
  regression = head.name == "sequence_classification" and head.num_labels == 1
  targets = []
  for place, choice in reading.targets(example, numbers):
    best = np.argsort(-numbers[place], kind="stable")[:_SHOWN].tolist()
    best += [] if choice in best else [choice]
    row = numbers[place] if regression else np.exp(numbers[place])
    named = [(reading.choice(example, c), float(row[c])) for c in best]
    targets.append(Target(place, choice, reading.place(example, place), reading.choice(example, choice), named))
  if not targets:
    raise UserError("the text has no token but symbols: there is nothing to predict")
  answer = ""
  if head.name == "question_answering":
    (_, start), (_, end) = reading.targets(example, numbers)
    answer = example.tokenizer.decode(example.ids[""][start : end + 1]).strip()
  quantity = "value" if regression else "log-probability"
  return Prediction(reading.kind(example), quantity, numbers, tuple(targets), answer)


def _token_targets(example: Example, numbers: np.ndarray) -> list[tuple[int, int]]:
  """The likeliest pieces of the masks; the next token; the decoder's targets; or the text's own tokens."""
  if example.model.encoder_decoder:
    return list(enumerate(example.targets.tolist()))
  if not is_masked(example.model):
    return [(len(numbers) - 1, int(numbers[-1].argmax()))]
  ids = example.ids[""]
  if masks := np.flatnonzero(ids == example.tokenizer.mask_id).tolist():
    return [(place, int(numbers[place].argmax())) for place in masks]
  return [(place, int(ids[place])) for place in np.flatnonzero(~example.is_symbol()).tolist()]


def _token_place(example: Example, place: int) -> str:
  """What is predicted at a place of the (decoder's) row."""
  if example.model.encoder_decoder:
    return f"target {place}"
  if not is_masked(example.model):
    return "next token"
  return f"mask at {place}" if example.ids[""][place] == example.tokenizer.mask_id else f"token {place}"


def _token_kind(example: Example) -> str:
  """What a language model does here."""
  if example.model.encoder_decoder:
    return "writes the target"
  if not is_masked(example.model):
    return "continues the text"
  masked = (example.ids[""] == example.tokenizer.mask_id).any()
  return "fills the masks" if masked else "predicts each token in its place (write [MASK] for what it fills in)"


def _class_name(example: Example, choice: int) -> str:
  """The name of a class, or its number."""
  labels = example.model.config.head.labels
  return labels.split("|")[choice] if labels else str(choice)


def _tag_targets(example: Example, numbers: np.ndarray) -> list[tuple[int, int]]:
  """The tags of the tokens, but those outside of all spans (O) unless there are no others."""
  tags = [(place, int(numbers[place].argmax())) for place in np.flatnonzero(~example.is_symbol()).tolist()]
  return [tag for tag in tags if _class_name(example, tag[1]) != "O"] or tags


def _every_token(example: Example, numbers: np.ndarray) -> list[tuple[int, int]]:
  """The likeliest choice for each token that is no symbol."""
  return [(place, int(numbers[place].argmax())) for place in np.flatnonzero(~example.is_symbol()).tolist()]


def _answer_targets(example: Example, numbers: np.ndarray) -> list[tuple[int, int]]:
  """Start and end of the likeliest span, as `Model.predict` chooses it."""
  spans = np.where(np.triu(np.ones((numbers.shape[1],) * 2, bool)), numbers[0][:, None] + numbers[1], -np.inf)
  start, end = divmod(int(np.argmax(spans)), numbers.shape[1])
  return [(0, start), (1, end)]


def _row_log_probs(y: Array, size: int) -> Array:
  """Of a row's classes; the value of a regression."""
  return y[None] if y.shape[-1] == 1 else jax.nn.log_softmax(y)[None]


_token_at = lambda example, place: f"{example.tokens()[place]} ({place})"
_TOKENS = Kind(
  log_probs=lambda y, size: jax.nn.log_softmax(y[:, :size]),
  targets=_token_targets,
  place=_token_place,
  choice=lambda example, choice: example.name(choice),
  kind=_token_kind,
)

KINDS: dict[str, Kind] = {
  "lm": _TOKENS,
  "pretraining": _TOKENS,
  "sequence_classification": Kind(
    log_probs=_row_log_probs,
    targets=lambda example, numbers: [(0, int(numbers[0].argmax()))],
    place=lambda example, place: "value" if example.model.config.head.num_labels == 1 else "class",
    choice=_class_name,
    kind=lambda example: "estimates a value" if example.model.config.head.num_labels == 1 else "classifies the text",
  ),
  "token_classification": Kind(
    log_probs=lambda y, size: jax.nn.log_softmax(y),
    targets=_tag_targets,
    place=_token_at,
    choice=_class_name,
    kind=lambda example: "tags each token",
  ),
  "question_answering": Kind(
    log_probs=lambda y, size: jax.nn.log_softmax(y.T),
    targets=_answer_targets,
    place=lambda example, place: ("start", "end")[place],
    choice=_token_at,
    kind=lambda example: "answers a question",
  ),
  "replaced_token_detection": Kind(
    log_probs=lambda y, size: jnp.stack([jax.nn.log_sigmoid(-y), jax.nn.log_sigmoid(y)], axis=-1),
    targets=_every_token,
    place=_token_at,
    choice=lambda example, choice: ("original", "replaced")[choice],
    kind=lambda example: "finds replaced tokens",
  ),
}
