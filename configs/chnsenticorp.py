r"""Sentiment of Chinese reviews (ChnSentiCorp).

  python train.py --config=configs/chnsenticorp.py
  python train.py --config=configs/chnsenticorp.py --workdir=runs/mine \
    --config.data.path=train.tsv --config.data.eval_path=dev.tsv
  python train.py --config=configs/chnsenticorp.py:base --config.init_from=runs/bert_base_chinese

The files are tables with tabs. Without paths, they are in TFM_DATA_DIR/chnsenticorp. The variant `base` fine-tunes a
BERT-base. Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.get_config(variant)
  c.task.name = "sequence_classification"
  c.data.update(task.files("chnsenticorp", "train.tsv.gz", "dev.tsv.gz"))
  c.data.seq_len = 256
  if not variant:
    c.train.steps, c.eval.every = 800, 200
  return c.lock()
