r"""Similarity of two sentences (STS-B), a number from 0 to 5, scored by Pearson's and Spearman's correlations.

  python train.py --config=configs/stsb.py
  python train.py --config=configs/stsb.py --workdir=runs/mine \
    --config.data.path=train.tsv --config.data.eval_path=dev.tsv
  python train.py --config=configs/stsb.py:base --config.init_from=runs/bert_base

The files are GLUE's train.tsv and dev.tsv, by default in TFM_DATA_DIR/stsb. The variant `base` fine-tunes a BERT-base.
Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.get_config(variant)
  c.task.name = "stsb"
  c.data.update(task.files("stsb", "train.tsv", "dev.tsv"))
  c.data.seq_len = 128
  return c.lock()
