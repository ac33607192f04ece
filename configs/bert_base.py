r"""BERT-base (Devlin et al. 2018), masked language modelling, 128 tokens: the paper's recipe without next-sentence
prediction. The paper trains the last 10 % of its steps on 512 tokens: go on with
--config.data.seq_len=512 --config.init_from=runs/bert_base.

  python train.py --config=configs/bert_base.py --workdir=runs/bert_base \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

109,514,298 parameters at 30,522 pieces. Measured: not yet run to the end.
"""

from configs import base


def get_config():
  return base.bert("base").lock()
