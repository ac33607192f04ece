r"""Acceptability of English sentences (CoLA), scored by the Matthews correlation.

  python train.py --config=configs/cola.py
  python train.py --config=configs/cola.py --workdir=runs/mine \
    --config.data.path=train.tsv --config.data.eval_path=dev.tsv
  python train.py --config=configs/cola.py:base --config.init_from=runs/bert_base

The files are tables in the form of GLUE. Without paths, they are GLUE's in TFM_DATA_DIR/cola. The variant `base`
fine-tunes a BERT-base. Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.get_config(variant)
  c.task.name = "cola"
  c.data.update(task.files("cola", "train.tsv.gz", "dev.tsv.gz"))
  c.data.seq_len = 64
  return c.lock()
