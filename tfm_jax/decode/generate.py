"""Generation with a key-value cache: the prompt in one call, then one token per step of a scan."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tfm_jax.models.cache import Cache
from tfm_jax.models.model import Model


def continue_prompt(
  model: Model,
  params: Any,
  vocab_size: int,
  prompt_BT: jax.Array,
  cache: Cache,
  choose: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """The ids that follow a prompt, as many as the cache has columns left.

  Args:
    model: a decoder or an encoder-decoder.
    params: its parameters.
    vocab_size: ids below it can be chosen.
    prompt_BT: int [B, T], at least one token per row.
    cache: an empty cache of `Model.init_cache`.
    choose: (column, logits [B, vocab_size]) -> ids [B].

  Returns:
    Ids [B, columns - T], of the dtype of the prompt.
  """
  prompt, columns = prompt_BT.shape[1], cache.segments_BS.shape[1]

  def decode(ids: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    outputs, cache = model.decode(params, {"inputs": ids}, cache)
    return outputs["logits"][:, -1, :vocab_size], cache

  def step(carry: tuple[jax.Array, Cache], column: jax.Array) -> tuple[tuple[jax.Array, Cache], jax.Array]:
    ids = choose(column, carry[0]).astype(prompt_BT.dtype)
    return decode(ids[:, None], carry[1]), ids

  _, ids_TB = jax.lax.scan(step, decode(prompt_BT, cache), jnp.arange(prompt, columns))
  return ids_TB.T
