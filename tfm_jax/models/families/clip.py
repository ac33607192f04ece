"""CLIP (Radford et al. 2021): a Vision Transformer and a causal encoder of texts, which learn to agree."""

from tfm_jax.models.config import HeadConfig, ImageConfig, ModelConfig
from tfm_jax.models.family import Family
from tfm_jax.models.networks.two_towers import TwoTowers

FAMILY = Family(
  module=TwoTowers,
  preset=ModelConfig(
    max_positions=77,
    tied=False,
    init="gpt",
    head=HeadConfig(name="contrastive"),
    image=ImageConfig(height=224, width=224, patch=16),
  ),
  heads=("contrastive",),
  objectives=(),
)
