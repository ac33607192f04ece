"""T5 1.0 (Raffel et al. 2020): encoder-decoder, pre-norm RMSNorm, relative positions, no biases.

T5 1.1 is the same with a GEGLU, a free head and no dropout: see `configs/t5_base.py`.
"""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.family import Family
from tfm_jax.models.networks.encoder_decoder import EncoderDecoder

FAMILY = Family(
  module=EncoderDecoder,
  preset=ModelConfig(
    dropout=0.1,
    attention_dropout=0.1,
    positions="relative",
    norm="rms",
    norm_epsilon=1e-6,
    activation="relu",
    bias="none",
    scale_attention=False,
    scale_output="tied",
    inner_dropout=True,
    init="t5",
  ),
  heads=("lm",),
  objectives=("span_corruption", "seq2seq", "ul2", "bart"),
)
