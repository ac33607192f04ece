"""`Family`: what distinguishes one architecture from another."""

import dataclasses

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.layers import Attention, Layer, Mlp
from tfm_jax.models.networks.encoder_decoder import EncoderDecoder
from tfm_jax.models.networks.network import Network
from tfm_jax.ops.recurrent import Cell

EVERY_HEAD: tuple[str, ...] = ()
DECODER_HEADS = (
  "lm",
  "none",
  "pooled",
  "sequence_classification",
  "token_classification",
  "question_answering",
  "multiple_choice",
  "similarity",
)


@dataclasses.dataclass(frozen=True)
class Family:
  """One architecture: an entry of `models.families.table.FAMILIES`.

  Attributes:
    module: the shape of the network.
    preset: the default configuration, of which experiments change fields.
    heads: names in `models.heads.table.HEADS` that the family supports; empty: all.
    objectives: names in `objectives.table.OBJECTIVES` that it can be pre-trained on; an import writes the first into
      the run's configuration.
    causal: a token attends only to itself and to earlier ones.
    attention: the class of the blocks' attention, with the fields and call of `layers.Attention`.
    mlp: the class of the blocks' feed-forward layer, with the fields and call of `layers.Mlp`.
    cell: of a recurrent family: its layers, in place of blocks of attention and feed-forward; None: a Transformer.
  """

  module: type[Network]
  preset: ModelConfig
  heads: tuple[str, ...]
  objectives: tuple[str, ...]
  causal: bool = False
  attention: type[Layer] = Attention
  mlp: type[Layer] = Mlp
  cell: Cell | None = None

  @property
  def encoder_decoder(self) -> bool:
    """Whether its models have an encoder and a decoder."""
    return issubclass(self.module, EncoderDecoder)
