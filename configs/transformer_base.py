r"""The Transformer of 2017 (Vaswani et al.), base: sequence to sequence. Without paired text it learns to continue: the
first part of a row -> the rest. For translation:

  python train.py --config=configs/transformer_base.py --workdir=runs/transformer_base \
    --config.data.source=parallel --config.data.path=train.en.gz --config.data.target_path=train.de.gz

63,082,496 parameters at 37,000 pieces. Measured: not yet run to the end.
"""

from configs import base


def get_config():
  return base.transformer("base").lock()
