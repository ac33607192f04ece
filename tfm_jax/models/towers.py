"""The two shapes of Transformer: one tower, or an encoder and a decoder. A family is a preset and a head on one."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Outputs, Seen
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.layers import EMBED, FINAL, STANDARD, STREAM, Context, Dense, Embed, Layer, Norm, Sublayers, stack
from tfm_jax.objectives.objective import FLOAT, Field, Fields, token_fields
from tfm_jax.ops.broadcast import spread
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.masks import attention_mask
from tfm_jax.ops.positions import relative_bias
from tfm_jax.sharding.placement import Placement

Batch = dict[str, Array]


class RelativeBias(Layer):
  """T5's learned bias of the attention logits, one table for all layers of a stack."""

  @nn.compact
  def __call__(self, queries: int, keys: int, bidirectional: bool) -> Array:
    c = self.cfg
    table = self.matrix("table", (c.relative_buckets, c.num_heads), kind="relative")
    return relative_bias(table, queries, keys, bidirectional, c.relative_distance)


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
  memory: tuple[Array, Array | None] | None = None,
  sublayers: Sublayers = STANDARD,
) -> Array:
  """Blocks over embeddings, with the stack's mask and positions, and the last norm of pre-norm families.

  To be called in a compact module, to which its parameters then belong.

  Args:
    c, st: as of a `Layer`.
    x_BTD: embeddings.
    segments_BT, positions_BT: of the tokens; None: one segment, 0, 1, ...
    noise: of dropout; None: no dropout.
    causal: queries see only what stands before them.
    depth: number of blocks.
    first: number of the first block, so that two towers differ in their dropout.
    memory: the encoder's output [B, S, D] and its segments, for blocks with cross-attention.
    sublayers: of the blocks.
  """
  T = x_BTD.shape[1]
  bias_HTS = None
  if c.positions == "relative":
    bias_HTS = RelativeBias(c, st, name="relative")(T, T, not causal)
  memory_mask = None
  if memory is not None:
    memory_mask = attention_mask(segments_BT, memory[1], False, T, memory[0].shape[1])
  ctx = Context(
    mask_BTS=attention_mask(segments_BT, segments_BT, causal, T, T),
    local_mask_BTS=attention_mask(segments_BT, segments_BT, causal, T, T, c.window.size) if c.window.size else None,
    segments_BT=segments_BT,
    bias_HTS=bias_HTS,
    positions_BT=positions_BT,
    memory_BSD=memory[0] if memory else None,
    memory_mask_BTS=memory_mask,
    memory_segments_BS=memory[1] if memory else None,
    noise=noise,
  )
  x_BTD = stack(c, st, x_BTD, ctx, depth, first, causal, cross=memory is not None, sublayers=sublayers)
  if c.norm_order == "pre":
    x_BTD = Norm(c, st, name="final_norm")(x_BTD)
  if c.inner_dropout:
    x_BTD = dropout(x_BTD, c.dropout, noise, first + depth, FINAL)
  return x_BTD


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

  @nn.compact
  def __call__(self, batch: Batch, noise: Noise | None = None) -> Outputs:
    c, st = self.cfg, self.st
    positions, segments = default_positions(batch.get("positions"), batch["inputs"]), batch.get("segment_ids")
    embed = Embed(c, st, self.vocab_size, name="embed")
    x_BTD, table = embed(batch["inputs"], positions, segments, batch.get("token_types"), noise, c.num_layers)
    kind: Any = {"causal": self.causal, "depth": c.num_layers, "sublayers": self.sublayers}
    h_BTD = tower(c, st, x_BTD, segments, positions, noise, **kind)
    seen = Seen(self.vocab_size, table if c.tied else None, segments, batch.get("mlm_positions"))
    return HEADS[c.head.name].apply(c, st, h_BTD, seen)


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
    h_BTD = tower(c, st, x_BTD, None, None, noise, causal=False, depth=c.num_layers, sublayers=self.sublayers)
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
    memory: tuple[Array, Array | None] | None = None,
  ) -> Array:
    kind: Any = {"causal": self.causal, "depth": self.depth, "first": self.first, "memory": memory}
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

  @nn.compact
  def __call__(self, batch: Batch, noise: Noise | None = None) -> Outputs:
    c, st = self.cfg, self.st
    depth = c.num_layers
    layers = depth + c.decoder_depth
    embed = Embed(c, st, self.vocab_size, name="embed")

    def side(name: str, embed_layer: int, **kind: Any) -> tuple[Array, Array | None, Array, Tower, Array]:
      ids, segments = batch[f"{name}_inputs"], batch.get(f"{name}_segment_ids")
      positions = default_positions(batch.get(f"{name}_positions"), ids)
      x, table = embed(ids, positions, segments, None, noise, embed_layer)
      return x, segments, positions, Tower(c, st, name=name, sublayers=self.sublayers, **kind), table

    x, segments_BS, positions, encoder, _ = side("encoder", layers + 1, depth=depth)
    memory_BSD = encoder(x, segments_BS, positions, noise)
    x, segments_BT, positions, decoder, table = side(
      "decoder", layers + 2, causal=True, depth=c.decoder_depth, first=depth + 1
    )
    h_BTD = decoder(x, segments_BT, positions, noise, (memory_BSD, segments_BS))
    return HEADS[c.head.name].apply(c, st, h_BTD, Seen(self.vocab_size, table if c.tied else None, segments_BT))


def default_positions(positions_BT: Array | None, ids_BT: Array) -> Array:
  """0, 1, ... [1, T] where the batch brings no positions."""
  if positions_BT is not None:
    return positions_BT
  return jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
