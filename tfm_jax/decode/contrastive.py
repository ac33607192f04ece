"""Contrastive search (Su et al. 2022): the next token is likely, and unlike what the text has already.

Of the k likeliest tokens v, it is the one with the largest (1 - alpha) p(v) - alpha max_j cos(h_v, h_j), where h_v is
the last hidden state of the model after it has read v, and h_j are those of all tokens before, prompt included. The
candidates of a step are rows of one batch. Their caches differ in the last column alone, which is that of the chosen
candidate in all of them afterwards.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.decode import choosing
from tfm_jax.decode.options import History, Numbers, Plan
from tfm_jax.decode.prompts import Batch
from tfm_jax.decode.start import arrays_of, opened, shown
from tfm_jax.models.cache import Cache
from tfm_jax.models.heads.head import Output
from tfm_jax.models.heads.terms import result
from tfm_jax.models.model import Model


class Contrast(NamedTuple):
  """Rows that are being continued. Axes: B rows, K candidates of each, S columns.

  Attributes:
    cache: of the tokens so far, in B * K rows: those of the candidates of a row are equal.
    hidden_BSD: the hidden states of the tokens so far, of length 1, float32.
    logits_BV, ids_BS, filled_BS, logprobs_BS, ended_B, padding_B: see `State`.
  """

  cache: Cache
  hidden_BSD: Array
  logits_BV: Array
  ids_BS: Array
  filled_BS: Array
  logprobs_BS: Array
  ended_B: Array
  padding_B: Array


def start(model: Model, params: Any, batch: Batch, columns: int, candidates: int, cache_dtype: str = "") -> Contrast:
  """The state after the prompts have been read, with room for `columns` tokens per row."""
  return _start(model, columns, candidates, cache_dtype, params, arrays_of(batch))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start(
  model: Model, columns: int, candidates: int, cache_dtype: str, params: Any, arrays: dict[str, Array]
) -> Contrast:
  cache, tokens, padding_B = opened(model, columns, cache_dtype, params, arrays)
  outputs, cache = model.apply_cached(params, tokens, cache)
  output = outputs["logits"]
  B, T = arrays["ids"].shape
  wide = lambda x: jnp.pad(x, ((0, 0), (0, columns - T), *((0, 0),) * (x.ndim - 2)))
  return Contrast(
    cache.repeated(candidates),
    wide(_unit(output.h)),
    _logits(model, output, output.h[:, -1]),
    wide(arrays["ids"]),
    wide(arrays["segments"]) > 0,
    jnp.zeros((B, columns), jnp.float32),
    padding_B == T,
    padding_B,
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 6), donate_argnums=4)
def advance(
  model: Model, plan: Plan, params: Any, values: Numbers, state: Contrast, steps: Array, prompt: int
) -> Contrast:
  """The state after `steps` more tokens, or once all rows have ended. `prompt`: columns of the prompt."""
  (B, S), K = state.ids_BS.shape, plan.candidates
  new_S = jnp.arange(S) >= prompt
  rows = lambda x: jnp.repeat(x, K, axis=0)

  def step(carry: tuple[Array, Contrast]) -> tuple[Array, Contrast]:
    i, state = carry
    column, running_B = state.cache.length, ~state.ended_B
    history = History(state.ids_BS, state.filled_BS, state.filled_BS & new_S[None], column)
    logits_BV = choosing.allowed(plan, values, state.logits_BV, history)
    best_BK, ids_BK = jax.lax.top_k(logits_BV, K)
    tokens = {
      "inputs": ids_BK.reshape(B * K, 1),
      "positions": rows(column - state.padding_B)[:, None],
      "segment_ids": rows(running_B.astype(jnp.int32))[:, None],
    }
    outputs, cache = model.apply_cached(params, tokens, state.cache)
    h_BKD = outputs["logits"].h.reshape(B, K, -1)
    likeness_BKS = jnp.einsum("BKD,BSD->BKS", _unit(h_BKD), state.hidden_BSD, precision="highest")
    nearest_BK = jnp.where(state.filled_BS[:, None], likeness_BKS, -1.0).max(-1)
    p_BK = jnp.exp(best_BK - jax.nn.logsumexp(logits_BV, -1, keepdims=True))
    scores_BK = (1 - values.penalty_alpha) * p_BK - values.penalty_alpha * nearest_BK
    # What must not follow is no candidate, even if there are fewer than K others.
    pick_B1 = jnp.where(best_BK > choosing.BANNED, scores_BK, choosing.BANNED).argmax(-1)[:, None]

    ids_B = jnp.take_along_axis(ids_BK, pick_B1, 1)[:, 0]
    logprobs_B = jnp.take_along_axis(state.logits_BV, ids_B[:, None], 1)[:, 0]
    logprobs_B = logprobs_B - jax.nn.logsumexp(state.logits_BV[:, : plan.vocab_size], -1)
    ids_B = jnp.where(running_B, ids_B, plan.pad)
    h_BD = jnp.take_along_axis(h_BKD, pick_B1[..., None], 1)[:, 0]
    put = lambda whole, x_B: jax.lax.dynamic_update_slice_in_dim(whole, x_B[:, None], column, axis=1)
    return i + 1, Contrast(
      cache.agreed(pick_B1, column),
      put(state.hidden_BSD, _unit(h_BD)),
      _logits(model, outputs["logits"], h_BD),
      put(state.ids_BS, ids_B),
      put(state.filled_BS, running_B),
      put(state.logprobs_BS, jnp.where(running_B, logprobs_B, 0.0)),
      state.ended_B | jnp.isin(ids_B, jnp.array(plan.ends)) if plan.ends else state.ended_B,
      state.padding_B,
    )

  more = lambda carry: (carry[0] < steps) & ~carry[1].ended_B.all()
  return shown(model, jax.lax.while_loop(more, step, (jnp.int32(0), state))[1])


def _logits(model: Model, output: Output, h_BD: Array) -> Array:
  """The logits of the next token after these hidden states, float32 [B, V]."""
  return result(model.placement, output._replace(h=h_BD[:, None]))[:, 0]


def _unit(h: Array) -> Array:
  """Vectors of length 1 in the same directions, float32."""
  h = h.astype(jnp.float32)
  return h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), np.float32(1e-12))
