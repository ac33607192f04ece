r"""T5 base (Raffel et al. 2020): the recipe of t5_small.py at another size. `:1.1` is the variant described there, and
`:c4` is 1.0 on the paper's text, from TensorFlow Datasets, as docs/data.md tells.

  python train.py --config=configs/t5_base.py --workdir=runs/t5_base \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/t5_base.py:1.1 --workdir=runs/t5_base_1.1 \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/t5_base.py:c4 --workdir=runs/t5_base_c4

222,903,552 parameters (1.0) and 247,577,856 (1.1) with a vocabulary of 32,128. Measured: not yet run to the end.
"""

from configs import t5_small

VARIANTS = ("1.0", "1.1", "c4")


def get_config(variant="1.0"):
  version = "1.0" if variant == "c4" else variant
  c = t5_small.get_config(version)
  c.model.update({"num_layers": 12, "embed_dim": 768, "num_heads": 12, "mlp_dim": {"1.0": 3072, "1.1": 2048}[version]})
  if variant == "c4":
    c.data.update({"source": "tfds", "path": "c4/en"})
  return c
