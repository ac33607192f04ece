"""The two shapes of Transformer: one tower, or an encoder and a decoder. A family is a preset and a head on one."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.cache import Cache, Memory
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Outputs, Seen
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.layers import EMBED, FINAL, STANDARD, STREAM, Context, Dense, Embed, Layer, Norm, Sublayers, stack
from tfm_jax.models.sight import make_sight
from tfm_jax.objectives.objective import FLOAT, Field, Fields, token_fields
from tfm_jax.ops.broadcast import spread
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.positions import relative_bias
from tfm_jax.sharding.placement import Placement

Batch = dict[str, Array]


class RelativeBias(Layer):
  """T5's learned bias of the attention logits, one table for all layers of a stack."""

  @nn.compact
  def __call__(self, queries: int, keys: int, bidirectional: bool, offset: int | Array) -> Array:
    c = self.cfg
    table = self.matrix("table", (c.relative_buckets, c.num_heads), kind="relative")
    return relative_bias(table, queries, keys, bidirectional, c.relative_distance, offset)


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
  first: int = 0,
  memory: Memory | None = None,
  cache: Cache | None = None,
  sublayers: Sublayers = STANDARD,
) -> tuple[Array, Cache | None]:
  """Blocks over embeddings, with the stack's masks and positions, and the last norm of pre-norm families.

  To be called in a compact module, to which its parameters then belong. Returns the hidden states, and the cache with
  the new tokens if there is one.

  Args:
    c, st: as of a `Layer`.
    x_BTD: embeddings.
    segments_BT, positions_BT: of the tokens; None: one segment, 0, 1, ...
    noise: of dropout; None: no dropout.
    causal: queries see only what stands before them.
    depth: number of blocks.
    first: number of the first block, so that two towers differ in their dropout.
    memory: the encoder's output, for blocks with cross-attention; not needed where the cache has its keys and values.
    cache: of the tokens before these.
    sublayers: of the blocks.
  """
  (B, T), start = x_BTD.shape[:2], None
  S, key_segments, kept = T, segments_BT, None
  memory_length, memory_segments = (memory.h_BSD.shape[1], memory.segments_BS) if memory else (0, None)
  if cache is not None:
    segments_BT = jnp.broadcast_to(1 if segments_BT is None else segments_BT, (B, T)).astype(jnp.int32)
    cache = cache.with_segments(segments_BT)
    start, kept = cache.length, cache.kept
    S, key_segments, memory_segments = cache.segments_BS.shape[1], cache.segments_BS, cache.memory_segments_BS
    memory_length = cache.across.k.shape[2] if cache.across else memory_length
  offset = 0 if start is None else start
  bias_HTS = None
  if c.positions == "relative" and T:  # to make a cache, no tokens are decoded
    bias_HTS = RelativeBias(c, st, name="relative")(T, S, not causal, -offset)
  kind: Any = {"training": noise is not None, "cached": cache is not None}
  mask = Mask(causal, query_segments_BT=segments_BT, key_segments_BS=key_segments, query_offset=offset)
  own, across = make_sight(c, st, mask, (B, T, S), window=c.window.size, bias_HTS=bias_HTS, **kind), None
  if memory_length:
    mask = Mask(query_segments_BT=segments_BT, key_segments_BS=memory_segments)
    across = make_sight(c, st, mask, (B, T, memory_length), **kind)
  ctx = Context(own, across, positions_BT, memory and memory.h_BSD, start, noise)
  x_BTD, new = stack(c, st, x_BTD, ctx, depth, first, across is not None, kept, sublayers)
  if c.norm_order == "pre":
    x_BTD = Norm(c, st, name="final_norm")(x_BTD)
  if c.inner_dropout:
    x_BTD = dropout(x_BTD, c.dropout, noise, first + depth, FINAL)
  return x_BTD, cache.with_tokens(new, st) if cache and new else None


class Network(Layer):
  """A whole model: batch -> what its head predicts. The fields come from the family's row."""

  vocab_size: int = 0
  causal: bool = False
  sublayers: Sublayers = STANDARD

  @staticmethod
  def inputs(c: ModelConfig, length: int, vocab_size: int) -> Fields:
    """What the model reads of a batch, in rows of so many tokens."""
    return token_fields(length, vocab_size)


class Single(Network):
  """One tower with its embeddings and its head: BERT and its kin (bidirectional), GPT and Llama (`causal`).

  Batch: `inputs` [B, T], and where there are any `segment_ids`, `positions`, `token_types` [B, T]; with `mlm_positions`
  [B, P] only these positions go through the head of a language model.
  """

  def __call__(self, batch: Batch, noise: Noise | None = None) -> Outputs:
    return self.decode(batch, None, noise)[0]

  @nn.compact
  def decode(self, batch: Batch, cache: Cache | None, noise: Noise | None = None) -> tuple[Outputs, Cache | None]:
    """The outputs for tokens that follow those of the cache, and the cache with them; None: nothing came before."""
    c, st = self.cfg, self.st
    positions, segments = default_positions(batch.get("positions"), batch["inputs"], cache), batch.get("segment_ids")
    embed = Embed(c, st, self.vocab_size, name="embed")
    x_BTD, table = embed(batch["inputs"], positions, segments, batch.get("token_types"), noise, c.num_layers)
    kind: Any = {"causal": self.causal, "depth": c.num_layers, "cache": cache, "sublayers": self.sublayers}
    h_BTD, cache = tower(c, st, x_BTD, segments, positions, noise, **kind)
    seen = Seen(self.vocab_size, table if c.tied else None, segments, batch.get("mlm_positions"))
    return HEADS[c.head.name].apply(c, st, h_BTD, seen), cache


