"""GPT-2 (Radford et al. 2019): a causal pre-norm decoder with learned positions."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import Single
from tfm_jax.sharding.placement import Placement

PRESET = ModelConfig(max_positions=1024, dropout=0.1, attention_dropout=0.1, activation="gelu_tanh", init="gpt")


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Single:
  """The module of one configuration."""
  return Single(cfg, st, vocab_size=vocab_size, causal=True)
