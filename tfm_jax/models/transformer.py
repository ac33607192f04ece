"""The Transformer of 2017 (Vaswani et al.): encoder-decoder, post-norm, sinusoidal positions, one table for all."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import EncoderDecoder
from tfm_jax.sharding.placement import Placement

PRESET = ModelConfig(
  dropout=0.1, positions="sinusoidal", norm_order="post", norm_epsilon=1e-6, activation="relu", scale_embed=True,
  init="xavier",
)  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> EncoderDecoder:
  """The module of one configuration."""
  return EncoderDecoder(cfg, st, vocab_size=vocab_size)
