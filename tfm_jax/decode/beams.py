"""Beam search, with diverse groups (Vijayakumar et al. 2018), as one compiled loop.

What is kept and when it ends are as in transformers: of the best 2 K continuations of K beams, those that end join the
K best finished texts if they are among the best K, and the others go on. A prompt is done once its best running beam,
at its present length, is worse than its worst finished text, or when no more tokens may follow.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.decode import choosing
from tfm_jax.decode.options import History, Numbers, Options, Plan, numbers
from tfm_jax.decode.prompts import Batch
from tfm_jax.decode.start import start
from tfm_jax.models.cache import Cache
from tfm_jax.models.model import Model

WORST = np.float32(-1e9)  # score of what does not exist


class Texts(NamedTuple):
  """Candidates of each group. Axes: B prompts, G groups, K beams of a group, S columns.

  Attributes:
    scores: sums of log-probabilities of running beams, length-normalised ones of finished texts, float32 [B, G, K].
    ids, filled, logprobs: of all columns, [B, G, K, S]; see `State`.
    ended: whether the text is finished, [B, G, K].
  """

  scores: Array
  ids: Array
  filled: Array
  logprobs: Array
  ended: Array


class Search(NamedTuple):
  """The state of a search: `open_BG` says for which prompts finished texts may still become better."""

  cache: Cache
  logits_RV: Array
  running: Texts
  finished: Texts
  open_BG: Array


def search(
  model: Model, params: Any, batch: Batch, new: int, options: Options, plan: Plan
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The best beams of each prompt, the best first: ids [K, new] and their log-probabilities.

  Args:
    model, params: see `generate`.
    batch: the prompts.
    new: most tokens that follow.
    options, plan: see `generate.step_plan`.
  """
  width = batch.ids_BT.shape[1]
  state, logits_BV = start(model, params, batch, width + new, options.cache_dtype)
  shape = (options.beam_groups, options.beams // options.beam_groups)
  weights = (np.float32(options.length_penalty), np.float32(options.diversity))
  first = (state.cache, logits_BV, state.ids_BS, state.filled_BS, state.padding_B)
  found = jax.device_get(_search(model, plan, shape, width, params, numbers(options), weights, *first))
  for scores, ids, logprobs in zip(found.scores, found.ids, found.logprobs, strict=True):
    ranked = np.argsort(-scores.reshape(-1), kind="stable")
    columns = lambda x, order=ranked: x.reshape(-1, x.shape[-1])[order, width:]
    yield columns(ids), columns(logprobs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _search(
  model: Model,
  plan: Plan,
  shape: tuple[int, int],
  prompt: int,
  params: Any,
  values: Numbers,
  weights: tuple[Array, Array],
  cache: Cache,
  logits_BV: Array,
  ids_BS: Array,
  filled_BS: Array,
  padding_B: Array,
) -> Texts:
  """The finished texts of every prompt, sorted within each group."""
  (B, S), (G, K) = ids_BS.shape, shape
  most, (length_penalty, diversity) = S - prompt, weights
  new_S, known_1V = jnp.arange(S) >= prompt, jnp.arange(logits_BV.shape[1])[None] < plan.vocab_size
  spread = lambda x: jnp.broadcast_to(x[:, None, None], (B, G, K, *x.shape[1:]))
  rows = lambda x: x.reshape(B * G * K, *x.shape[3:])
  texts = Texts(
    jnp.broadcast_to(jnp.where(jnp.arange(K) == 0, 0.0, WORST), (B, G, K)),  # at first all beams are equal
    spread(ids_BS),
    spread(filled_BS),
    jnp.zeros((B, G, K, S), jnp.float32),
    jnp.zeros((B, G, K), bool),
  )
  none = texts._replace(scores=jnp.full((B, G, K), WORST))
  every = jnp.repeat(logits_BV, G * K, axis=0)
  real_BG = jnp.broadcast_to((padding_B < prompt)[:, None], (B, G))  # rows that fill up the batch have no prompt
  begin = Search(cache.repeated(G * K), every, texts, none, real_BG)
  padding_R1 = rows(spread(padding_B))[:, None]

  def step(state: Search) -> Search:
    running, column = state.running, state.cache.length
    history = History(rows(running.ids), rows(running.filled), rows(running.filled) & new_S[None], column)
    raw_RV = jax.nn.log_softmax(jnp.where(known_1V, state.logits_RV, choosing.BANNED))
    scores_RV = choosing.allowed(plan, values, raw_RV, history)
    parents, ids, scores = _candidates(scores_RV.reshape(B, G, K, -1), running.scores, diversity)
    raw = raw_RV.reshape(B, G, -1)
    logprobs = jnp.take_along_axis(raw, parents * logits_BV.shape[1] + ids, axis=2)
    length = column + 1 - prompt
    candidates = _extended(running, parents, ids, scores, logprobs, column)
    ends = jnp.isin(ids, jnp.array(plan.ends)) if plan.ends else jnp.zeros_like(ids, bool)
    ended = ends | (length >= most)

    going_on = candidates._replace(scores=scores + jnp.where(ended, WORST, 0.0))
    following, places = _best(going_on, K)
    # Only the best K of the candidates can be finished: the others are there so that K can go on.
    counted = ended & (jnp.arange(ids.shape[2]) < K)[None, None] & state.open_BG[:, :, None]
    ranks = jnp.where(counted, scores / length.astype(jnp.float32) ** length_penalty, WORST)
    closing = candidates._replace(scores=ranks, ended=counted)
    finished, _ = _best(jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=2), state.finished, closing), K)

    best_BG = following.scores[:, :, 0] / length.astype(jnp.float32) ** length_penalty
    worst_BG = jnp.where(finished.ended.all(2), finished.scores.min(2), WORST)
    chosen_R1 = rows(jax.lax.dynamic_slice_in_dim(following.ids, column, 1, axis=3))
    cache = _reordered(state.cache, jnp.take_along_axis(parents, places, axis=2), shape)
    tokens = {"inputs": chosen_R1, "positions": column - padding_R1}
    outputs, cache = model.decode(params, tokens, cache)
    return Search(cache, outputs["logits"][:, -1], following, finished, state.open_BG & (best_BG > worst_BG))

  # A search whose beams have all ended has nothing to go on with.
  more = lambda state: (state.cache.length < S) & (state.open_BG & (state.running.scores[:, :, 0] > WORST / 2)).any()
  return jax.lax.while_loop(more, step, begin).finished


