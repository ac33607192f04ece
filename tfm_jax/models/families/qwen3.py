"""Qwen3 (Yang et al. 2025): Llama with normalised queries and keys (QK-norm; Dehghani et al. 2023)."""

from jax import Array

from tfm_jax.models.config import replaced
from tfm_jax.models.families import llama
from tfm_jax.models.family import DECODER_HEADS, Family
from tfm_jax.models.layers import Attention, Norm
from tfm_jax.models.networks.single import Single


class NormedAttention(Attention):
  """Attention with a norm of each head of queries and of keys, with a learned scale, before rotary positions."""

  def prepared(self, x: Array, name: str) -> Array:
    return Norm(self.cfg, self.st, name=f"{name}_norm")(x)


FAMILY = Family(
  module=Single,
  preset=replaced(llama.FAMILY.preset, {"max_positions": 40_960, "rotary.base": 1_000_000.0}),
  heads=DECODER_HEADS,
  objectives=("causal", "prefix_lm"),
  causal=True,
  attention=NormedAttention,
)
