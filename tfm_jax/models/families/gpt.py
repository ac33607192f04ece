"""GPT-2 (Radford et al. 2019): a causal pre-norm decoder with learned positions."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.family import DECODER_HEADS, Family
from tfm_jax.models.networks.single import Single

FAMILY = Family(
  module=Single,
  preset=ModelConfig(max_positions=1024, dropout=0.1, attention_dropout=0.1, activation="gelu_tanh", init="gpt"),
  causal=True,
  heads=DECODER_HEADS,
  objectives=("causal", "prefix_lm"),
)
