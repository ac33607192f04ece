"""BERT (Devlin et al. 2018): a bidirectional post-norm encoder, only masked positions go through its head."""

from tfm_jax.models.config import HeadConfig, ModelConfig
from tfm_jax.models.towers import Single
from tfm_jax.sharding.placement import Placement

PRESET = ModelConfig(
  max_positions=512, dropout=0.1, attention_dropout=0.1, norm_order="post", norm_epsilon=1e-12, token_types=2,
  embed_norm=True, head=HeadConfig(transform=True, bias=True, pooler="tanh"),
)  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Single:
  """The module of one configuration."""
  return Single(cfg, st, vocab_size=vocab_size)
