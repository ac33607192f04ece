"""`Vision`: one stack of blocks over the patches of an image."""

from typing import Any, ClassVar

import flax.linen as nn
from jax import Array

from tfm_jax.models.blocks import LAST, Sublayers
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.embeddings import Patches
from tfm_jax.models.heads.head import Outputs, Seen
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.networks.network import Batch, Network, with_hidden, with_routing
from tfm_jax.models.tower import Towered, tower
from tfm_jax.objectives.objective import FLOAT, Field, Fields
from tfm_jax.ops.dropout import Noise
from tfm_jax.sharding.placement import Placement


def image_tower(
  c: ModelConfig, st: Placement, images: Array, noise: Noise | None, sublayers: Sublayers, emit: str = ""
) -> Towered:
  """Patches with a class vector in front, and `num_layers` blocks that see all of them; see `tower`."""
  x_BTD = Patches(c, st, name="embed")(images, noise)
  kind: Any = {"causal": False, "depth": c.num_layers, "sublayers": sublayers, "emit": emit}
  return tower(c, st, x_BTD, None, None, noise, **kind)


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
    h_BTD, _, shown, routing = image_tower(c, st, batch["images"], noise, self.sublayers, emit)
    return with_routing(HEADS[c.head.name].apply(c, st, h_BTD, Seen(0)), routing=routing), shown
