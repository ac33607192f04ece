"""`TwoTowers`: an encoder of images and one of texts, whose vectors are compared (CLIP, Radford et al. 2021)."""

from typing import Any

import flax.linen as nn
from jax import Array

from tfm_jax.models.blocks import STANDARD, Sublayers
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.embeddings import Embed
from tfm_jax.models.heads.head import Outputs, Seen
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.layers import Layer
from tfm_jax.models.networks.network import Batch, Network, default_positions, with_hidden, with_routing
from tfm_jax.models.networks.vision import Vision, image_tower
from tfm_jax.models.tower import tower
from tfm_jax.objectives.objective import Fields, token_fields
from tfm_jax.ops.dropout import Noise


class ImageTower(Layer):
  """The body of a Vision Transformer."""

  sublayers: Sublayers = STANDARD

  @nn.compact
  def __call__(self, images: Array, noise: Noise | None) -> tuple[Array, Array | None]:
    """The hidden states [B, 1 + patches, D], and what the experts did."""
    h_BTD, _, _, routing = image_tower(self.cfg, self.st, images, noise, self.sublayers)
    return h_BTD, routing


class TextTower(Layer):
  """Token embeddings and causal blocks, as in the paper, so that the last token knows the whole text."""

  vocab_size: int = 0
  sublayers: Sublayers = STANDARD

  @nn.compact
  def __call__(self, batch: Batch, noise: Noise | None, emit: str = "") -> tuple[Array, Array | None, Array | None]:
    """The hidden states [B, T, D]; what `emit` names, or None; what the experts did."""
    c, st = self.cfg, self.st
    positions, segments = default_positions(batch.get("positions"), batch["inputs"]), batch.get("segment_ids")
    first = c.num_layers + 1  # the layers of the images come before, for dropout
    embed = Embed(c, st, self.vocab_size, name="embed")
    x_BTD, _ = embed(batch["inputs"], positions, segments, None, noise, first + c.decoder_depth)
    kind: Any = {"causal": True, "depth": c.decoder_depth, "first": first, "sublayers": self.sublayers, "emit": emit}
    h_BTD, _, shown, routing = tower(c, st, x_BTD, segments, positions, noise, **kind)
    return h_BTD, shown, routing


class TwoTowers(Network):
  """An encoder of images with `num_layers` blocks and one of texts with `decoder_layers`, of one width.

  Batch: `images` float32 [B, height, width, channels], `inputs` [B, T], and optionally `segment_ids`, `positions`.
  """

  @staticmethod
  def inputs(c: ModelConfig, length: int, vocab_size: int) -> Fields:
    """See `Network`."""
    return Vision.inputs(c, length, vocab_size) | token_fields(length, vocab_size)

  def setup(self) -> None:
    self.image = ImageTower(self.cfg, self.st, self.sublayers)
    self.text = TextTower(self.cfg, self.st, self.vocab_size, self.sublayers)

  @nn.compact
  def __call__(self, batch: Batch, noise: Noise | None = None, hidden: bool = False) -> Outputs:
    images_BTD, image_routing = self.image(batch["images"], noise)
    h_BTD, _, routing = self.text(batch, noise)
    seen = Seen(self.vocab_size, segments_BT=batch.get("segment_ids"), images_BTD=images_BTD)
    outputs = HEADS[self.cfg.head.name].apply(self.cfg, self.st, h_BTD, seen)
    outputs = with_routing(outputs, routing=routing, encoder_routing=image_routing)
    return with_hidden(outputs, h_BTD if hidden else None)

  def inspect(self, batch: Batch, emit: str, stack_name: str = "") -> Array:
    """See `Network`: of the texts."""
    shown = self.text(batch, None, emit)[1]
    assert shown is not None
    return shown
