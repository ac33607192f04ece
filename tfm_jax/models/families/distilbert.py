"""DistilBERT (Sanh et al. 2019): BERT without token types and with half of its layers."""

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
    embed_norm=True,
    head=HeadConfig(transform=True, bias=True, pooler="relu"),
  ),
  heads=EVERY_HEAD,
  objectives=("mlm", "electra"),
)
