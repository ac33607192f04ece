"""BERT (Devlin et al. 2018): a bidirectional post-norm encoder, only masked positions go through its head."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import Single
from tfm_jax.sharding.placement import Placement

PRESET = {
  "max_positions": 512, "dropout": 0.1, "attention_dropout": 0.1, "positions": "learned", "norm": "layer",
  "norm_order": "post", "norm_epsilon": 1e-12, "activation": "gelu", "bias": True, "tied": True, "token_types": 2,
  "embed_norm": True, "head_transform": True, "head_bias": True, "pooler": "tanh", "init": "bert",
}  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Single:
  """The module of one configuration."""
  return Single(cfg, st, vocab_size=vocab_size)
