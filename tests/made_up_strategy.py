"""A strategy that the package does not have: the mlp's features alone are cut, over the mesh axis `model`."""

from tfm_jax.sharding.strategy import Strategy

STRATEGY = Strategy(
  (("batch", ("replica", "data")), ("mlp", ("model",)), ("act_mlp", ("model",))), preset=(("model", 2),)
)
