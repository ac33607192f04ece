r"""The Transformer of 2017 (Vaswani et al.), big: sequence to sequence. Without paired text it learns to continue: the
first part of a row -> the rest. For translation:

  python train.py --config=configs/transformer_big.py --workdir=runs/transformer_big \
    --config.data.source=parallel --config.data.path=train.en.gz --config.data.target_path=train.de.gz

214,245,376 parameters at 37,000 pieces. Measured: not yet run to the end.
"""

from configs import base


def get_config():
  return base.transformer("big").lock()
