"""The start of every generation: parameters made ready, and the prompts read into a cache."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.decode import choosing
from tfm_jax.decode.options import History, Numbers, Plan
from tfm_jax.decode.prompts import Batch
from tfm_jax.errors import UserError
from tfm_jax.models import blocks
from tfm_jax.models.cache import Cache
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import Model
from tfm_jax.models.per_layer import per_layer

_PART = 256  # tokens of a prompt that a model with a window reads at once


class State(NamedTuple):
  """Rows that are being continued.

  Attributes:
    cache: of the tokens that the model has read: of all but the last one that was chosen.
    ids_BS, filled_BS: see `History`.
    logprobs_BS: log-probability of each token generated.
    ended_B: whether the row has ended.
    padding_B: columns in front of the prompt.
  """

  cache: Cache
  ids_BS: Array
  filled_BS: Array
  logprobs_BS: Array
  ended_B: Array
  padding_B: Array


def any_rows(model: Model, context: int = 0) -> Model:
  """The model for rows of any number and length: the attention kernel of training may need more.

  `context`: see `Options`. Raises UserError if the model cannot have it.
  """
  c, window = model.config, model.config.window
  if context:
    recurrent = find_family(model.family).cell is not None
    if model.encoder_decoder or recurrent or c.positions in ("learned", "sinusoidal") or window.size:
      has = "windows of its own" if window.size else "a state" if recurrent else f"{c.positions} positions"
      what = "an encoder-decoder" if model.encoder_decoder else f"a decoder with {has}"
      raise UserError(
        f"context={context} is for decoders whose attention reaches everywhere and knows distances alone (rotary or "
        f"relative positions), and family={model.family} here is {what}: leave context out"
      )
    window = dataclasses.replace(window, size=context - 1)
  scan = c.scan and not _unrolled(model)
  config = dataclasses.replace(c, attention="auto", remat="none", scan=scan, window=window)
  return dataclasses.replace(model, config=config)


def prepared(model: Model, params: Any) -> Any:
  """Parameters for many steps.

  Those that each step multiplies with are in the compute dtype, so that it casts none, and on a single CPU in the form
  that is read fastest.
  """
  params = _cast(model, params)
  return per_layer(params) if _unrolled(model) else params


def _unrolled(model: Model) -> bool:
  """Whether steps read each layer's weights from an array of its own."""
  c = model.config
  return model.placement.lone_cpu and max(c.num_layers, c.decoder_depth) <= blocks.UNROLLED_ON_CPU


def shown(model: Model, state: Any) -> Any:
  """A state (`State`, or one with its names), with what is read after each call on every device of every process."""
  everywhere = lambda x: model.placement.constrain(x, (None,) * x.ndim)
  names = ("ids_BS", "logprobs_BS", "ended_B")
  return state._replace(**{name: everywhere(getattr(state, name)) for name in names})


@functools.partial(jax.jit, static_argnums=0)
def _cast(model: Model, params: Any) -> Any:
  dtype = model.config.compute_dtype

  def cast(path: tuple, w: Array) -> Array:
    axes = model.axes(path)
    if path[-1].key == "router":  # which experts a token uses is decided in float32
      return w
    return w.astype(dtype) if axes.inputs or axes.names[0] == "vocab" else w

  return jax.lax.with_sharding_constraint(jax.tree.map_with_path(cast, params), model.shardings())


def start(
  model: Model, params: Any, batch: Batch, columns: int, cache_dtype: str = "", rolling: bool = True
) -> tuple[State, Array]:
  """The state after the prompts have been read, with room for `columns` tokens per row; and the logits [B, V] after it.

  `rolling`: the cache of a model with a window has no more columns than it needs; see `Cache`.
  """
  return _start(model, columns, cache_dtype, rolling, params, arrays_of(batch))


def arrays_of(batch: Batch) -> dict[str, Any]:
  """What `opened` reads of a batch."""
  arrays = {"ids": batch.ids_BT, "segments": batch.segments_BT}
  if batch.prefix_BT is not None:
    arrays["prefix"] = batch.prefix_BT
  if batch.source_BS is not None:
    assert batch.source_segments_BS is not None
    arrays |= {"source": batch.source_BS, "source_segments": batch.source_segments_BS}
  return arrays


