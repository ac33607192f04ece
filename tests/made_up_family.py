"""A family in one file, as anybody may add it: a decoder with an attention of its own."""

import flax.linen as nn
import jax.numpy as jnp

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.family import DECODER_HEADS, Family
from tfm_jax.models.layers import Attention
from tfm_jax.models.towers import Single
from tfm_jax.ops.broadcast import to_rank


class UnitQueries(Attention):
  """Attention whose queries have unit length times a learned scale (after Henry et al. 2020)."""

  def attend(self, q_BTHK, *others):
    scale_K = self.param("scale", nn.initializers.ones, q_BTHK.shape[-1:])
    q = q_BTHK.astype(jnp.float32)
    unit = q / jnp.sqrt(jnp.square(q).sum(-1, keepdims=True) + 1e-6)
    return super().attend((to_rank(scale_K, 4) * unit).astype(q_BTHK.dtype), *others)


FAMILY = Family(
  module=Single,
  preset=ModelConfig(positions="rotary", norm="rms", activation="silu", gated=True, bias="none", init="gpt"),
  heads=DECODER_HEADS,
  objectives=("causal",),
  causal=True,
  attention=UnitQueries,
)
