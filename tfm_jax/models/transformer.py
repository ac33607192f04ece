"""The Transformer of 2017 (Vaswani et al.): encoder-decoder, post-norm, sinusoidal positions, one table for all."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import EncoderDecoder
from tfm_jax.sharding.placement import Placement

PRESET = {
  "max_positions": 0, "dropout": 0.1, "attention_dropout": 0.0, "positions": "sinusoidal", "norm": "layer",
  "norm_order": "post", "norm_epsilon": 1e-6, "activation": "relu", "gated": False, "bias": True, "tied": True,
  "token_types": 0, "embed_norm": False, "scale_attention": True, "scale_embed": True, "scale_output": False,
  "inner_dropout": False, "init": "xavier",
}  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> EncoderDecoder:
  """The module of one configuration."""
  return EncoderDecoder(cfg, st, vocab_size=vocab_size)
