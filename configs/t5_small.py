r"""T5 small (Raffel et al. 2020), span corruption, 512 tokens in and 114 out. `:1.1` is the variant with a
GEGLU, a free head and no dropout.

  python train.py --config=configs/t5_small.py --workdir=runs/t5_small
  python train.py --config=configs/t5_small.py:1.1 --workdir=runs/t5_small_1.1

60,506,624 parameters (1.0) and 76,961,152 (1.1) at 32,128 pieces. Measured: not yet run to the end.
"""

from configs import base


def get_config(version="1.0"):
  return base.t5("small", version).lock()
