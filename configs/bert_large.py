r"""BERT-large (Devlin et al. 2018): see bert_base.py.

  python train.py --config=configs/bert_large.py --workdir=runs/bert_large

335,174,458 parameters at 30,522 pieces. Measured: not yet run to the end.
"""

from configs import base


def get_config():
  return base.bert("large").lock()
