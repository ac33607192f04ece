"""GPT-2 (Radford et al. 2019): a causal pre-norm decoder with learned positions."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import Single
from tfm_jax.sharding.placement import Placement

PRESET = {
  "max_positions": 1024, "dropout": 0.1, "attention_dropout": 0.1, "positions": "learned", "norm": "layer",
  "norm_order": "pre", "norm_epsilon": 1e-5, "activation": "gelu_tanh", "bias": True, "tied": True, "init": "gpt",
}  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Single:
  """The module of one configuration."""
  return Single(cfg, st, vocab_size=vocab_size, causal=True)
