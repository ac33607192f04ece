"""`Network`: a whole model, from a batch to the outputs of its head; and what the shapes of networks share."""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from tfm_jax.models.blocks import STANDARD, Sublayers
from tfm_jax.models.cache import Cache
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Output, Outputs
from tfm_jax.models.layers import Layer
from tfm_jax.objectives.objective import Fields, token_fields

Batch = dict[str, Array]


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


def with_routing(outputs: Outputs, **routing: Array | None) -> Outputs:
  """The outputs, and what experts did, by name."""
  return outputs | {name: Output(x) for name, x in routing.items() if x is not None}


def with_hidden(outputs: Outputs, last_BTD: Array | None) -> Outputs:
  """The outputs, and the last hidden states if there are any."""
  return outputs if last_BTD is None else outputs | {"hidden": Output(last_BTD)}


def side(batch: Batch, name: str) -> Batch:
  """The fields of one side ("encoder", "decoder") of a batch, without that prefix."""
  return {key.removeprefix(f"{name}_"): x for key, x in batch.items() if key.startswith(f"{name}_")}


def default_positions(positions_BT: Array | None, ids_BT: Array, cache: Cache | None = None) -> Array:
  """The positions, or by default 0, 1, ... [1, T]; with a cache they continue from its length."""
  if positions_BT is not None:
    return positions_BT
  start = 0 if cache is None else cache.length
  return start + jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
