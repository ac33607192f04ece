"""`tower`: a stack of blocks or of recurrent layers, with its masks and final norm; `Tower`, the same as a module."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.blocks import HIDDEN, LAST, STANDARD, Sublayers, stack
from tfm_jax.models.cache import Cache, KeyValueCache, Memory, States
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.layers import FINAL, STREAM, WHOLE, Context, Layer, Norm
from tfm_jax.models.recurrent import recurrent_tower
from tfm_jax.models.residual import ORDERS
from tfm_jax.models.sight import Sight, make_sight, stream_order
from tfm_jax.models.stages import staged
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.positions import alibi_bias, alibi_slopes, by_distance, relative_bias
from tfm_jax.sharding import pipeline
from tfm_jax.sharding.order import NATURAL, ZIGZAG, context_size, zigzag, zigzag_places
from tfm_jax.sharding.placement import Placement

Towered = tuple[Array, Cache | None, Array | None, Array | None]  # see `tower`


class RelativeBias(Layer):
  """T5's learned bias of the attention logits by distance: one table for all blocks of a stack."""

  @nn.compact
  def __call__(self, queries: int, keys: int, bidirectional: bool, offset: int | Array) -> Array:
    c = self.cfg
    table = self.matrix("table", (c.relative.buckets, c.num_heads), kind="relative")
    return relative_bias(table, queries, keys, bidirectional, c.relative.distance, offset)


def tower(
  c: ModelConfig,
  st: Placement,
  x_BTD: Array,
  segments_BT: Array | None,
  positions_BT: Array | None,
  noise: Noise | None,
  *,
  causal: bool,
  depth: int,
  prefix_BT: Array | None = None,
  first: int = 0,
  memory: Memory | None = None,
  cache: Cache | None = None,
  sublayers: Sublayers = STANDARD,
  emit: str = "",
) -> Towered:
  """A stack of blocks over embeddings, with its masks and, where sub-layers have a norm before them, a final one; or of
  recurrent layers.

  Call it in a compact module: the parameters belong to that module.

  Args:
    c, st: see `Layer`.
    x_BTD: the embeddings.
    segments_BT, positions_BT: of the tokens; None: a single segment, positions 0, 1, ...
    noise: of dropout; None: no dropout.
    causal: a query attends only to itself and to earlier tokens.
    depth: number of blocks.
    prefix_BT: 1 for tokens that earlier ones of this call see too, although the stack is causal; None: no token.
    first: index of the first block, so that two stacks have different dropout.
    memory: the encoder's output, for cross-attention; not needed if the cache holds its keys and values.
    cache: of the tokens before these.
    sublayers, emit: see `Block`; LAST: the hidden states themselves.

  Returns:
    The hidden states; the cache with the new tokens, or None; what `emit` names, as `Network.inspect` returns it; what
    the experts did, as `heads.head.ROUTING` says, or None.
  """
  if sublayers.cell is not None:
    assert not isinstance(cache, KeyValueCache)
    kind: Any = {"cell": sublayers.cell, "causal": causal, "depth": depth, "first": first, "memory": memory}
    return *recurrent_tower(c, st, x_BTD, segments_BT, noise, **kind, cache=cache, emit=emit), None
  assert not isinstance(cache, States)
  (B, T), start = x_BTD.shape[:2], None
  S, key_segments, kept = T, segments_BT, None
  memory_length, memory_segments = (memory.h_BSD.shape[1], memory.segments_BS) if memory else (0, None)
  if cache is not None:
    segments_BT = jnp.broadcast_to(1 if segments_BT is None else segments_BT, (B, T)).astype(jnp.int32)
    cache = cache.with_segments(segments_BT)
    start, kept = cache.start, cache.kept
    S, key_segments, memory_segments = cache.columns, cache.segments_BS, cache.memory_segments_BS
    memory_length = cache.across.k.shape[3] if cache.across else memory_length
  offset = 0 if cache is None else cache.length
  keys_offset = 0 if cache is None else (cache.places(T) - jnp.arange(S))[None]
  kind = {"training": noise is not None, "cached": cache is not None}
  segments: Any = {"query_segments_BT": segments_BT, "key_segments_BS": key_segments}
  if cache is not None and prefix_BT is not None:  # keys that the cache has already are earlier ones
    start_S = jnp.zeros((B, S), prefix_BT.dtype)
    prefix_BT = jax.lax.dynamic_update_slice_in_dim(start_S, prefix_BT, cache.start, axis=1)
  mask = Mask(causal, **segments, query_offset=offset, key_offset=keys_offset, prefix_BS=prefix_BT)
  order = stream_order(c, st, B, T, memory_length, causal) if cache is None else NATURAL
  own, across = make_sight(c, st, mask, (B, T, S), window=c.window.size, orders=(order, order), **kind), None
  if T:  # no tokens are decoded when a cache is created
    own = with_bias(c, st, own, (T, S), not causal, offset, keys_offset)
  if memory_length:
    if segments_BT is None and memory_segments is not None:  # a single segment, which does not see padding
      segments_BT = jnp.ones((B, T), jnp.int32)
    mask = Mask(query_segments_BT=segments_BT, key_segments_BS=memory_segments)
    across = make_sight(c, st, mask, (B, T, memory_length), orders=(order, NATURAL), **kind)
  if order == ZIGZAG:
    x_BTD = zigzagged(st, x_BTD)
    segments_BT, positions_BT = (x if x is None else zigzagged(st, x) for x in (segments_BT, positions_BT))
    noise = noise and noise._replace(places_T=zigzag_places(context_size(st), T))
  ctx = Context(own, across, positions_BT, memory and memory.h_BSD, start, noise, segments_BT)
  fields: Any = {"cross": across is not None, "sublayers": sublayers, "emit": emit}
  # A pipeline has no cache and shows nothing, and needs a row for each stage. Otherwise the scan gathers the layers.
  plan = pipeline.schedule(st, B) if kept is None and emit in ("", LAST) else None
  if plan is None:
    h_BTD, (new, shown, routed) = stack(c, st, x_BTD, ctx.prepared(), depth, first, kept, **fields)
  else:
    h_BTD, (new, shown, routed) = staged(c, st, plan, x_BTD, ctx, first, **fields)
  if ORDERS[c.norm_order].before:
    h_BTD = Norm(c, st, name="final_norm")(h_BTD)
  if c.inner_dropout:
    h_BTD = dropout(h_BTD, c.dropout, noise, first + depth, FINAL)
  h_BTD = st.gather(h_BTD, STREAM, WHOLE)
  if emit == HIDDEN:
    assert shown is not None
    shown = jnp.concatenate([x_BTD[None], shown[:-1], h_BTD[None]])
  elif emit == LAST:
    shown = h_BTD
  routing = None
  if routed is not None:
    tokens = jnp.float32(B * T) if segments_BT is None else (segments_BT != 0).sum(dtype=jnp.float32)
    if segments_BT is not None and segments_BT.shape[0] != B:
      tokens = tokens * B
    routing = jnp.stack([*(x_NB.sum(1) for x_NB in routed), jnp.broadcast_to(tokens, (depth,))])
  if order == ZIGZAG:
    h_BTD, shown = zigzagged(st, h_BTD, back=True), shown if shown is None else zigzagged(st, shown, back=True)
  return h_BTD, cache.with_tokens(new, st) if cache and new else None, shown, routing


