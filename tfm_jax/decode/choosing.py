"""How the next token is chosen from its logits: penalties and bans, what may be drawn, and the draw.

Every function is pure and takes float32 logits [B, V]. Nothing is sorted: a threshold is found bit by bit, with sums
over the vocabulary, so that a sharded vocabulary needs no gathering and the result does not depend on the mesh.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.decode.options import History, Ids, Numbers, Plan

BANNED = np.float32(-np.inf)


def allowed(plan: Plan, numbers: Numbers, logits_BV: Array, history: History) -> Array:
  """The logits with penalties applied, and -inf for what must not follow."""
  V = logits_BV.shape[-1]
  if plan.vocab_size < V:  # the model's vocabulary may be larger than the tokenizer's
    logits_BV = jnp.where(jnp.arange(V)[None] < plan.vocab_size, logits_BV, BANNED)
  if "repetition_penalty" in plan.active:
    penalty, seen_BV = numbers.repetition_penalty, _counts(history.ids_BS, history.filled_BS, V) > 0
    logits_BV = jnp.where(seen_BV, jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)
  if plan.active & {"presence_penalty", "frequency_penalty"}:
    counts_BV = _counts(history.ids_BS, history.new_BS, V)
    logits_BV = logits_BV - numbers.frequency_penalty * counts_BV.astype(jnp.float32)
    logits_BV = logits_BV - jnp.where(counts_BV > 0, numbers.presence_penalty, 0.0)
  if plan.no_repeat_ngram:
    logits_BV = jnp.where(_repeats(plan.no_repeat_ngram, history, V), BANNED, logits_BV)
  for word in plan.bad_words:
    logits_BV = _without_word(word, history, logits_BV)
  if "min_new_tokens" in plan.active and plan.ends:
    early_B1 = history.new_BS.sum(1, keepdims=True) < numbers.min_new_tokens
    is_end_V = jnp.isin(jnp.arange(V), jnp.array(plan.ends))
    logits_BV = jnp.where(early_B1 & is_end_V[None], BANNED, logits_BV)
  return logits_BV


def choose(plan: Plan, numbers: Numbers, logits_BV: Array, keys_B: Array, step: Array) -> Array:
  """The ids [B] that follow: the likeliest ones, or with a temperature drawn ones.

  Args:
    plan, numbers: of the options.
    logits_BV: from `allowed`.
    keys_B: a random key per row.
    step: number of tokens generated so far: what is drawn depends on the key and on it.
  """
  if "temperature" not in plan.active:
    return logits_BV.argmax(-1)
  kept_BV = truncated(plan, numbers, logits_BV / numbers.temperature)
  draw = lambda key: jax.random.gumbel(jax.random.fold_in(key, step), logits_BV.shape[1:], jnp.float32)
  return (kept_BV + jax.vmap(draw)(keys_B)).argmax(-1)


def truncated(plan: Plan, numbers: Numbers, logits_BV: Array) -> Array:
  """The logits, -inf for tokens that are not drawn by top_k, top_p, min_p and typical_p, applied in this order.

  Tokens as likely as the last one that is kept are kept too.
  """
  if "top_k" in plan.active:
    least_B1 = threshold(logits_BV, jnp.ones_like(logits_BV), numbers.top_k)
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, BANNED)
  if "top_p" in plan.active:
    least_B1 = threshold(logits_BV, jax.nn.softmax(logits_BV), numbers.top_p)
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, BANNED)
  if "min_p" in plan.active:
    least_B1 = logits_BV.max(-1, keepdims=True) + jnp.log(jnp.float32(numbers.min_p))
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, BANNED)
  if "typical_p" in plan.active:
    log_p_BV = jax.nn.log_softmax(logits_BV)
    p_BV = jnp.exp(log_p_BV)
    entropy_B1 = -jnp.where(p_BV > 0, p_BV * log_p_BV, 0.0).sum(-1, keepdims=True)
    nearness_BV = -jnp.abs(log_p_BV + entropy_B1)
    least_B1 = threshold(nearness_BV, p_BV, numbers.typical_p)
    logits_BV = jnp.where(nearness_BV >= least_B1, logits_BV, BANNED)
  return logits_BV


def threshold(scores_BV: Array, weights_BV: Array, need: Array | float) -> Array:
  """The largest score such that the entries with at least this score have the weight `need` together, [B, 1].

  -inf if all of them do not have it. It is found bit by bit: 32 sums over the vocabulary, no sort.
  """
  order_BV = _ordered(scores_BV)

  def narrow(i: Array, found_B1: Array) -> Array:
    tried_B1 = found_B1 | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    weight_B1 = jnp.where(order_BV >= tried_B1, weights_BV, 0.0).sum(-1, keepdims=True)
    return jnp.where(weight_B1 >= need, tried_B1, found_B1)

  zeros_B1 = jnp.zeros((scores_BV.shape[0], 1), jnp.uint32)
  found_B1 = jax.lax.fori_loop(0, 32, narrow, zeros_B1)
  kept_BV = order_BV >= found_B1
  return jnp.where(kept_BV, scores_BV, np.float32(np.inf)).min(-1, keepdims=True)


def _ordered(x: Array) -> Array:
  """uint32 that are ordered as the float32 x."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  negative = bits >> 31 == 1
  return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _counts(ids_BS: Array, counted_BS: Array, V: int) -> Array:
  """How often each id occurs in the columns that count, int32 [B, V]."""
  count = lambda ids, counted: jnp.zeros(V, jnp.int32).at[ids].add(counted.astype(jnp.int32))
  return jax.vmap(count)(ids_BS, counted_BS)