def opened(
  model: Model, columns: int, cache_dtype: str, params: Any, arrays: dict[str, Array]
) -> tuple[Cache, dict[str, Array], Array]:
  """(an empty cache, the prompts as a batch for it, the padding in front of each [B])."""
  ids_BT, segments_BT = arrays["ids"], arrays["segments"]
  B, T = ids_BT.shape
  memory = None
  if "source" in arrays:
    memory = model.encode(params, {"inputs": arrays["source"], "segment_ids": arrays["source_segments"]})
  cache = model.init_cache(params, B, columns, memory, cache_dtype)
  padding_B = T - segments_BT.sum(1)
  positions_BT = jnp.maximum(jnp.arange(T)[None] - padding_B[:, None], 0)
  tokens = {"inputs": ids_BT, "positions": positions_BT, "segment_ids": segments_BT}
  return cache, tokens | ({"prefix": arrays["prefix"]} if "prefix" in arrays else {}), padding_B


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start(
  model: Model, columns: int, cache_dtype: str, rolling: bool, params: Any, arrays: dict[str, Array]
) -> tuple[State, Array]:
  ids_BT, segments_BT = arrays["ids"], arrays["segments"]
  B, T = ids_BT.shape
  rolling = rolling and "prefix" not in arrays  # its tokens see each other, so they are read at once
  part, kept = _cache_shape(model, T, columns) if rolling else (T, columns)
  cache, tokens, padding_B = opened(model, kept, cache_dtype, params, arrays)

  def read(cache: Cache, tokens: dict[str, Array]) -> tuple[Cache, Array]:
    # The head is needed at the last token alone.
    outputs, cache = model.decode(params, {**tokens, "mlm_positions": jnp.full((B, 1), part - 1, jnp.int32)}, cache)
    return cache, outputs["logits"][:, 0]

  parts = {name: jnp.moveaxis(x.reshape(B, T // part, part), 1, 0) for name, x in tokens.items()}
  cache, logits_NBV = jax.lax.scan(read, cache, parts)
  wide = lambda x: jnp.pad(x, ((0, 0), (0, columns - T)))
  logprobs_BS = jnp.zeros((B, columns), jnp.float32)
  return State(cache, wide(ids_BT), wide(segments_BT) > 0, logprobs_BS, padding_B == T, padding_B), logits_NBV[-1]


def extended(plan: Plan, values: Numbers, keys_B: Array, state: State, logits_BV: Array, prompt: int) -> State:
  """The state with one more token in each row that has not ended. `prompt`: columns of the prompt."""
  column = state.cache.length
  is_new_S = jnp.arange(state.ids_BS.shape[1]) >= prompt
  history = History(state.ids_BS, state.filled_BS, state.filled_BS & is_new_S[None], column)
  ids_B = choosing.choose(plan, values, choosing.allowed(plan, values, logits_BV, history), keys_B, column - prompt)
  ids_B = ids_B.astype(jnp.int32)
  logprobs_B = jnp.take_along_axis(logits_BV, ids_B[:, None], 1)[:, 0]
  logprobs_B = logprobs_B - jax.nn.logsumexp(logits_BV[:, : plan.vocab_size], -1)
  running_B = ~state.ended_B
  ids_B = jnp.where(running_B, ids_B, plan.pad)
  put = lambda whole_BS, x_B: jax.lax.dynamic_update_slice_in_dim(whole_BS, x_B[:, None], column, axis=1)
  return state._replace(
    ids_BS=put(state.ids_BS, ids_B),
    filled_BS=put(state.filled_BS, running_B),
    logprobs_BS=put(state.logprobs_BS, jnp.where(running_B, logprobs_B, 0.0)),
    ended_B=state.ended_B | jnp.isin(ids_B, jnp.array(plan.ends)) if plan.ends else state.ended_B,
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def first(
  model: Model, plan: Plan, values: Numbers, keys_B: Array, state: State, logits_BV: Array, prompt: int
) -> State:
  """`extended` by the first token: the model has read all that there is."""
  return shown(model, extended(plan, values, keys_B, state, logits_BV, prompt))


def _cache_shape(model: Model, prompt: int, columns: int) -> tuple[int, int]:
  """(tokens of the prompt that are read at once, columns of the cache).

  Where all layers have a window, the cache needs no more columns than it, and room for the new tokens.
  """
  part = next(n for n in range(min(prompt, _PART), 0, -1) if prompt % n == 0)
  rolling = -(-(model.window + part) // part) * part
  return (part, rolling) if model.window and rolling < columns else (prompt, columns)
