"""Llama (Touvron et al. 2023): a causal decoder with RMSNorm, rotary positions, SwiGLU and no biases."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.family import DECODER_HEADS, Family
from tfm_jax.models.networks.single import Single

FAMILY = Family(
  module=Single,
  preset=ModelConfig(
    max_positions=2048,
    positions="rotary",
    norm="rms",
    norm_epsilon=1e-6,
    activation="silu",
    gated=True,
    bias="none",
    tied=False,
    init="gpt",
  ),
  causal=True,
  heads=DECODER_HEADS,
  objectives=("causal", "prefix_lm"),
)
