"""Filling the gaps of a text: the masks of an encoder, or the sentinels of T5."""

from typing import Any

import numpy as np

from tfm_jax.decode.generate import continued
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import Prompt, Symbols
from tfm_jax.decode.scoring import likeliest_ids, masked_ids, predicts_tokens
from tfm_jax.decode.start import prepared
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.text.tokenizers.table import Tokenizer

_PER_GAP = 16  # most tokens that T5 writes for a gap


def fill(model: Model, params: Any, tokenizer: Tokenizer, symbols: Symbols, text: str, top: int = 5) -> dict[str, Any]:
  """`text` with its gaps filled, and `guesses` for each gap: see `Run.fill`."""
  if not model.encoder_decoder:
    guesses = likeliest_ids(model, params, tokenizer, text, top)
    ids = masked_ids(tokenizer, text)
    ids[ids == tokenizer.mask_id] = [best[0][0] for best in guesses]
    named = [[(tokenizer.token(id), p) for id, p in best] for best in guesses]
    return {"text": tokenizer.decode(ids), "guesses": named}
  if not predicts_tokens(model) or not tokenizer.sentinel_ids.size:
    raise UserError("filling needs a model of objective span_corruption, such as T5, whose tokenizer has sentinels")
  source = tokenizer.encode(text, True)
  gaps = [int(id) for id in source if id in tokenizer.sentinel_ids]
  if not gaps:
    raise UserError(f"the text has no gap: write {tokenizer.token(int(tokenizer.sentinel_ids[0]))} where one is")
  prompt = Prompt(0, text, np.array([symbols.start], np.int32), np.append(source, tokenizer.eos_id))
  options = Options(max_new_tokens=_PER_GAP * (len(gaps) + 1))
  ((written,),) = continued(model, prepared(model, params), tokenizer, [prompt], options)
  parts = np.split(np.array(written.ids), np.flatnonzero(np.isin(written.ids, tokenizer.sentinel_ids)))
  found = {int(part[0]): part[1:] for part in parts[1:]}
  pieces = [found.get(int(id), np.zeros(0, int)) if id in gaps else np.array([id]) for id in source]
  written_in = {tokenizer.token(id): tokenizer.decode(found.get(id, [])) for id in gaps}
  return {"text": tokenizer.decode(np.concatenate(pieces)), "guesses": written_in}
