"""What a trained model makes of some text: filled masks, a continuation, or decoded targets, to be read by people.

The parameters may lie on devices of several processes: all of them come here, and each gets the whole result.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfm_jax.models.cache import Cache
from tfm_jax.models.model import Model
from tfm_jax.models.towers import side
from tfm_jax.text.tokenizers import Tokenizer

_SHOWN = 3  # rows, or masks
_CONTEXT = 8  # tokens on either side of a mask


def show(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """Lines about the first rows of a batch, in the way of its objective."""
  first = {name: np.asarray(x[:_SHOWN]) for name, x in batch.items()}
  # So few rows are not for every kernel.
  model = dataclasses.replace(model, config=dataclasses.replace(model.config, attention="auto"))
  if "mlm_positions" in first:
    return _fill_masks(model, params, tokenizer, first)
  if "decoder_inputs" in first:
    return _decode(model, params, tokenizer, first)
  return _continue(model, params, tokenizer, first)


def _fill_masks(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """One mask of each row with its surroundings, what was there, and the three likeliest tokens."""

  def likeliest(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(jax.nn.softmax(_logits(model, params, batch, tokenizer), -1), 3)

  shares, ids = _run(model, likeliest, params, batch)
  lines = ["filled masks (what was there -> the likeliest):"]
  for row in range(len(batch["inputs"])):
    inputs, places = batch["inputs"][row], batch["mlm_positions"][row]
    masked = [j for j in range(len(places)) if batch["weights"][row, j] > 0 and inputs[places[j]] == tokenizer.mask_id]
    for j in masked[len(masked) // 2 :][:1]:
      at = places[j]
      left = tokenizer.decode(inputs[max(at - _CONTEXT, 0) : at])
      right = tokenizer.decode(inputs[at + 1 : at + 1 + _CONTEXT])
      guesses = ", ".join(
        f"{tokenizer.token(int(i))!r} {p:.0%}" for i, p in zip(ids[row, j], shares[row, j], strict=True)
      )
      truth = tokenizer.token(int(batch["targets"][row, j]))
      lines.append(f"  {_line(left)} [MASK] {_line(right)}   {truth!r} -> {guesses}")
  return lines


def _continue(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """A sample, at temperature 0.8, that goes on from the first half of the first row."""
  length = batch["inputs"].shape[1]
  prompt = max(length // 2, 1)

  def sample(params: Any, ids: Any) -> jax.Array:
    def choose(at: jax.Array, logits: jax.Array) -> jax.Array:
      return jax.random.categorical(jax.random.fold_in(jax.random.key(0), at), logits / 0.8)

    made = _go_on(model, params, tokenizer, ids[:, :prompt], model.init_cache(params, 1, length), choose)
    return jnp.concatenate([ids[:, :prompt], made], axis=1)

  made = _run(model, sample, params, batch["inputs"][:1])[0]
  return [
    "a sample (prompt | continuation):",
    f"  {_line(tokenizer.decode(made[:prompt]))} | {_line(tokenizer.decode(made[prompt:]))}",
  ]


def _decode(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """The likeliest target of each row, token after token, for the first segment of the row."""
  rows, length = batch["decoder_inputs"].shape

  def decode(params: Any, batch: Any) -> jax.Array:
    memory = model.encode(params, side(batch, "encoder"))
    cache = model.init_cache(params, rows, length, memory)
    return _go_on(model, params, tokenizer, batch["decoder_inputs"][:, :1], cache, lambda at, x: x.argmax(-1))

  made = _run(model, decode, params, batch)
  lines = ["decoded (input -> wanted | made):"]
  for row in range(len(made)):
    source = batch["encoder_inputs"][row][batch["encoder_segment_ids"][row] == 1]
    wanted = batch["decoder_targets"][row][batch["decoder_segment_ids"][row] == 1]
    answer = made[row, : len(wanted)]
    ended = np.flatnonzero(answer == tokenizer.eos_id)
    answer = answer[: ended[0]] if len(ended) else answer
    texts = (tokenizer.decode(ids) for ids in (source, wanted, answer))
    lines.append("  {} -> {} | {}".format(*(_line(text) for text in texts)))
  return lines


def _go_on(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  prompt_BT: jax.Array,
  cache: Cache,
  choose: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """The ids that follow a prompt until the cache is full: each is choose(its column, logits [B, V])."""
  prompt, columns = prompt_BT.shape[1], cache.segments_BS.shape[1]

  def decode(ids: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    outputs, cache = model.decode(params, {"inputs": ids}, cache)
    return outputs["logits"][:, -1, : tokenizer.vocab_size], cache

  def step(carry: tuple[jax.Array, Cache], at: jax.Array) -> tuple[tuple[jax.Array, Cache], jax.Array]:
    ids = choose(at, carry[0]).astype(prompt_BT.dtype)
    return decode(ids[:, None], carry[1]), ids

  _, ids_TB = jax.lax.scan(step, decode(prompt_BT, cache), jnp.arange(prompt, columns))
  return ids_TB.T


def _logits(model: Model, params: Any, batch: Any, tokenizer: Tokenizer) -> jax.Array:
  """Of the ids that the tokenizer has: the model may have rows for more."""
  return model.logits(params, batch)[..., : tokenizer.vocab_size]


def _run(model: Model, function: Callable[[Any, Any], Any], params: Any, batch: Any) -> Any:
  """function(params, batch), compiled, as numpy arrays in every process."""
  return jax.device_get(jax.jit(function, out_shardings=model.placement.replicated)(params, batch))


def _line(text: str, most: int = 160) -> str:
  """The text on one line, cut."""
  text = " ".join(text.split())
  return text if len(text) <= most else text[: most - 3] + "..."
