"""The Vision Transformer (Dosovitskiy et al. 2021): a pre-norm encoder of the patches of an image."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import Vision
from tfm_jax.sharding.placement import Placement

PRESET = ModelConfig(norm_epsilon=1e-12, tied=False)


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Vision:
  """The module of one configuration."""
  return Vision(cfg, st)
