"""The two shapes of a Transformer: one stack of blocks (`Single`, `Vision`), or an encoder and a decoder."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.blocks import HIDDEN, LAST, STANDARD, Sublayers, stack
from tfm_jax.models.cache import Cache, KeyValueCache, Memory, States
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.embeddings import Embed, Patches
from tfm_jax.models.generator import corrupted, generator_config
from tfm_jax.models.heads.head import Output, Outputs, Seen
from tfm_jax.models.heads.parts import OutputLayer, pick
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.layers import FINAL, STREAM, Context, Dense, Layer, Norm
from tfm_jax.models.recurrent import recurrent_tower
from tfm_jax.models.residual import ORDERS
from tfm_jax.models.sight import make_sight
from tfm_jax.objectives.objective import FLOAT, Field, Fields, token_fields
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.positions import alibi_bias, relative_bias
from tfm_jax.sharding.placement import Placement

Batch = dict[str, Array]
Leaf = TypeVar("Leaf")
Towered = tuple[Array, Cache | None, Array | None, Array | None]  # see `tower`


class RelativeBias(Layer):
  """T5's learned bias of the attention logits: one table for all blocks of a stack."""

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
  bias_HTS = None
  if c.positions == "relative" and T:  # no tokens are decoded when a cache is created
    bias_HTS = RelativeBias(c, st, name="relative")(T, S, not causal, -offset)
  elif c.positions == "alibi" and T:
    bias_HTS = alibi_bias(c.num_heads, offset + jnp.arange(T), jnp.arange(S) + jnp.ravel(keys_offset))
    bias_HTS = st.constrain(bias_HTS, ("act_heads", "seq", None))
  kind = {"training": noise is not None, "cached": cache is not None}
  segments: Any = {"query_segments_BT": segments_BT, "key_segments_BS": key_segments}
  if cache is not None and prefix_BT is not None:  # keys that the cache has already are earlier ones
    start_S = jnp.zeros((B, S), prefix_BT.dtype)
    prefix_BT = jax.lax.dynamic_update_slice_in_dim(start_S, prefix_BT, cache.start, axis=1)
  mask = Mask(causal, **segments, query_offset=offset, key_offset=keys_offset, prefix_BS=prefix_BT)
  own, across = make_sight(c, st, mask, (B, T, S), window=c.window.size, bias_HTS=bias_HTS, **kind), None
  if memory_length:
    if segments_BT is None and memory_segments is not None:  # a single segment, which does not see padding
      segments_BT = jnp.ones((B, T), jnp.int32)
    mask = Mask(query_segments_BT=segments_BT, key_segments_BS=memory_segments)
    across = make_sight(c, st, mask, (B, T, memory_length), **kind)
  ctx = Context(own, across, positions_BT, memory and memory.h_BSD, start, noise, segments_BT)
  fields: Any = {"cross": across is not None, "sublayers": sublayers, "emit": emit}
  h_BTD, (new, shown, routed) = stack(c, st, x_BTD, ctx, depth, first, kept, **fields)
  if ORDERS[c.norm_order].before:
    h_BTD = Norm(c, st, name="final_norm")(h_BTD)
  if c.inner_dropout:
    h_BTD = dropout(h_BTD, c.dropout, noise, first + depth, FINAL)
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
  return h_BTD, cache.with_tokens(new, st) if cache and new else None, shown, routing


def with_routing(outputs: Outputs, **routing: Array | None) -> Outputs:
  """The outputs, and what experts did, by name."""
  return outputs | {name: Output(x) for name, x in routing.items() if x is not None}


def with_hidden(outputs: Outputs, last_BTD: Array | None) -> Outputs:
  """The outputs, and the last hidden states if there are any."""
  return outputs if last_BTD is None else outputs | {"hidden": Output(last_BTD)}


