"""The Vision Transformer (Dosovitskiy et al. 2021): a pre-norm encoder of the patches of an image."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import Vision
from tfm_jax.sharding.placement import Placement

PRESET = {
  "dropout": 0.0, "attention_dropout": 0.0, "positions": "learned", "norm": "layer", "norm_order": "pre",
  "norm_epsilon": 1e-12, "activation": "gelu", "bias": True, "tied": False, "init": "bert",
}  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Vision:
  """The module of one configuration."""
  return Vision(cfg, st)
