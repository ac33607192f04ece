"""`Family`: what tells one architecture from another."""

import dataclasses

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.layers import Attention, Layer, Mlp
from tfm_jax.models.towers import Network

EVERY_HEAD: tuple[str, ...] = ()
DECODER_HEADS = ("lm", "none")


@dataclasses.dataclass(frozen=True)
class Family:
  """One architecture: a row of `models.families.table.FAMILIES`.

  Attributes:
    module: the shape of the network.
    preset: the configuration from which experiments say what differs.
    heads: names in `models.heads.table.HEADS` that make sense on it; empty: all.
    objectives: names in `objectives.table.OBJECTIVES` that it is pre-trained on; the first is what an import notes.
    causal: each token sees only those before it.
    attention: the class that `Block` uses for attention, called as `layers.Attention` is.
    mlp: the class that it uses for the feed-forward layer, called as `layers.Mlp` is.
  """

  module: type[Network]
  preset: ModelConfig
  heads: tuple[str, ...]
  objectives: tuple[str, ...]
  causal: bool = False
  attention: type[Layer] = Attention
  mlp: type[Layer] = Mlp