class Network(Layer):
  """A whole model: batch -> outputs of its head. The attributes come from the family's entry.

  Attributes:
    vocab_size: true size of the vocabulary.
    causal: a token attends only to itself and to earlier ones.
    sublayers: see `Block`.
  """

  vocab_size: int = 0
  causal: bool = False
  sublayers: Sublayers = STANDARD
  sides: ClassVar[tuple[str, ...]] = ("",)
  """Prefixes of the fields of tokens that the model reads."""

  @staticmethod
  def inputs(c: ModelConfig, length: int, vocab_size: int) -> Fields:
    """The fields of a batch that the model reads, for rows of `length` tokens."""
    return token_fields(length, vocab_size)

  def inspect(self, batch: Batch, emit: str, stack_name: str = "") -> Array:
    """What the blocks of a stack emit.

    Args:
      batch: as for a call.
      emit: HIDDEN: the embeddings and each block's output, the last after the final norm, [N + 1, B, T, D]; ATTN,
        CROSS_ATTN: the attention weights, [N, B, H, T, S].
      stack_name: "encoder", or else the decoder; ignored by models with a single stack.
    """
    raise NotImplementedError


class Generator(Layer):
  """ELECTRA's generator: a stack of its own and a masked language model's head over the model's embeddings."""

  vocab_size: int = 0

  @nn.compact
  def __call__(
    self, x_BTE: Array, table_VE: Array, positions_BT: Array, batch: Batch, noise: Noise | None, first: int
  ) -> Output:
    """The output at the masked places, or at all. `first`: index of the first block, for its dropout."""
    c, st, segments = self.cfg, self.st, batch.get("segment_ids")
    if c.embed_dim != c.embed_features:
      x_BTE = st.constrain(Dense(c, st, c.embed_dim, name="project")(x_BTE), STREAM)
    h_BTD = tower(c, st, x_BTE, segments, positions_BT, noise, causal=False, depth=c.num_layers, first=first)[0]
    if "mlm_positions" in batch:
      h_BTD = pick(h_BTD, batch["mlm_positions"])
    return OutputLayer(c, st, self.vocab_size, name="head")(h_BTD, table_VE)


class Single(Network):
  """A single stack with embeddings and a head: encoders such as BERT, decoders such as GPT and Llama (`causal`).

  Batch: `inputs` [B, T] and optionally `segment_ids`, `positions`, `token_types` [B, T]. With `mlm_positions` [B, P], a
  language model's head is applied only at these positions. Of a causal model, tokens with `prefix` 1 [B, T] are seen
  by earlier ones of their segment too. `embedding_shifts` [B, T, D] is added to the embeddings,
  for gradients with respect to them.
  """

  def __call__(self, batch: Batch, noise: Noise | None = None, hidden: bool = False) -> Outputs:
    outputs, _, last = self.run(batch, noise=noise, emit=LAST if hidden else "")
    return with_hidden(outputs, last)

  def decode(self, batch: Batch, cache: Cache) -> tuple[Outputs, Cache | None]:
    """The outputs for tokens that follow those of the cache, and the cache with them."""
    return self.run(batch, cache)[:2]

  def inspect(self, batch: Batch, emit: str, stack_name: str = "") -> Array:
    """See `Network`."""
    shown = self.run(batch, emit=emit)[2]
    assert shown is not None
    return shown

  @nn.compact
  def run(
    self, batch: Batch, cache: Cache | None = None, noise: Noise | None = None, emit: str = ""
  ) -> tuple[Outputs, Cache | None, Array | None]:
    """The outputs; the cache with the new tokens, or None; what `emit` names, or None."""
    c, st = self.cfg, self.st
    positions, segments = default_positions(batch.get("positions"), batch["inputs"], cache), batch.get("segment_ids")
    embed = Embed(c, st, self.vocab_size, name="embed")
    types, shifts = batch.get("token_types"), batch.get("embedding_shifts")
    inputs, generated = batch["inputs"], Outputs()
    if HEADS[c.head.name].generates and ("mlm_positions" in batch or self.is_initializing()):
      generator = Generator(generator_config(c), st, self.vocab_size, name="generator")
      x_BTE, table = embed(inputs, positions, segments, types, noise, c.num_layers + 1, narrow=True)
      output = generator(x_BTE, table, positions, batch, noise, c.num_layers + 2)
      if "mlm_positions" in batch:
        inputs, replaced_BT = corrupted(c, st, output, batch, noise)
        generated = {"generator": output, "replaced": Output(replaced_BT)}
    x_BTD, table = embed(inputs, positions, segments, types, noise, c.num_layers, shifts)
    kind: Any = {"causal": self.causal, "depth": c.num_layers, "cache": cache, "sublayers": self.sublayers}
    kind["prefix_BT"] = batch.get("prefix")
    h_BTD, cache, shown, routing = tower(c, st, x_BTD, segments, positions, noise, emit=emit, **kind)
    seen = Seen(self.vocab_size, table if c.tied else None, segments, batch.get("mlm_positions"))
    outputs = HEADS[c.head.name].apply(c, st, h_BTD, seen)
    return with_routing(outputs, routing=routing) | generated, cache, shown


