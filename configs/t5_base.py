r"""T5 base (Raffel et al. 2020), span corruption, 512 tokens in and 114 out. `:1.1` is the variant with a
GEGLU, a free head and no dropout.

  python train.py --config=configs/t5_base.py --workdir=runs/t5_base
  python train.py --config=configs/t5_base.py:1.1 --workdir=runs/t5_base_1.1

222,903,552 parameters (1.0) and 247,577,856 (1.1) at 32,128 pieces. Measured: not yet run to the end.
"""

from configs import base


def get_config(version="1.0"):
  return base.t5("base", version).lock()
