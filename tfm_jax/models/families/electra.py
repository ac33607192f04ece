"""ELECTRA (Clark et al. 2020): BERT with narrow embedding tables, as generator (head lm) or discriminator."""

from tfm_jax.models.config import HeadConfig, ModelConfig
from tfm_jax.models.family import EVERY_HEAD, Family
from tfm_jax.models.networks.single import Single

FAMILY = Family(
  module=Single,
  preset=ModelConfig(
    max_positions=512,
    dropout=0.1,
    attention_dropout=0.1,
    norm_order="post",
    norm_epsilon=1e-12,
    token_types=2,
    embed_norm=True,
    head=HeadConfig(transform=True, activation="gelu", bias=True),
  ),
  heads=EVERY_HEAD,
  objectives=("mlm", "electra"),
)
