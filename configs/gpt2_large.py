r"""GPT-2 large (Radford et al. 2019): the recipe of gpt2_small.py at another size, with a lower learning rate.

  python train.py --config=configs/gpt2_large.py --workdir=runs/gpt2_large \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

774,030,080 parameters with a vocabulary of 50,257. Measured: not yet run to the end.
"""

from configs import gpt2_small


def get_config():
  c = gpt2_small.get_config()
  c.model.update({"num_layers": 36, "embed_dim": 1280, "num_heads": 20, "mlp_dim": 5120})
  c.optimizer.learning_rate = 2.5e-4
  return c
