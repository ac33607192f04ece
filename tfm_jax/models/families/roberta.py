"""RoBERTa (Liu et al. 2019): BERT without token types; its position table begins with two rows for padding."""

from tfm_jax.models.config import HeadConfig, ModelConfig
from tfm_jax.models.family import EVERY_HEAD, Family
from tfm_jax.models.networks.single import Single

FAMILY = Family(
  module=Single,
  preset=ModelConfig(
    max_positions=514,
    position_offset=2,
    dropout=0.1,
    attention_dropout=0.1,
    norm_order="post",
    token_types=1,
    embed_norm=True,
    head=HeadConfig(transform=True, activation="gelu", bias=True, pooler="tanh"),
  ),
  heads=EVERY_HEAD,
  objectives=("mlm", "electra"),
)
