"""Speculative decoding (Leviathan et al. 2023): a small model drafts tokens, the large one checks them all in one call.

What comes out has the distribution of the large model: a drafted token is kept with probability min(1, p / q), and the
first one that is not is drawn anew from what p has more than q. Greedy decoding gives the same text as without.
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
from tfm_jax.decode.start import any_rows, first, prepared, shown, start
from tfm_jax.errors import UserError
from tfm_jax.models.cache import Cache, KeyValueCache
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import Model
from tfm_jax.text.tokenizers.table import Tokenizer


class Draft(NamedTuple):
  """The model that drafts.

  Attributes:
    model, params: a smaller model of the same kind with the same vocabulary.
    tokens: how many it drafts before they are checked.
  """

  model: Model
  params: Any
  tokens: int = 4


class Round(NamedTuple):
  """The state between two rounds. Both caches hold all tokens but the last one.

  Attributes:
    cache, draft_cache: of the two models.
    last_B: the last token of each row, which neither model has read.
    ids_BS, filled_BS, logprobs_BS, ended_B, padding_B: see `State`.
  """

  cache: Cache
  draft_cache: Cache
  last_B: Array
  ids_BS: Array
  filled_BS: Array
  logprobs_BS: Array
  ended_B: Array
  padding_B: Array


def checked_draft(model: Model, draft: Draft, tokenizer: Tokenizer, theirs: Tokenizer | None) -> Draft:
  """The draft, made ready. Raises UserError if it cannot draft for the model."""
  if theirs is None or theirs.fingerprint != tokenizer.fingerprint:
    raise UserError("the draft has another tokenizer than the model: both must read the same ids")
  if draft.model.encoder_decoder != model.encoder_decoder:
    raise UserError("the draft must be of the same kind as the model: both decoders, or both encoder-decoders")
  for one in (draft.model, model):
    if find_family(one.family).cell:
      raise UserError(
        f"a draft goes back to before a token that is not kept, and the state of family={one.family} cannot: use none"
      )
  if draft.tokens < 1:
    raise UserError(f"draft_tokens={draft.tokens} must be at least 1")
  return draft._replace(model=any_rows(draft.model), params=prepared(draft.model, draft.params))


def steps(
  model: Model, params: Any, draft: Draft, batch: Batch, plan: Plan, options: Options, keys_B: Array, new: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """(ids [B, n], their log-probabilities, ended [B]) of all tokens so far, after each round; n is at most `new`."""
  width = batch.ids_BT.shape[1]
  columns = width + new + draft.tokens + 1
  (state, logits_BV), (other, _) = (
    start(m, p, batch, columns, options.cache_dtype, rolling=False)
    for m, p in ((model, params), (draft.model, draft.params))
  )
  values = numbers(options)
  state = first(model, plan, values, keys_B, state, logits_BV, width)
  texts = (state.ids_BS, state.filled_BS, state.logprobs_BS, state.ended_B, state.padding_B)
  now = Round(state.cache, other.cache, state.ids_BS[:, width], *texts)
  while True:
    ids, logprobs, ended, length = jax.device_get((now.ids_BS, now.logprobs_BS, now.ended_B, now.cache.length))
    done = min(int(length) + 1 - width, new)
    yield ids[:, width : width + done], logprobs[:, width : width + done], ended
    if done == new or ended[: len(batch.prompts)].all():
      return
    now = _round(model, draft.model, draft.tokens, plan, params, draft.params, values, keys_B, now, width)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 9), donate_argnums=8)
def _round(
  model: Model,
  drafting: Model,
  count: int,
  plan: Plan,
  params: Any,
  draft_params: Any,
  values: Numbers,
  keys_B: Array,
  now: Round,
  prompt: int,
) -> Round:
  """Drafts `count` tokens, checks them, and keeps as many as every row has kept, and one more."""
  length, running_B = now.cache.length, ~now.ended_B
  new_S = jnp.arange(now.ids_BS.shape[1]) >= prompt
  tokens = lambda ids_BT, offset: {
    "inputs": ids_BT,
    "positions": (length + offset + jnp.arange(ids_BT.shape[1])[None]) - now.padding_B[:, None],
    "segment_ids": jnp.broadcast_to(running_B[:, None], ids_BT.shape).astype(jnp.int32),
  }
  put = lambda whole, x, column: jax.lax.dynamic_update_slice_in_dim(whole, x[:, None].astype(whole.dtype), column, 1)
  keys = lambda what: jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, length), what))(keys_B)

  def distribution(logits_BV: Array, ids_BS: Array, filled_BS: Array, column: Array) -> Array:
    """The log-probabilities that a token is drawn by: of greedy decoding 0 for the likeliest, -inf for others."""
    filled_BS = filled_BS & (jnp.arange(filled_BS.shape[1])[None] < column)  # drafts may stand after it
    history = History(ids_BS, filled_BS, filled_BS & new_S[None], column)
    logits_BV = choosing.allowed(plan, values, logits_BV, history)
    if "temperature" not in plan.active:
      best_B1 = logits_BV.argmax(-1, keepdims=True)
      return jnp.where(jnp.arange(logits_BV.shape[1])[None] == best_B1, 0.0, choosing.BANNED)
    return jax.nn.log_softmax(choosing.truncated(plan, values, logits_BV / values.temperature))

  drawn = lambda keys_B, logs_BV: jax.vmap(jax.random.categorical)(keys_B, logs_BV).astype(jnp.int32)
  ids_BS, filled_BS, draft_cache, last_B = now.ids_BS, now.filled_BS, now.draft_cache, now.last_B
  drafted, q = [], []
  for i in range(count):
    outputs, draft_cache = drafting.decode(draft_params, tokens(last_B[:, None], i), draft_cache)
    q.append(distribution(outputs["logits"][:, -1], ids_BS, filled_BS, length + 1 + i))
    last_B = drawn(keys(3 * i), q[i])
    drafted.append(last_B)
    ids_BS, filled_BS = put(ids_BS, last_B, length + 1 + i), put(filled_BS, running_B, length + 1 + i)
  # The draft also reads its last token, which it needs if all are kept.
  _, draft_cache = drafting.decode(draft_params, tokens(last_B[:, None], count), draft_cache)

  ids_BT = jnp.stack([now.last_B, *drafted], axis=1)
  outputs, cache = model.decode(params, tokens(ids_BT, 0), now.cache)
  raw_BTV = outputs["logits"]
  p = [distribution(raw_BTV[:, i], ids_BS, filled_BS, length + 1 + i) for i in range(count + 1)]
  at = lambda logs_BV, ids_B: jnp.take_along_axis(logs_BV, ids_B[:, None], 1)[:, 0]
  chance = lambda i: jnp.log(jax.vmap(lambda key: jax.random.uniform(key, minval=1e-38))(keys(3 * i + 1)))
  accepted = [chance(i) < at(p[i], drafted[i]) - at(q[i], drafted[i]) for i in range(count)]
  kept_B = jnp.cumprod(jnp.stack(accepted, axis=1).astype(jnp.int32), axis=1).sum(1)
  kept = jnp.where(running_B, kept_B, count).min()

  # After `kept` tokens each row has one more: its own draft where that was kept too, otherwise one drawn anew.
  more = lambda p, q: jnp.where(p > q, p + jnp.log1p(-jnp.exp(jnp.minimum(q - p, 0.0))), choosing.BANNED)
  rest = [more(p[i], q[i]) for i in range(count)]  # log(p - q)
  anew_BT = jnp.stack([drawn(keys(3 * i + 2), x) for i, x in enumerate([*rest, p[count]])], axis=1)
  drafted_BT = jnp.stack([*drafted, drafted[-1]], axis=1)
  pick = lambda x_BT: jax.lax.dynamic_index_in_dim(x_BT, kept, axis=1, keepdims=False)
  last_B = jnp.where(kept_B > kept, pick(drafted_BT), pick(anew_BT))
  last_B = jnp.where(running_B, last_B, plan.pad)
  ids_BS, filled_BS = put(ids_BS, last_B, length + 1 + kept), put(filled_BS, running_B, length + 1 + kept)
  after = length + 1 + kept  # tokens in both caches
  filled_BS &= jnp.arange(filled_BS.shape[1])[None] <= after

  new_BT = jax.lax.dynamic_slice_in_dim(ids_BS, length + 1, count + 1, axis=1)
  is_new_T = jnp.arange(count + 1)[None] <= kept
  logprobs_BT = jnp.where(is_new_T & running_B[:, None], _logprobs(plan, raw_BTV, new_BT), 0.0)
  logprobs_BS = jax.lax.dynamic_update_slice_in_dim(now.logprobs_BS, logprobs_BT, length + 1, axis=1)
  ended_B = now.ended_B | (_ends(plan, new_BT) & is_new_T).any(1)
  assert isinstance(cache, KeyValueCache) and isinstance(draft_cache, KeyValueCache)
  caches = cache.cut(after), draft_cache.cut(after)
  return shown(model, Round(*caches, last_B, ids_BS, filled_BS, logprobs_BS, ended_B, now.padding_B))


def _logprobs(plan: Plan, logits_BTV: Array, ids_BT: Array) -> Array:
  """The log-probability of each token under the model, [B, T]."""
  chosen = jnp.take_along_axis(logits_BTV, ids_BT[..., None], -1)[..., 0]
  return chosen - jax.nn.logsumexp(logits_BTV[..., : plan.vocab_size], -1)


def _ends(plan: Plan, ids: Array) -> Array:
  """Which ids end a text."""
  return jnp.isin(ids, jnp.array(plan.ends)) if plan.ends else jnp.zeros_like(ids, bool)
