r"""GPT-2 medium (Radford et al. 2019): the recipe of gpt2_small.py at another size, with a lower learning rate.

  python train.py --config=configs/gpt2_medium.py --workdir=runs/gpt2_medium \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

354,823,168 parameters with a vocabulary of 50,257. Measured: not yet run to the end.
"""

from configs import gpt2_small


def get_config():
  c = gpt2_small.get_config()
  c.model.update({"num_layers": 24, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096})
  c.optimizer.learning_rate = 3e-4
  return c