def with_bias(
  c: ModelConfig,
  st: Placement,
  sight: Sight,
  lengths: tuple[int, int],
  bidirectional: bool,
  offset: int | Array,
  keys_offset: Array | int,
) -> Sight:
  """The sight with the bias of its logits, of a model that has one, in the form that its kernel reads.

  `lengths`: T and S; `offset`, `keys_offset`: places of the first query and key, as in `Mask`.
  """
  (T, S), shared = lengths, sight.kernel.by_distance
  bias = None
  if c.positions == "relative":
    bias = RelativeBias(c, st, name="relative")(T, S, bidirectional, -offset)
    bias = bias if shared else by_distance(bias, T, S)
  elif c.positions == "alibi" and shared:
    bias = jnp.abs(jnp.arange(T + S, dtype=jnp.float32) - (T - 1))[None] * -alibi_slopes(c.num_heads)[:, None]
  elif c.positions == "alibi":
    bias = alibi_bias(c.num_heads, offset + jnp.arange(T), jnp.arange(S) + jnp.ravel(keys_offset))
    bias = st.constrain(bias, ("act_heads", "seq", None))
  return dataclasses.replace(sight, bias_HTS=bias)


def zigzagged(st: Placement, x: Array, back: bool = False) -> Array:
  """Tokens in the order `ZIGZAG`, or `back`: ids [B or 1, T], the stream [B, T, D] or that of all layers."""
  axes = {2: ("batch", "seq"), 3: ("batch", "seq", "act_embed"), 4: (None, "batch", "seq", "act_embed")}[x.ndim]
  one = x.shape[axes.index("batch")] % st.batch_shards
  return zigzag(st, x, tuple(None if axis == "batch" and one else axis for axis in axes), back)


class Tower(Layer):
  """`tower` as a module: the encoder or the decoder of an encoder-decoder."""

  causal: bool = False
  depth: int = 0
  first: int = 0
  sublayers: Sublayers = STANDARD

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    segments_BT: Array | None,
    positions_BT: Array | None,
    noise: Noise | None,
    memory: Memory | None = None,
    cache: Cache | None = None,
    emit: str = "",
  ) -> Towered:
    x_BTD = self.placed(x_BTD, segments_BT, positions_BT, noise)
    kind: Any = {"causal": self.causal, "depth": self.depth, "first": self.first, "memory": memory, "cache": cache}
    kind |= {"sublayers": self.sublayers, "emit": emit}
    return tower(self.cfg, self.st, x_BTD, segments_BT, positions_BT, noise, **kind)

  @nn.nowrap
  def placed(self, x_BTD: Array, segments_BT: Array | None, positions_BT: Array | None, noise: Noise | None) -> Array:
    """The embeddings that the stack reads, in the compact method that calls it: as they are."""
    return x_BTD