def _repeats(n: int, history: History, V: int) -> Array:
  """Whether an id would end n tokens in a row that the text has already, [B, V]."""
  ids_BS, S = history.ids_BS, history.ids_BS.shape[1]
  if n > S:
    return jnp.zeros((len(ids_BS), V), bool)
  starts = S - n + 1
  same = history.filled_BS[:, :starts] & (jnp.arange(starts)[None] + n <= history.length)
  for i in range(n - 1):
    column = jnp.maximum(history.length - (n - 1) + i, 0)
    last_B1 = jax.lax.dynamic_slice_in_dim(ids_BS, column, 1, axis=1)
    there_B1 = jax.lax.dynamic_slice_in_dim(history.filled_BS, column, 1, axis=1)
    same &= (ids_BS[:, i : i + starts] == last_B1) & there_B1 & (history.length >= n)
  return _counts(ids_BS[:, n - 1 :], same, V) > 0


def _without_word(word: Ids, history: History, logits_BV: Array) -> Array:
  """The logits with the last id of a sequence banned where the others stand at the end of the text."""
  *before, last = word
  matches_B1 = jnp.ones((len(logits_BV), 1), bool)
  for i, id in enumerate(before):
    column = history.length - len(before) + i
    place = jnp.maximum(column, 0)
    here_B1 = jax.lax.dynamic_slice_in_dim(history.ids_BS, place, 1, axis=1)
    there_B1 = jax.lax.dynamic_slice_in_dim(history.filled_BS, place, 1, axis=1)
    matches_B1 &= (here_B1 == id) & there_B1 & (column >= 0)
  is_last_V = jnp.arange(logits_BV.shape[1]) == last
  return jnp.where(matches_B1 & is_last_V[None], BANNED, logits_BV)


def row_keys(seed: int, prompts: list[np.ndarray], samples: list[int]) -> Array:
  """A random key per row, of the seed, the prompt's ids and the number of the sample alone."""
  words = []
  for ids, sample in zip(prompts, samples, strict=True):
    generator = np.random.SeedSequence([seed, sample, *(int(id) for id in ids)])
    words.append(generator.generate_state(2, np.uint32))
  return jax.random.wrap_key_data(jnp.asarray(np.stack(words)), impl="threefry2x32")