class Vision(Network):
  """A single stack over the patches of an image, preceded by a class vector (Dosovitskiy et al. 2021).

  Batch: `images` float32 [B, height, width, channels].
  """

  sides: ClassVar[tuple[str, ...]] = ()

  @staticmethod
  def inputs(c: ModelConfig, length: int, vocab_size: int) -> Fields:
    """See `Network`."""
    shape = (c.image.height, c.image.width, c.image.channels)
    return {"images": Field(shape, FLOAT, "pixels", ("batch", None, None, None))}

  def __call__(self, batch: Batch, noise: Noise | None = None, hidden: bool = False) -> Outputs:
    return with_hidden(*self.run(batch, noise, LAST if hidden else ""))

  def inspect(self, batch: Batch, emit: str, stack_name: str = "") -> Array:
    """See `Network`."""
    shown = self.run(batch, emit=emit)[1]
    assert shown is not None
    return shown

  @nn.compact
  def run(self, batch: Batch, noise: Noise | None = None, emit: str = "") -> tuple[Outputs, Array | None]:
    """The outputs; what `emit` names, or None."""
    c, st = self.cfg, self.st
    x_BTD = Patches(c, st, name="embed")(batch["images"], noise)
    kind: Any = {"causal": False, "depth": c.num_layers, "sublayers": self.sublayers, "emit": emit}
    h_BTD, _, shown, routing = tower(c, st, x_BTD, None, None, noise, **kind)
    return with_routing(HEADS[c.head.name].apply(c, st, h_BTD, Seen(0)), routing=routing), shown


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
    return self.run(x_BTD, segments_BT, positions_BT, noise, memory, cache, emit)

  @nn.nowrap
  def run(
    self,
    x_BTD: Array,
    segments_BT: Array | None,
    positions_BT: Array | None,
    noise: Noise | None,
    memory: Memory | None,
    cache: Cache | None,
    emit: str,
  ) -> Towered:
    """`tower`, in the compact method that calls it."""
    kind: Any = {"causal": self.causal, "depth": self.depth, "first": self.first, "memory": memory, "cache": cache}
    kind |= {"sublayers": self.sublayers, "emit": emit}
    return tower(self.cfg, self.st, x_BTD, segments_BT, positions_BT, noise, **kind)


