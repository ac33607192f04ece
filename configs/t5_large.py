r"""T5 large (Raffel et al. 2020): the recipe of t5_small.py at another size. `:1.1` is the variant described there.

  python train.py --config=configs/t5_large.py --workdir=runs/t5_large \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/t5_large.py:1.1 --workdir=runs/t5_large_1.1 \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

737,668,096 parameters (1.0) and 783,150,080 (1.1) with a vocabulary of 32,128. Measured: not yet run to the end.
"""

from configs import t5_small

VARIANTS = ("1.0", "1.1")


def get_config(version="1.0"):
  c = t5_small.get_config(version)
  c.model.update({"num_layers": 24, "embed_dim": 1024, "num_heads": 16, "mlp_dim": {"1.0": 4096, "1.1": 2816}[version]})
  return c
