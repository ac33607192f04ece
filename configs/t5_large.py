r"""T5 large (Raffel et al. 2020), span corruption, 512 tokens in and 114 out. `:1.1` is the variant with a
GEGLU, a free head and no dropout.

  python train.py --config=configs/t5_large.py --workdir=runs/t5_large
  python train.py --config=configs/t5_large.py:1.1 --workdir=runs/t5_large_1.1

737,668,096 parameters (1.0) and 783,150,080 (1.1) at 32,128 pieces. Measured: not yet run to the end.
"""

from configs import base


def get_config(version="1.0"):
  return base.t5("large", version).lock()
