"""What a trained model says about a text: the likeliest pieces for its masks, and the text's perplexity.

Rows are padded to a few lengths, and batches to a few numbers of rows, so that a model is compiled once per shape. The
parameters may be sharded over the devices of several processes: all processes call these functions alike.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.errors import UserError
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import Model
from tfm_jax.text.tokenizers.table import Tokenizer

Arrays = dict[str, np.ndarray]
Guesses = list[tuple[str, float]]

_MASK = "[MASK]"
_ROWS = 32  # rows of a batch, where a text needs many
_SHORTEST = 16  # tokens of a row; shorter texts are padded


def fill_mask(
  model: Model, params: Any, tokenizer: Tokenizer, text: str, top: int = 5
) -> list[list[tuple[str, float]]]:
  """The likeliest pieces for each mask of a text; each is predicted without knowledge of what fills the others.

  Args:
    model: a masked language model.
    params: its parameters.
    tokenizer: its tokenizer.
    text: names its masks "[MASK]", or as the tokenizer does ("<mask>"). The beginning and end symbols are added.
    top: number of pieces per mask.

  Returns:
    One list per mask of (piece, probability), the likeliest first.

  Raises:
    UserError: not a masked language model, no mask in the text, or more tokens than the model has positions.
  """
  if not is_masked(model):
    raise UserError(f"fill_mask needs a masked language model: {_description(model)}")
  if not 1 <= top <= tokenizer.vocab_size:
    raise UserError(f"top={top} is not between 1 and {tokenizer.vocab_size}, the size of the vocabulary")
  ids = with_symbols(tokenizer, masked_ids(tokenizer, text))
  masks = np.flatnonzero(ids == tokenizer.mask_id)
  if not masks.size:
    raise UserError(f"the text has no mask: write {_MASK} where a piece is to be predicted")
  batch = _rows(model, [ids], _length(model, len(ids)))
  batch["mlm_positions"] = _padded([masks], _power_of_two(len(masks)), len(batch["inputs"]))
  probabilities, pieces = jax.device_get(_likeliest(_plain(model), top, tokenizer.vocab_size, params, batch))
  return [
    [(tokenizer.token(int(id)), float(p)) for id, p in zip(pieces[0, mask], probabilities[0, mask], strict=True)]
    for mask in range(len(masks))
  ]


def perplexity(model: Model, params: Any, tokenizer: Tokenizer, text: str, window: int, begin_id: int = -1) -> float:
  """exp of the mean negative log-likelihood per token of a text; the end symbol is not counted.

  Of a causal model: each token given those before it. A text that is longer than `window` is read in windows that
  overlap by half, so that each token (but the first ones) has half a window before it. Of a masked model: the
  pseudo-perplexity (Salazar et al. 2020), each token given all others, as many rows as there are tokens.

  Args:
    model: a language model.
    params: its parameters.
    tokenizer: its tokenizer.
    text: the text.
    window: of a causal model, the tokens of a row: what it was trained on.
    begin_id: of a causal model, the id of the symbol that its texts begin with; the first token is then scored given
      this symbol. -1: texts begin without one, and the first token is only read.

  Raises:
    UserError: an encoder-decoder or another model without such a likelihood, or a text that is too short or too long.
  """
  if window < 2:
    raise UserError(f"window={window} is too short: a window needs at least 2 tokens")
  if is_masked(model):
    return _pseudo_perplexity(model, params, tokenizer, text)
  if not (find_family(model.family).causal and predicts_tokens(model)):
    raise UserError(f"perplexity needs a causal or a masked language model: {_description(model)}")
  ids = tokenizer.encode(text)
  ids = np.concatenate([[begin_id], ids]) if begin_id >= 0 else ids
  if len(ids) < 2:
    raise UserError("the text is too short for a perplexity: nothing is left to predict")
  positions = position_limit(model)
  width = min(len(ids) - 1, window)
  if positions and width > positions:
    raise UserError(f"window={window} is longer than the model's {positions} positions: choose {positions} or less")
  width = min(_length(model, width), window)
  # Each window reads `width` ids, and scores the targets that no earlier window has scored.
  stride = max(width // 2, 1)
  starts = range(0, max(len(ids) - 1 - width, 0) + stride, stride)
  inputs = [ids[:-1][start : start + width] for start in starts]
  targets = [ids[1:][start : start + width] for start in starts]
  total, end = 0.0, 0
  for first in range(0, len(inputs), _ROWS):
    batch = _rows(model, inputs[first : first + _ROWS], width)
    batch["targets"] = _padded(targets[first : first + _ROWS], width, len(batch["inputs"]))
    nll = jax.device_get(_nll(_plain(model), params, batch))
    for row, start in enumerate(starts[first : first + _ROWS]):
      stop = start + len(inputs[first + row])
      total += float(nll[row, end - start : stop - start].sum(dtype=np.float64))
      end = stop
  return math.exp(total / (len(ids) - 1))


def _pseudo_perplexity(model: Model, params: Any, tokenizer: Tokenizer, text: str) -> float:
  """See `perplexity`: one row per token, in which it is masked."""
  tokens = tokenizer.encode(text)
  if not tokens.size:
    raise UserError("the text is empty: it has no perplexity")
  ids = with_symbols(tokenizer, tokens)
  before = 1 if tokenizer.bos_id >= 0 else 0
  width, total = _length(model, len(ids)), 0.0
  for first in range(before, before + len(tokens), _ROWS):
    places = np.arange(first, min(first + _ROWS, before + len(tokens)))
    masked = np.tile(ids, (len(places), 1))
    masked[np.arange(len(places)), places] = tokenizer.mask_id
    batch = _rows(model, list(masked), width)
    batch["mlm_positions"] = _padded(list(places[:, None]), 1, len(batch["inputs"]))
    batch["targets"] = _padded(list(ids[places][:, None]), 1, len(batch["inputs"]))
    nll = jax.device_get(_nll(_plain(model), params, batch))
    total += float(nll[: len(places)].sum(dtype=np.float64))
  return math.exp(total / len(tokens))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _likeliest(model: Model, top: int, vocab_size: int, params: Any, batch: Any) -> tuple[Array, Array]:
  """(probabilities, ids) [B, P, top]. The model's vocabulary may be larger than the tokenizer's."""
  logits = model.logits(params, batch)[..., :vocab_size]
  probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits), top)
  everywhere = (None, None, None)
  return model.placement.constrain(probabilities, everywhere), model.placement.constrain(ids, everywhere)


@functools.partial(jax.jit, static_argnums=0)
def _nll(model: Model, params: Any, batch: Any) -> Array:
  """The negative log-likelihood of each target, [B, T or P]."""
  log_p = jax.nn.log_softmax(model.logits(params, batch))
  nll = -jnp.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
  return model.placement.constrain(nll, (None, None))


def predicts_tokens(model: Model) -> bool:
  """Whether the head predicts pieces of the vocabulary."""
  return HEADS[model.config.head.name].learns_from_objective


def is_masked(model: Model) -> bool:
  """Whether the model predicts masked tokens."""
  family = find_family(model.family)
  return "mlm" in family.objectives and predicts_tokens(model)


def _description(model: Model) -> str:
  """What a model is instead, for an error."""
  if not predicts_tokens(model):
    return f"this one predicts no tokens (head.name={model.config.head.name})"
  kind = "an encoder-decoder" if model.encoder_decoder else "a causal language model"
  return f"family={model.family} is {kind}"


def masked_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """The ids of a text that names its masks."""
  if tokenizer.mask_id < 0:
    raise UserError("the tokenizer has no mask piece")
  name = tokenizer.token(tokenizer.mask_id)
  if tokenizer.reads_names:
    return tokenizer.encode(text.replace(_MASK, name))
  parts = re.split("|".join(map(re.escape, (_MASK, name))), text)
  if tokenizer.kind not in ("char", "byte"):
    # The piece of a word has its space in front: the mask stands for both.
    parts = [part.removesuffix(" ") for part in parts[:-1]] + parts[-1:]
  mask = np.array([tokenizer.mask_id], np.int32)
  first, *others = tokenizer.encode_batch(parts)
  return np.concatenate([first, *(ids for part in others for ids in (mask, part))])


def with_symbols(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
  """The ids between the beginning and the end symbol, as far as the tokenizer has them: a document of objective mlm."""
  symbol = lambda id: np.array([id] if id >= 0 else [], np.int32)
  return np.concatenate([symbol(tokenizer.bos_id), ids, symbol(tokenizer.eos_id)])


def position_limit(model: Model) -> int:
  """The number of positions that have an embedding; 0: any."""
  c = model.config
  return c.max_positions - c.position_offset if c.positions == "learned" else 0


def _length(model: Model, tokens: int) -> int:
  """The length of rows that hold so many tokens. Raises UserError if the model has fewer positions."""
  positions = position_limit(model)
  if positions and tokens > positions:
    raise UserError(f"the text has {tokens} tokens, but the model has {positions} positions: shorten the text")
  length = max(_power_of_two(tokens), _SHORTEST)
  return min(length, positions) if positions else length


def _power_of_two(n: int) -> int:
  """The smallest power of two that is at least n."""
  return 1 << (n - 1).bit_length()


def _rows(model: Model, rows: list[np.ndarray], length: int) -> Arrays:
  """A batch of rows with one document each; several rows are filled up to `_ROWS`, and to a multiple of the shards."""
  count = _ROWS if len(rows) > 1 else 1
  shards = model.placement.batch_shards
  count = -(-count // shards) * shards
  segments = [np.ones(len(row), np.int32) for row in rows]
  return {"inputs": _padded(rows, length, count), "segment_ids": _padded(segments, length, count)}


def _padded(rows: list[np.ndarray], length: int, count: int) -> np.ndarray:
  """int32 [count, length], zero where there is nothing."""
  out = np.zeros((count, length), np.int32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = row
  return out


def _plain(model: Model) -> Model:
  """The model with the attention kernel chosen anew: the rows may be too few or too short for the run's kernel."""
  return dataclasses.replace(model, config=dataclasses.replace(model.config, attention="auto"))