class Vision(Network):
  """One tower over the patches of an image, behind a vector that stands for the whole (Dosovitskiy et al. 2021).

  Batch: `images` float32 [B, height, width, channels].
  """

  @staticmethod
  def inputs(c: ModelConfig, length: int, vocab_size: int) -> Fields:
    """See `Network`."""
    shape = (c.image.height, c.image.width, c.image.channels)
    return {"images": Field(shape, FLOAT, "pixels", ("batch", None, None, None))}

  @nn.compact
  def __call__(self, batch: Batch, noise: Noise | None = None) -> Outputs:
    c, st = self.cfg, self.st
    x_BTD = Patches(c, st, name="embed")(batch["images"], noise)
    h_BTD, _ = tower(c, st, x_BTD, None, None, noise, causal=False, depth=c.num_layers, sublayers=self.sublayers)
    return HEADS[c.head.name].apply(c, st, h_BTD, Seen(0))


class Patches(Layer):
  """Embeddings of an image: one linear a patch, the class vector before them, positions, dropout."""

  @nn.compact
  def __call__(self, images: Array, noise: Noise | None) -> Array:
    c, st = self.cfg, self.st
    P, D = c.image.patch, c.embed_dim
    B, height, width, channels = images.shape
    x = images.astype(c.compute_dtype).reshape(B, height // P, P, width // P, P, channels)
    x_BTP = x.transpose(0, 1, 3, 2, 4, 5).reshape(B, c.patches, P * P * channels)
    x_BTD = Dense(c, st, D, name="patch")(x_BTP)
    first = self.param("class", nn.initializers.zeros, (D,)).astype(x_BTD.dtype)
    x_BTD = jnp.concatenate([spread(first[None, None], (B, 1, D)), x_BTD], axis=1)
    table_TD = self.matrix("position", (c.patches + 1, D), kind="position")
    x_BTD = st.constrain(x_BTD + spread(table_TD[None], x_BTD.shape), STREAM)
    return dropout(x_BTD, c.dropout, noise, c.num_layers, EMBED)


class Tower(Layer):
  """`tower` as a module of its own: one side of an encoder-decoder."""

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
  ) -> tuple[Array, Cache | None]:
    kind: Any = {"causal": self.causal, "depth": self.depth, "first": self.first, "memory": memory, "cache": cache}
    kind["sublayers"] = self.sublayers
    return tower(self.cfg, self.st, x_BTD, segments_BT, positions_BT, noise, **kind)


class EncoderDecoder(Network):
  """An encoder and a decoder that share their token embeddings: T5 and the Transformer of 2017.

  Batch: `encoder_inputs` [B, S], `decoder_inputs` [B, T], and where there are any `encoder_segment_ids`,
  `encoder_positions`, `decoder_segment_ids`, `decoder_positions`.
  """

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

  def __call__(self, batch: Batch, noise: Noise | None = None) -> Outputs:
    memory = self.encode(side(batch, "encoder"), noise)
    return self.decode(side(batch, "decoder"), None, noise, memory)[0]

  def encode(self, batch: Batch, noise: Noise | None = None) -> Memory:
    """The encoder's output for `inputs` [B, S], and where there are any `segment_ids`, `positions`."""
    x, segments, positions, _ = self.embedded(batch, noise, 1)
    return Memory(self.encoder(x, segments, positions, noise)[0], segments)

  @nn.compact
  def decode(
    self, batch: Batch, cache: Cache | None, noise: Noise | None = None, memory: Memory | None = None
  ) -> tuple[Outputs, Cache | None]:
    """The outputs for tokens that follow those of the cache, and the cache with them; None: nothing came before.

    `memory` is read where the cache has no keys and values of it.
    """
    x, segments, positions, table = self.embedded(batch, noise, 2, cache)
    h_BTD, cache = self.decoder(x, segments, positions, noise, memory, cache)
    seen = Seen(self.vocab_size, table if self.cfg.tied else None, segments, batch.get("mlm_positions"))
    return HEADS[self.cfg.head.name].apply(self.cfg, self.st, h_BTD, seen), cache

  def embedded(
    self, batch: Batch, noise: Noise | None, site: int, cache: Cache | None = None
  ) -> tuple[Array, Array | None, Array, Array]:
    """Embeddings, segments, positions and the table of one side."""
    ids, segments = batch["inputs"], batch.get("segment_ids")
    positions = default_positions(batch.get("positions"), ids, cache)
    layer = self.cfg.num_layers + self.cfg.decoder_depth + site
    x, table = self.embed(ids, positions, segments, None, noise, layer)
    return x, segments, positions, table


def side(batch: Batch, name: str) -> Batch:
  """The fields of one side of an encoder-decoder, without its name."""
  return {key.removeprefix(f"{name}_"): x for key, x in batch.items() if key.startswith(f"{name}_")}


def default_positions(positions_BT: Array | None, ids_BT: Array, cache: Cache | None = None) -> Array:
  """0, 1, ... [1, T] where the batch brings no positions; behind a cache they go on from its length."""
  if positions_BT is not None:
    return positions_BT
  start = 0 if cache is None else cache.length
  return start + jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
