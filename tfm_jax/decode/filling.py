"""Filling the gaps of a text: the masks of an encoder, or the sentinels of T5."""

import functools
from typing import Any

import jax
import numpy as np
from jax import Array

from tfm_jax.decode.generate import continued
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import Prompt, Symbols, encode_with_gaps, position_limit, power_of_two
from tfm_jax.decode.scoring import batch_of, description, is_masked, padded, predicts_tokens, row_length, with_symbols
from tfm_jax.decode.start import any_rows, prepared
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.text.tokenizers.table import Tokenizer

Guesses = list[tuple[str, float]]
"""(piece, probability), the likeliest first."""

_MASK = "[MASK]"
_PER_GAP = 16  # most tokens that T5 writes for a gap


class Filled(list[Guesses]):
  """The guesses for each gap of a text, in order.

  Attributes:
    text: the text with the likeliest guess in every gap.
  """

  def __init__(self, guesses: list[Guesses], text: str):
    super().__init__(guesses)
    self.text = text


def fill_mask(model: Model, params: Any, tokenizer: Tokenizer, symbols: Symbols, text: str, top: int = 5) -> Filled:
  """What fills the gaps of a text.

  Of a masked language model the likeliest pieces for each mask, predicted without knowledge of what fills the others.
  Of T5 what it writes for each sentinel, greedily and one after the other: one guess, whose probability is that of its
  tokens given those before them.

  Args:
    model: a masked language model, or an encoder-decoder of objective span_corruption.
    params: its parameters.
    tokenizer: its tokenizer.
    symbols: how its texts begin.
    text: names its masks "[MASK]" or as the tokenizer does ("<mask>"), its sentinels "<extra_id_0>" and so on. The
      beginning and end symbols are added.
    top: number of pieces per mask.

  Raises:
    UserError: a model that fills no gaps, no gap in the text, or more tokens than the model has positions.
  """
  if model.encoder_decoder:
    return _fill_sentinels(model, params, tokenizer, symbols, text)
  if not is_masked(model):
    raise UserError(f"fill_mask needs a masked language model: {description(model)}")
  if not 1 <= top <= tokenizer.vocab_size:
    raise UserError(f"top={top} is not between 1 and {tokenizer.vocab_size}, the size of the vocabulary")
  ids = with_symbols(tokenizer, masked_ids(tokenizer, text))
  masks = np.flatnonzero(ids == tokenizer.mask_id)
  if not masks.size:
    raise UserError(f"the text has no mask: write {_MASK} where a piece is to be predicted")
  batch = batch_of(model, [ids], row_length(model, len(ids)), 1)
  batch["mlm_positions"] = padded([masks], power_of_two(len(masks)), len(batch["inputs"]))
  found = jax.device_get(_likeliest(any_rows(model), top, tokenizer.vocab_size, params, batch))
  probabilities, pieces = (x[0, : len(masks)] for x in found)
  ids[masks] = pieces[:, 0]
  name = lambda id: tokenizer.token(int(id))
  guesses = [list(zip(map(name, pieces[i]), probabilities[i].tolist(), strict=True)) for i in range(len(masks))]
  return Filled(guesses, tokenizer.decode(ids))


def masked_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """The ids of a text that names its masks."""
  if tokenizer.mask_id < 0:
    raise UserError("the tokenizer has no mask piece")
  text = text.replace(_MASK, tokenizer.token(tokenizer.mask_id))
  (ids,) = encode_with_gaps(tokenizer, [text], np.array([tokenizer.mask_id]))
  return ids


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _likeliest(model: Model, top: int, vocab_size: int, params: Any, batch: Any) -> tuple[Array, Array]:
  """(probabilities, ids) [B, P, top]. The model's vocabulary may be larger than the tokenizer's."""
  logits = model.logits(params, batch)[..., :vocab_size]
  probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits), top)
  everywhere = (None, None, None)
  return model.placement.constrain(probabilities, everywhere), model.placement.constrain(ids, everywhere)


def _fill_sentinels(model: Model, params: Any, tokenizer: Tokenizer, symbols: Symbols, text: str) -> Filled:
  """`fill_mask` of T5."""
  sentinels = tokenizer.sentinel_ids
  if not predicts_tokens(model) or not sentinels.size:
    raise UserError(
      "fill_mask needs a masked language model, or one of objective span_corruption, such as T5, whose tokenizer has "
      "sentinels"
    )
  (ids,) = encode_with_gaps(tokenizer, [text], sentinels)
  source, room = np.append(ids, tokenizer.eos_id), position_limit(model)
  gaps = [int(id) for id in source if id in sentinels]
  if not gaps:
    raise UserError(f"the text has no gap: write {tokenizer.token(int(sentinels[0]))} where one is")
  if room and len(source) > room:
    raise UserError(f"the text has {len(source)} tokens, but the model has {room} positions: shorten the text")
  prompt = Prompt(0, text, np.array([symbols.start], np.int32), source)
  options = Options(max_new_tokens=_PER_GAP * (len(gaps) + 1))
  ((written,),) = continued(model, prepared(model, params), tokenizer, [prompt], options)
  ids, logprobs = np.array(written.ids, np.int32), np.array(written.logprobs)
  places = np.flatnonzero(np.isin(ids, sentinels))
  found: dict[int, tuple[np.ndarray, float]] = {}
  for part, values in zip(np.split(ids, places)[1:], np.split(logprobs, places)[1:], strict=True):
    kept = (part != tokenizer.eos_id) & (np.arange(len(part)) > 0)  # what stands behind the sentinel
    found.setdefault(int(part[0]), (part[kept], float(np.exp(values[kept].sum(dtype=np.float64)))))
  pieces = [found[id][0] if id in found else [] if id in gaps else [id] for id in source.tolist()]
  guesses = [[(tokenizer.decode(found[id][0]), found[id][1])] if id in found else [] for id in gaps]
  return Filled(guesses, tokenizer.decode([id for piece in pieces for id in piece]))
