"""ModernBERT (Warner et al. 2024): a pre-norm encoder, rotary, with a GEGLU, and a window in two layers of three."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import Single
from tfm_jax.sharding.placement import Placement

PRESET = {
  "max_positions": 8192, "dropout": 0.0, "attention_dropout": 0.0, "positions": "rotary", "rotary_base": 160_000.0,
  "local_rotary_base": 10_000.0, "window": 64, "global_every": 3, "norm": "layer", "norm_order": "pre",
  "norm_epsilon": 1e-5, "first_norm": False, "activation": "gelu", "gated": True, "bias": False, "tied": True,
  "embed_norm": True, "head_transform": True, "head_bias": True,
  "classifier_transform": True, "init": "gpt",
}  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Single:
  """The module of one configuration."""
  return Single(cfg, st, vocab_size=vocab_size)
