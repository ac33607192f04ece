r"""BERT-large (Devlin et al. 2018): the recipe of bert_base.py at another size.

  python train.py --config=configs/bert_large.py --workdir=runs/bert_large \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

335,174,458 parameters with a vocabulary of 30,522. Measured: not yet run to the end.
"""

from configs import bert_base


def get_config():
  c = bert_base.get_config()
  c.model.update({"num_layers": 24, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096})
  return c
