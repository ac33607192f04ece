r"""GPT-2 xl (Radford et al. 2019): the recipe of gpt2_small.py at another size, with a lower learning rate.

  python train.py --config=configs/gpt2_xl.py --workdir=runs/gpt2_xl \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

1,557,611,200 parameters with a vocabulary of 50,257. Measured: not yet run to the end.
"""

from configs import gpt2_small


def get_config():
  c = gpt2_small.get_config()
  c.model.update({"num_layers": 48, "embed_dim": 1600, "num_heads": 25, "mlp_dim": 6400})
  c.optimizer.learning_rate = 2e-4
  return c
