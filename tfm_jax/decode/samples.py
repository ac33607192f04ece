"""What a trained model does with some text, as lines to read: filled masks, a continuation, or decoded targets.

The parameters may lie on devices of several processes: all of them call `show`, and each gets the whole result.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tfm_jax.decode.generate import continue_prompt
from tfm_jax.models.model import Model
from tfm_jax.models.towers import side
from tfm_jax.text.tokenizers.table import Tokenizer

_ROWS = 3  # of the batch
_CONTEXT = 8  # tokens on either side of a mask
_TEMPERATURE = 0.8


def show(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """Lines about the first rows of a batch, whose fields say what the objective is."""
  first = {name: np.asarray(x[:_ROWS]) for name, x in batch.items()}
  # The kernel that the configuration names may not take so few rows.
  model = dataclasses.replace(model, config=dataclasses.replace(model.config, attention="auto"))
  if "mlm_positions" in first:
    return _fill_masks(model, params, tokenizer, first)
  if "decoder_inputs" in first:
    return _decode(model, params, tokenizer, first)
  return _continue(model, params, tokenizer, first)


def _fill_masks(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """One mask of each row with its surroundings, the masked piece, and the three likeliest ones."""

  def likeliest(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    logits = model.logits(params, batch)[..., : tokenizer.vocab_size]  # the model's vocabulary may be larger
    return jax.lax.top_k(jax.nn.softmax(logits), 3)

  probabilities, ids = _run(model, likeliest, params, batch)
  lines = ["filled masks (the masked piece -> the likeliest pieces):"]
  for row in range(len(batch["inputs"])):
    inputs, places = batch["inputs"][row], batch["mlm_positions"][row]
    masked = [j for j in range(len(places)) if batch["weights"][row, j] > 0 and inputs[places[j]] == tokenizer.mask_id]
    for j in masked[len(masked) // 2 :][:1]:
      place = places[j]
      left = _text(tokenizer, inputs[max(place - _CONTEXT, 0) : place])
      right = _text(tokenizer, inputs[place + 1 : place + 1 + _CONTEXT])
      guesses = ", ".join(
        f"{tokenizer.token(int(id))!r} {p:.0%}" for id, p in zip(ids[row, j], probabilities[row, j], strict=True)
      )
      target = tokenizer.token(int(batch["targets"][row, j]))
      lines.append(f"  {left} [MASK] {right}   {target!r} -> {guesses}")
  return lines


def _continue(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """A sample that continues the first half of the first row."""
  length = batch["inputs"].shape[1]
  prompt = max(length // 2, 1)

  def sample(params: Any, ids: Any) -> jax.Array:
    def choose(column: jax.Array, logits: jax.Array) -> jax.Array:
      return jax.random.categorical(jax.random.fold_in(jax.random.key(0), column), logits / _TEMPERATURE)

    cache = model.init_cache(params, 1, length)
    return continue_prompt(model, params, tokenizer.vocab_size, ids[:, :prompt], cache, choose)

  inputs = batch["inputs"][:1]
  continuation = _run(model, sample, params, inputs)[0]
  return [
    f"a sample at temperature {_TEMPERATURE} (prompt | continuation):",
    f"  {_text(tokenizer, inputs[0, :prompt])} | {_text(tokenizer, continuation)}",
  ]


def _decode(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """The likeliest target of each row, one token after the other, for the first segment of the row."""
  rows, length = batch["decoder_inputs"].shape

  def decode(params: Any, batch: Any) -> jax.Array:
    memory = model.encode(params, side(batch, "encoder"))
    cache = model.init_cache(params, rows, length, memory)
    start = batch["decoder_inputs"][:, :1]
    return continue_prompt(model, params, tokenizer.vocab_size, start, cache, lambda column, logits: logits.argmax(-1))

  decoded = _run(model, decode, params, batch)
  lines = ["decoded (input -> target | what the model decodes):"]
  for row in range(len(decoded)):
    source = batch["encoder_inputs"][row][batch["encoder_segment_ids"][row] == 1]
    target = batch["decoder_targets"][row][batch["decoder_segment_ids"][row] == 1]
    answer = decoded[row, : len(target)]
    ends = np.flatnonzero(answer == tokenizer.eos_id)
    answer = answer[: ends[0]] if len(ends) else answer
    lines.append("  {} -> {} | {}".format(*(_text(tokenizer, ids) for ids in (source, target, answer))))
  return lines


def _run(model: Model, function: Callable[[Any, Any], Any], params: Any, batch: Any) -> Any:
  """function(params, batch), compiled, as numpy arrays in every process."""
  return jax.device_get(jax.jit(function, out_shardings=model.placement.replicated)(params, batch))


def _text(tokenizer: Tokenizer, ids: np.ndarray, most: int = 160) -> str:
  """The text of ids on one line, cut; of the special ids the sentinels are shown."""
  first, *others = np.split(ids, np.flatnonzero(np.isin(ids, tokenizer.sentinel_ids)))
  parts = [tokenizer.decode(first), *(f"{tokenizer.token(int(x[0]))} {tokenizer.decode(x[1:])}" for x in others)]
  text = " ".join(" ".join(parts).split())
  text = "".join(c if c.isprintable() else "\ufffd" for c in text)  # the log stays text
  return text if len(text) <= most else text[: most - 3] + "..."