class EncoderDecoder(Network):
  """An encoder and a decoder that share their token embeddings: T5 and the Transformer of 2017.

  Batch: `encoder_inputs` [B, S], `decoder_inputs` [B, T], and optionally `encoder_segment_ids`, `encoder_positions`,
  `decoder_segment_ids`, `decoder_positions`; `encoder_embedding_shifts`, `decoder_embedding_shifts` as in `Single`.
  """

  sides: ClassVar[tuple[str, ...]] = ("encoder_", "decoder_")

  @staticmethod
  def inputs(c: ModelConfig, length: int, vocab_size: int) -> Fields:
    """See `Network`."""
    return token_fields(length, vocab_size, "encoder_") | token_fields(length, vocab_size, "decoder_")

  def setup(self) -> None:
    c, st = self.cfg, self.st
    kind: Any = {"sublayers": self.sublayers}
    self.embed = Embed(c, st, self.vocab_size)
    self.encoder = Tower(c, st, depth=c.num_layers, **kind)
    self.decoder = Tower(c, st, causal=True, depth=c.decoder_depth, first=c.num_layers + 1, **kind)

  def __call__(self, batch: Batch, noise: Noise | None = None, hidden: bool = False) -> Outputs:
    memory = self.encode(side(batch, "encoder"), noise)
    outputs, _, last = self.run(side(batch, "decoder"), noise=noise, memory=memory, emit=LAST if hidden else "")
    return with_hidden(outputs, last)

  def encode(self, batch: Batch, noise: Noise | None = None) -> Memory:
    """The encoder's output for `inputs` [B, S] and optional `segment_ids`, `positions`."""
    return self.run_encoder(batch, noise)[0]

  def decode(self, batch: Batch, cache: Cache, memory: Memory | None = None) -> tuple[Outputs, Cache | None]:
    """The outputs for tokens that follow those of the cache, and the cache with them.

    `memory`: the encoder's output, read if the cache does not hold its keys and values.
    """
    return self.run(batch, cache, memory=memory)[:2]

  def inspect(self, batch: Batch, emit: str, stack_name: str = "") -> Array:
    """See `Network`."""
    encoding = stack_name == "encoder"
    memory, shown = self.run_encoder(side(batch, "encoder"), emit=emit if encoding else "")
    if not encoding:
      shown = self.run(side(batch, "decoder"), memory=memory, emit=emit)[2]
    assert shown is not None
    return shown

  def run_encoder(self, batch: Batch, noise: Noise | None = None, emit: str = "") -> tuple[Memory, Array | None]:
    """The encoder's output; what `emit` names, or None."""
    x, segments, positions, _ = self.embedded(batch, noise, 1)
    h_BSD, _, shown, routing = self.encoder(x, segments, positions, noise, emit=emit)
    return Memory(h_BSD, segments, routing), shown

  @nn.compact
  def run(
    self,
    batch: Batch,
    cache: Cache | None = None,
    noise: Noise | None = None,
    memory: Memory | None = None,
    emit: str = "",
  ) -> tuple[Outputs, Cache | None, Array | None]:
    """The decoder's outputs; the cache with the new tokens, or None; what `emit` names, or None."""
    x, segments, positions, table = self.embedded(batch, noise, 2, cache)
    h_BTD, cache, shown, routing = self.decoder(x, segments, positions, noise, memory, cache, emit)
    seen = Seen(self.vocab_size, table if self.cfg.tied else None, segments, batch.get("mlm_positions"))
    outputs = HEADS[self.cfg.head.name].apply(self.cfg, self.st, h_BTD, seen)
    outputs = with_routing(outputs, routing=routing, encoder_routing=memory and memory.routing)
    return outputs, cache, shown

  def embedded(
    self, batch: Batch, noise: Noise | None, site: int, cache: Cache | None = None
  ) -> tuple[Array, Array | None, Array, Array]:
    """Embeddings, segments and positions of one side, and the embedding table."""
    ids, segments = batch["inputs"], batch.get("segment_ids")
    positions = default_positions(batch.get("positions"), ids, cache)
    layer = self.cfg.num_layers + self.cfg.decoder_depth + site
    x, table = self.embed(ids, positions, segments, None, noise, layer, batch.get("embedding_shifts"))
    return x, segments, positions, table


def side(batch: Batch, name: str) -> Batch:
  """The fields of one side ("encoder", "decoder") of a batch, without that prefix."""
  return {key.removeprefix(f"{name}_"): x for key, x in batch.items() if key.startswith(f"{name}_")}


def encoder_params(params: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """The embeddings and the encoder of an `EncoderDecoder`, under their paths in a `Single`; its head stays what it is.

  Args:
    params: leaf by path ("encoder/blocks/attn/wq"); those of the decoder are left out.
  """
  return {path.removeprefix("encoder/"): x for path, x in params.items() if not path.startswith("decoder/")}


def default_positions(positions_BT: Array | None, ids_BT: Array, cache: Cache | None = None) -> Array:
  """The positions, or by default 0, 1, ... [1, T]; with a cache they continue from its length."""
  if positions_BT is not None:
    return positions_BT
  start = 0 if cache is None else cache.length
  return start + jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
