"""Llama (Touvron et al. 2023): a causal decoder with RMSNorm, rotary positions, SwiGLU and no biases."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import Single
from tfm_jax.sharding.placement import Placement

PRESET = ModelConfig(
  max_positions=2048, positions="rotary", norm="rms", norm_epsilon=1e-6, activation="silu", gated=True, bias="none",
  tied=False, init="gpt",
)  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Single:
  """The module of one configuration."""
  return Single(cfg, st, vocab_size=vocab_size, causal=True)
