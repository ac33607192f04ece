r"""Sentiment of film reviews (SST-2): a small Transformer, trained from scratch on phrases with the labels 0 and 1.

  python train.py --config=configs/sst2.py
  python train.py --config=configs/sst2.py --workdir=runs/mine \
    --config.data.path=train.tsv --config.data.eval_path=dev.tsv
  python train.py --config=configs/sst2.py:base --config.init_from=runs/bert_base

The files are tables with tabs between the columns; the classes are those in the training file. Without paths, they are
GLUE's in TFM_DATA_DIR/sst2. The variant `base` fine-tunes a BERT-base. Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.get_config(variant)
  c.task.name = "sst2"
  c.data.update(task.files("sst2", "train.tsv.gz", "dev.tsv.gz") | {"seq_len": 64})
  if not variant:
    # The phrases are parts of each other: without these the model learns them by heart after 500 steps.
    c.model.dropout, c.task.hide, c.train.ema = 0.2, 0.15, 0.999
    c.train.steps, c.eval.every = 1000, 250
  return c.lock()


def get_sweep():
  """What `python -m tfm_jax.tasks.sweep --config=configs/sst2.py` tries."""
  return {"optimizer.learning_rate": [3e-4, 1e-3, 3e-3], "model.dropout": [0.1, 0.2]}
