"""GPT-2 (Radford et al. 2019): a causal pre-norm decoder with learned positions."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.towers import Single
from tfm_jax.sharding.placement import Placement

PRESET = {
  "max_positions": 1024, "dropout": 0.1, "attention_dropout": 0.1, "positions": "learned", "norm": "layer",
  "norm_order": "pre", "norm_epsilon": 1e-5, "activation": "gelu_tanh", "gated": False, "bias": True, "tied": True,
  "token_types": 0, "embed_norm": False, "scale_attention": True, "scale_embed": False, "scale_output": False,
  "inner_dropout": False, "init": "gpt",
}  # fmt: skip


def build(cfg: ModelConfig, st: Placement, vocab_size: int) -> Single:
  """The module of one configuration."""
  return Single(cfg, st, causal=True, vocab_size=vocab_size)
