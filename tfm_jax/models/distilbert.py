"""DistilBERT (Sanh et al. 2019): BERT without token types and with half of its layers."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import Single
from tfm_jax.sharding.placement import Placement

PRESET = {
  "max_positions": 512, "dropout": 0.1, "attention_dropout": 0.1, "positions": "learned", "norm": "layer",
  "norm_order": "post", "norm_epsilon": 1e-12, "activation": "gelu", "bias": True, "tied": True, "embed_norm": True,
  "head_transform": True, "head_bias": True, "pooler": "relu", "init": "bert",
}  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Single:
  """The module of one configuration."""
  return Single(cfg, st, vocab_size=vocab_size)
