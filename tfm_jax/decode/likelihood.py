"""The likelihood of texts that follow prompts: of given continuations, and the choice among several."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.decode.prompts import Symbols, check_generates, encoded, position_limit, power_of_two
from tfm_jax.decode.start import any_rows
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.text.tokenizers.table import Tokenizer

_SHORTEST = 16  # tokens of a row; shorter ones are padded


class Likelihood(NamedTuple):
  """How likely a continuation is.

  Attributes:
    logprob: its log-probability given the prompt, in nats.
    ids: its tokens.
    logprobs: of each token.
    likeliest: whether greedy decoding would give it.
    cut: tokens of the prompt that the model did not read, since it has too few positions.
  """

  logprob: float
  ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  likeliest: bool
  cut: int = 0


class Row(NamedTuple):
  """Tokens of the decoder, of which those from `first` on are scored, and of the encoder.

  `cut`: see `Likelihood`. `prefix`: tokens from the first on that a decoder reads in both directions.
  """

  ids: np.ndarray
  first: int
  source: np.ndarray
  cut: int = 0
  prefix: int = 0


def likelihoods(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  symbols: Symbols,
  pairs: Sequence[tuple[str, str]],
  batch_size: int = 16,
  advance: Callable[[int], object] = lambda rows: None,
) -> list[Likelihood]:
  """The likelihood of each continuation given its prompt.

  Of a decoder, prompt and continuation are encoded as one text, and the continuation's tokens are those after the
  prompt's; a prompt that is too long loses its beginning. Of an encoder-decoder, the encoder reads the prompt.

  Args:
    model, params, tokenizer, symbols: see `generate`.
    pairs: (prompt, continuation). After an empty prompt, the first token is only read where texts begin with no symbol.
    batch_size: most rows at once.
    advance: is called with the number of rows that were scored.

  Raises:
    UserError: the model has no such likelihood, a continuation is empty or too long, or a prompt is empty.
  """
  check_generates(model)
  rows = [read_row(model, tokenizer, symbols, *pair, number, len(pairs)) for number, pair in enumerate(pairs)]
  return likelihoods_of(model, params, tokenizer, rows, batch_size, advance)


def likelihoods_of(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  rows: Sequence[Row],
  batch_size: int = 16,
  advance: Callable[[int], object] = lambda rows: None,
) -> list[Likelihood]:
  """`likelihoods` of rows that are already read, in their order."""
  model = any_rows(model)
  found: dict[int, Likelihood] = {}
  rest = sorted(range(len(rows)), key=lambda number: -_length(model, rows[number]))
  while rest:
    length = _length(model, rows[rest[0]])
    batch = [number for number in rest[:batch_size] if _length(model, rows[number]) == length]
    rest = rest[len(batch) :]
    arrays = _arrays(model, [rows[number] for number in batch], length)
    logprobs, greedy = jax.device_get(_score(model, tokenizer.vocab_size, params, arrays))
    for number, values, best in zip(batch, logprobs, greedy, strict=False):
      row = rows[number]
      scored = slice(row.first - 1, len(row.ids) - 1)
      ids = row.ids[row.first :]
      found[number] = Likelihood(
        float(values[scored].sum(dtype=np.float64)),
        tuple(ids.tolist()),
        tuple(values[scored].tolist()),
        bool(best[scored].all()),
        row.cut,
      )
    advance(len(batch))
  return [found[number] for number in range(len(rows))]


def choose(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  symbols: Symbols,
  prompt: str,
  choices: Sequence[str],
  normalised: bool = False,
) -> list[tuple[str, float]]:
  """The given texts with their probabilities among themselves, the likeliest first.

  `normalised`: by the mean log-probability of a byte, which does not favour short texts.
  """
  if not choices:
    raise UserError("there is nothing to choose from: give at least one text")
  found = likelihoods(model, params, tokenizer, symbols, [(prompt, text) for text in choices])
  sizes = [max(len(text.encode()), 1) if normalised else 1 for text in choices]
  scores = np.array([one.logprob / size for one, size in zip(found, sizes, strict=True)])
  shares = np.exp(scores - scores.max())
  order = np.argsort(-scores, kind="stable")
  return [(choices[i], float(shares[i] / shares.sum())) for i in order]


def read_row(
  model: Model, tokenizer: Tokenizer, symbols: Symbols, prompt: str, text: str, number: int = 0, count: int = 1
) -> Row:
  """Prompt and continuation as a decoder or an encoder-decoder reads them.

  `number` of `count` pairs is this one, for errors. Raises UserError.
  """
  names = ("the prompt", "the text") if count == 1 else (f"prompt {number + 1}", f"text {number + 1}")
  return (_two_sides if model.encoder_decoder else _one_side)(model, tokenizer, symbols, prompt, text, *names)


def joined(tokenizer: Tokenizer, prompt: str, text: str) -> tuple[np.ndarray, np.ndarray]:
  """(the ids of the prompt, the ids of both): one text, unless the pieces at the border would differ."""
  before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
  if not np.array_equal(whole[: len(before)], before):
    whole = np.concatenate([before, tokenizer.encode(text)])
  return before, whole


def _one_side(
  model: Model, tokenizer: Tokenizer, symbols: Symbols, prompt: str, text: str, the_prompt: str, the_text: str
) -> Row:
  """Prompt and continuation for a decoder."""
  before, whole = joined(tokenizer, prompt, text)
  begin = np.array([symbols.begin] if symbols.begin >= 0 else [], np.int32)
  ids, first = np.concatenate([begin, whole]), len(begin) + len(before)
  if first == len(ids):
    raise UserError(f"{the_text} is empty: there is nothing to score")
  if not first and len(ids) == 1:
    raise UserError(
      f"{the_text} is one token without a prompt, and the texts of this model begin with no symbol: nothing "
      f"comes before it"
    )
  count, first = len(ids) - first, first or 1
  room = position_limit(model)
  cut = max(len(ids) - 1 - room, 0) if room else 0
  if cut >= first:
    raise UserError(f"{the_text} has {count:,} tokens, but the model has {room:,} positions: shorten it")
  return Row(ids[cut:], first - cut, ids[:0], cut, prefix=first - cut if symbols.prefix else 0)


def _two_sides(
  model: Model, tokenizer: Tokenizer, symbols: Symbols, prompt: str, text: str, the_prompt: str, the_text: str
) -> Row:
  """The prompt for the encoder, the continuation with its end for the decoder."""
  end = np.array([tokenizer.eos_id] if tokenizer.eos_id >= 0 else [], np.int32)
  source, target = encoded(model, tokenizer, [prompt, text])
  target = np.concatenate([target, end])
  if not len(source):
    raise UserError(f"{the_prompt} is empty: the encoder needs at least one token to read before a text is scored")
  source = np.concatenate([[symbols.begin] if symbols.begin >= 0 else [], source, end]).astype(np.int32)
  room = position_limit(model)
  for name, ids in ((the_prompt, source), (the_text, target)):
    if room and len(ids) > room:
      raise UserError(f"{name} has {len(ids):,} tokens, but the model has {room:,} positions: shorten it")
  return Row(np.concatenate([[symbols.start], target]).astype(np.int32), 1, source, 0)


def _length(model: Model, row: Row) -> int:
  """The length of the rows of a batch that this one is part of."""
  longest, room = max(len(row.ids) - 1, len(row.source)), position_limit(model)
  length = max(power_of_two(longest), _SHORTEST)
  return min(length, room) if room else length


def _arrays(model: Model, rows: list[Row], length: int) -> dict[str, np.ndarray]:
  """The batch of the rows, and the targets."""
  shards = model.placement.batch_shards
  count = -(-power_of_two(len(rows)) // shards) * shards
  side = "decoder_" if model.encoder_decoder else ""
  arrays = {f"{side}inputs": [row.ids[:-1] for row in rows], "targets": [row.ids[1:] for row in rows]}
  if model.encoder_decoder:
    arrays["encoder_inputs"] = [row.source for row in rows]
  for name in [name for name in arrays if name.endswith("inputs")]:
    arrays[name.replace("inputs", "segment_ids")] = [np.ones(len(ids), np.int32) for ids in arrays[name]]
  if any(row.prefix for row in rows):
    arrays["prefix"] = [np.ones(row.prefix, np.int32) for row in rows]
  out = {name: np.zeros((count, length), np.int32) for name in arrays}
  for name, values in arrays.items():
    for i, ids in enumerate(values):
      out[name][i, : len(ids)] = ids
  return out


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(model: Model, vocab_size: int, params: Any, batch: dict[str, Array]) -> tuple[Array, Array]:
  """(log-probability of each target, whether it is the likeliest token) [B, T]."""
  targets = batch["targets"]
  logits = model.logits(params, {name: x for name, x in batch.items() if name != "targets"})[..., :vocab_size]
  chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  everywhere = lambda x: model.placement.constrain(x, (None, None))
  return everywhere(chosen - jax.nn.logsumexp(logits, -1)), everywhere(chosen >= logits.max(-1))
