r"""GPT-2 large (Radford et al. 2019), causal language modelling on 1,024 tokens, nanoGPT's recipe.

  python train.py --config=configs/gpt2_large.py --workdir=runs/gpt2_large \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

774,030,080 parameters at 50,257 pieces. Measured: not yet run to the end.
"""

from configs import base


def get_config():
  return base.gpt2("large").lock()
