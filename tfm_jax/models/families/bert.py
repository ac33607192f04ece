"""BERT (Devlin et al. 2018): a bidirectional post-norm encoder."""

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
    head=HeadConfig(transform=True, bias=True, pooler="tanh"),
  ),
  heads=EVERY_HEAD,
  objectives=("mlm", "nsp", "sop", "electra"),
)
