r"""GLUE (Wang et al. 2018), one variant per task, from TensorFlow Datasets: fine-tuning of a BERT-base with the
settings of Devlin et al. 2018.

  python train.py --config=configs/glue.py:mnli --workdir=runs/mnli --config.init_from=runs/bert_base
  python -m tfm_jax.tasks --workdir=runs/mnli --data=validation_mismatched --out=mismatched

The data sets have to be prepared below TFDS_DATA_DIR, see docs/data.md. Measured: not yet run to the end.
"""

from configs import task
from tfm_jax.tasks.glue import GLUE

VARIANTS = tuple(GLUE)


def get_config(variant="sst2"):
  c = task.get_config("base")
  c.task.name = variant
  c.data.update({"source": "tfds", "path": f"glue/{variant}", "seq_len": 128})
  return c.lock()
