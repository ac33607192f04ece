"""The Vision Transformer (Dosovitskiy et al. 2021): a pre-norm encoder of image patches."""

from tfm_jax.models.config import HeadConfig, ImageConfig, ModelConfig
from tfm_jax.models.family import Family
from tfm_jax.models.networks.vision import Vision

FAMILY = Family(
  module=Vision,
  preset=ModelConfig(
    norm_epsilon=1e-12,
    tied=False,
    head=HeadConfig(name="sequence_classification"),
    image=ImageConfig(height=224, width=224, patch=16),
  ),
  heads=("sequence_classification", "pooled", "none"),
  objectives=(),
)
