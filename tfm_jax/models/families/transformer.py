"""The Transformer of 2017 (Vaswani et al.): encoder-decoder, post-norm, sinusoidal positions, one token table."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.family import Family
from tfm_jax.models.networks.encoder_decoder import EncoderDecoder

FAMILY = Family(
  module=EncoderDecoder,
  preset=ModelConfig(
    dropout=0.1,
    positions="sinusoidal",
    norm_order="post",
    norm_epsilon=1e-6,
    activation="relu",
    scale_embed=True,
    init="xavier",
  ),
  heads=("lm",),
  objectives=("span_corruption", "seq2seq", "ul2", "bart"),
)
