"""Llama (Touvron et al. 2023): a causal decoder with RMSNorm, rotary positions, SwiGLU and no biases."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import Single
from tfm_jax.sharding.placement import Placement

PRESET = {
  "max_positions": 2048, "dropout": 0.0, "attention_dropout": 0.0, "positions": "rotary", "norm": "rms",
  "norm_order": "pre", "norm_epsilon": 1e-6, "activation": "silu", "gated": True, "bias": False, "tied": False,
  "init": "gpt",
}  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Single:
  """The module of one configuration."""
  return Single(cfg, st, vocab_size=vocab_size, causal=True)
