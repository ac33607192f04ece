"""How surprising each token of a text is to a model, and what the model expected in its place."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.decode.filling import Guesses, masked_ids
from tfm_jax.decode.likelihood import joined, read_row
from tfm_jax.decode.prompts import Symbols, check_generates, position_limit, power_of_two
from tfm_jax.decode.scoring import batch_of, is_masked, padded, row_length, with_symbols
from tfm_jax.decode.start import any_rows
from tfm_jax.decode.surprisal_page import surprisal_page
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.runtime.reporting.page import frame
from tfm_jax.text.tokenizers.table import Tokenizer

LONGEST = 1024  # tokens: the page has a card for each
_ROWS = 32  # of a batch, where each token needs a row
_CONTEXT = 8  # tokens whose text decides how the next one is written


class Token(NamedTuple):
  """A token of the text, and what the model expected in its place.

  Attributes:
    id: of the vocabulary.
    piece: its name, as in `best`.
    text: what it adds to the text; of a symbol, and of a part of a character, its name.
    symbol: whether it is one, such as the end.
    logprob: its log-probability under the model, in nats.
    rank: 1 for the likeliest token, 2 for the second, and so on.
    entropy: the surprisal that the model expected, in nats.
    best: the likeliest pieces with their probabilities.
  """

  id: int
  piece: str
  text: str
  symbol: bool
  logprob: float
  rank: int
  entropy: float
  best: Guesses

  @property
  def bits(self) -> float:
    """The surprisal, -log2 of the probability."""
    return -self.logprob / math.log(2)


@dataclasses.dataclass(frozen=True, repr=False)
class Surprisal:
  """A text, token by token, as a model saw it come. A notebook shows it as a page.

  Attributes:
    prompt, text: as they were given.
    kind: of the model: "decoder", "encoder-decoder" (which reads the prompt with its encoder) or "masked".
    read: (text, whether it is a symbol) of each token that the model reads in front of the text; of an encoder-decoder
      those that its encoder reads.
    tokens: of the text; of an encoder-decoder with the end symbol.
    following: what a decoder expects after the text, (piece, probability); empty for other models.
    vocab_size: pieces of the tokenizer.
    facts: about the run, by name.
  """

  prompt: str
  text: str
  kind: str
  read: tuple[tuple[str, bool], ...]
  tokens: tuple[Token, ...]
  following: Guesses
  vocab_size: int
  facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def bits(self) -> float:
    """The mean surprisal of a token."""
    return float(np.mean([token.bits for token in self.tokens]))

  def __repr__(self) -> str:
    """In one line."""
    return f"Surprisal({self.text!r}, tokens={len(self.tokens)}, bits={self.bits:.3f} per token)"

  def html(self) -> str:
    """The page: one HTML document that needs no other file."""
    return surprisal_page([self])

  def _repr_html_(self) -> str:
    return frame(self.html(), height=720)


class _Row(NamedTuple):
  """A row of the decoder or the encoder, the places that are looked at, and the token that is expected at each."""

  inputs: np.ndarray
  places: np.ndarray
  targets: np.ndarray


def surprisal(
  model: Model, params: Any, tokenizer: Tokenizer, symbols: Symbols, text: str, prompt: str = "", top: int = 5
) -> Surprisal:
  """The surprisal of each token of a text, after a prompt.

  Of a decoder each token given those before it, of an encoder-decoder also given the prompt, which its encoder reads.
  Of a masked language model each token given all others, masked one at a time (pseudo-likelihood, Salazar et al. 2020).

  Args:
    model, params, tokenizer, symbols: see `generate`; also a masked language model.
    text: the text. Its first token is only read where nothing comes before it.
    prompt: is read, and not scored.
    top: number of likeliest pieces per token.

  Raises:
    UserError: a model that predicts no tokens, a text that is empty or too long, an encoder-decoder without a prompt.
  """
  if not 1 <= top <= tokenizer.vocab_size:
    raise UserError(f"top={top} is not between 1 and {tokenizer.vocab_size}, the size of the vocabulary")
  if is_masked(model):
    ids, first = _masked_text(tokenizer, prompt, text)
    _check_length("text", ids)
    rows = [_masked_row(ids, place, tokenizer.mask_id) for place in range(first, len(ids) - (tokenizer.eos_id >= 0))]
    source, kind = ids[:0], "masked"
  else:
    check_generates(model)
    row = read_row(model, tokenizer, symbols, prompt, text)
    ids, first, source = row.ids, row.first, row.source
    _check_length("text", ids)
    _check_length("prompt", source)
    room = position_limit(model)
    whole = not model.encoder_decoder and not (room and len(ids) > room)  # whether something may follow
    inputs = ids if whole else ids[:-1]
    rows = [_Row(inputs, np.arange(first - 1, len(inputs)), np.append(ids[first:], np.zeros(int(whole), ids.dtype)))]
    kind = "encoder-decoder" if model.encoder_decoder else "decoder"
  scored = ids[first : first + sum(len(row.targets) for row in rows)]
  names = list(_written(tokenizer, ids))
  places = list(_looked_at(model, params, tokenizer, top, rows, source))
  tokens = [
    Token(id, tokenizer.token(id), text_of_token, symbol, *place)
    for id, (text_of_token, symbol), place in zip(scored.tolist(), names[first:], places, strict=False)
  ]
  following = places[-1][-1] if len(places) > len(tokens) else []
  read = _written(tokenizer, source) if model.encoder_decoder else names[:first]
  return Surprisal(prompt, text, kind, tuple(read), tuple(tokens), following, tokenizer.vocab_size)


def _check_length(name: str, ids: np.ndarray) -> None:
  if len(ids) > LONGEST:
    raise UserError(f"the {name} has {len(ids):,} tokens, and a page shows at most {LONGEST:,}: shorten it")


def _masked_text(tokenizer: Tokenizer, prompt: str, text: str) -> tuple[np.ndarray, int]:
  """(the ids of a masked model's row with its symbols, the place of the text's first token). Raises UserError."""
  if tokenizer.mask_id in masked_ids(tokenizer, prompt + text):
    raise UserError("the text has a mask, whose surprisal is that of no word: fill_mask (--fill) completes it")
  before, whole = joined(tokenizer, prompt, text)
  if len(before) == len(whole):
    raise UserError("the text is empty: there is nothing to score")
  return with_symbols(tokenizer, whole), len(before) + (tokenizer.bos_id >= 0)


def _masked_row(ids: np.ndarray, place: int, mask_id: int) -> _Row:
  """The row in which one token is masked."""
  masked = ids.copy()
  masked[place] = mask_id
  return _Row(masked, np.array([place]), ids[place : place + 1])


def _looked_at(
  model: Model, params: Any, tokenizer: Tokenizer, top: int, rows: list[_Row], source: np.ndarray
) -> Iterator[tuple[float, int, float, Guesses]]:
  """(logprob, rank, entropy, best) of each place of each row."""
  side = "decoder_" if model.encoder_decoder else ""
  for start in range(0, len(rows), _ROWS):
    part = rows[start : start + _ROWS]
    count = power_of_two(len(part))
    batch = batch_of(model, [row.inputs for row in part], row_length(model, len(part[0].inputs)), count, side)
    if model.encoder_decoder:
      batch |= batch_of(model, [source], row_length(model, len(source)), count, "encoder_")
    size, width = len(batch[f"{side}inputs"]), power_of_two(len(part[0].places))
    batch[f"{side}mlm_positions"] = padded([row.places for row in part], width, size)
    batch["targets"] = padded([row.targets for row in part], width, size)
    found = jax.device_get(_expected(any_rows(model), tokenizer.vocab_size, top, params, batch))
    for i, row in enumerate(part):
      for j in range(len(row.places)):
        logprob, rank, entropy, probabilities, ids = (x[i, j] for x in found)
        best = [(tokenizer.token(int(id)), float(p)) for id, p in zip(ids, probabilities, strict=True)]
        yield float(logprob), int(rank), float(entropy), best


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _expected(model: Model, vocab_size: int, top: int, params: Any, batch: dict[str, Array]) -> tuple[Array, ...]:
  """(log-probability of the target, its rank, entropy) [B, P], (probabilities, ids of the likeliest) [B, P, top]."""
  targets = batch["targets"]
  logits = model.logits(params, {name: x for name, x in batch.items() if name != "targets"})[..., :vocab_size]
  logprobs = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(logprobs, targets[..., None], -1)
  probabilities = jnp.exp(logprobs)
  best, ids = jax.lax.top_k(probabilities, top)
  entropy = -(probabilities * logprobs).sum(-1)
  found = (chosen[..., 0], (logprobs > chosen).sum(-1) + 1, entropy, best, ids)
  return tuple(model.placement.constrain(x, (None,) * x.ndim) for x in found)


def _written(tokenizer: Tokenizer, ids: np.ndarray) -> Iterator[tuple[str, bool]]:
  """(what a token adds to the text, whether it is a symbol) of each token."""
  symbols = set(tokenizer.special_ids.tolist()) - {tokenizer.unk_id}
  for i, id in enumerate(ids.tolist()):
    start = max(i - _CONTEXT, 0)
    before, whole = tokenizer.decode(ids[start:i]), tokenizer.decode(ids[start : i + 1])
    added = whole[len(before) :] if whole.startswith(before) else ""
    readable = added and (id == tokenizer.unk_id or "\ufffd" not in added)
    yield (tokenizer.token(id), True) if id in symbols or not readable else (added, False)
