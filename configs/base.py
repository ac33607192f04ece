"""What every experiment file starts from: the tree of all keys with their defaults, and sizes that recur."""

from tfm_jax.training.config import defaults as get_config

__all__ = ["SIZES", "get_config"]

SIZES = {
  "small": {"num_layers": 6, "embed_dim": 512, "num_heads": 8, "mlp_dim": 2048},
  "base": {"num_layers": 12, "embed_dim": 768, "num_heads": 12, "mlp_dim": 3072},
  "large": {"num_layers": 24, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096},
}
