"""ModernBERT (Warner et al. 2024): a pre-norm encoder with rotary positions, GEGLU and mostly local attention."""

from tfm_jax.models.config import HeadConfig, ModelConfig, RotaryConfig, WindowConfig
from tfm_jax.models.family import EVERY_HEAD, Family
from tfm_jax.models.networks.single import Single

FAMILY = Family(
  module=Single,
  preset=ModelConfig(
    max_positions=8192,
    positions="rotary",
    first_norm=False,
    gated=True,
    bias="none",
    embed_norm=True,
    init="gpt",
    rotary=RotaryConfig(base=160_000.0, local_base=10_000.0),
    window=WindowConfig(size=64, global_every=3),
    head=HeadConfig(transform=True, bias=True, classifier_transform=True),
  ),
  heads=EVERY_HEAD,
  objectives=("mlm", "electra"),
)
