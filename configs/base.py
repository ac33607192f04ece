"""The keys of every experiment, with their defaults: `get_config()` returns them as a ConfigDict.

An experiment file imports this one, or another experiment, and sets what differs:

  from configs import base

  VARIANTS = ("small", "large")  # optional


  def get_config(variant="small"):
    c = base.get_config()
    c.family, c.objective.name = "gpt", "causal"
    c.model.num_layers = {"small": 4, "large": 12}[variant]
    c.train.update({"steps": 10_000, "batch_size": 64})
    return c.lock()

`--config=FILE.py` runs get_config(), and `--config=FILE.py:large` runs get_config("large"). VARIANTS lists the
arguments that get_config takes, for the error that any other one gets. `python train.py --help` explains the keys. Keys
of the model that are not set (None) have the family's values.
"""

from tfm_jax.training.keys.tree import defaults as get_config

__all__ = ["get_config"]
