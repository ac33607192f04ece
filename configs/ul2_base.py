r"""UL2 at base size (Tay et al. 2022): T5 1.1 with SwiGLU that learns from seven denoisers, each named by a mode token.

  python train.py --config=configs/ul2_base.py --workdir=runs/ul2 \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/ul2_base.py:c4 --workdir=runs/ul2_c4

500,000 steps of 128 rows of 512 tokens in and up to 512 out, as in the paper's ablations. The mode tokens are the last
three sentinels. 247,577,856 parameters with a vocabulary of 32,128. Measured: not yet run to the end.
"""

from configs import t5_base

VARIANTS = ("text", "c4")


def get_config(variant="text"):
  c = t5_base.get_config("1.1").unlock()
  c.objective.name, c.model.activation = "ul2", "silu"
  c.data.target_len = 512
  c.train.update({"batch_size": 128, "steps": 500_000})
  if variant == "c4":
    c.data.update({"source": "tfds", "path": "c4/en"})
  return c.lock()