def _candidates(scores: Array, running: Array, diversity: Array) -> tuple[Array, Array, Array]:
  """(parents, ids, scores) [B, G, C] of the best continuations of each group, of log-probabilities [B, G, K, V].

  Each group pays for every beam of an earlier group that has chosen the same token at this step.
  """
  B, G, K, V = scores.shape
  taken_BV = jnp.zeros((B, V), jnp.float32)
  found = []
  for group in range(G):
    total = scores[:, group] + running[:, group, :, None] - diversity * taken_BV[:, None]
    best, places = jax.lax.top_k(total.reshape(B, K * V), min(2 * K, K * V))
    ids = places % V
    found.append((places // V, ids, best))
    if G > 1:
      taken_BV = taken_BV + jax.vmap(lambda ids, V=V: jnp.zeros(V).at[ids].add(1.0))(ids[:, :K])
  parents, ids, best = (jnp.stack(x, axis=1) for x in zip(*found, strict=True))
  return parents.astype(jnp.int32), ids.astype(jnp.int32), best


def _extended(running: Texts, parents: Array, ids: Array, scores: Array, logprobs: Array, column: Array) -> Texts:
  """The candidates: their parents with one more column."""
  taken = lambda x: jnp.take_along_axis(x, parents[..., None], axis=2)
  put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(taken(x), new[..., None].astype(x.dtype), column, axis=3)
  exists = jnp.ones_like(ids, bool)
  return Texts(scores, put(running.ids, ids), put(running.filled, exists), put(running.logprobs, logprobs), ~exists)


def _best(texts: Texts, count: int) -> tuple[Texts, Array]:
  """The best texts of each group by score, the best first, and their places."""
  _, places = jax.lax.top_k(texts.scores, count)
  pick = lambda x: jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 3)), axis=2)
  return Texts(*map(pick, texts)), places


def _reordered(cache: Cache, parents: Array, shape: tuple[int, int]) -> Cache:
  """The cache whose rows continue those of their parents. What is known of the prompt is equal in all of them."""
  (G, K), B = shape, parents.shape[0]

  def moved(own: Any) -> Any:
    def move(x: Array) -> Array:
      grouped = x.reshape(x.shape[0], B, G, K, *x.shape[2:])
      pick = jax.vmap(jax.vmap(lambda rows, index: rows[index]))
      return jax.vmap(lambda layer: pick(layer, parents))(grouped).reshape(x.shape)

    return jax.tree.map(move, own)

  same = (parents == jnp.arange(K)[None, None]).all()
  return cache._replace(own=jax.lax.cond(same, lambda own: own, moved, cache.own))
