r"""Names in English news (CoNLL-2003): persons, places, organisations and others, scored by the F1 of entities.

  python train.py --config=configs/conll2003.py
  python train.py --config=configs/conll2003.py --workdir=runs/mine \
    --config.data.path=train.txt --config.data.eval_path=dev.txt
  python train.py --config=configs/conll2003.py:base --config.init_from=runs/bert_base

The files have one word per line, its tag in the last column. Without paths, they are in TFM_DATA_DIR/conll2003. The
variant `base` fine-tunes a BERT-base. Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.get_config(variant)
  c.task.name = "token_classification"
  c.data.update(task.files("conll2003", "train.txt.gz", "dev.txt.gz"))
  c.data.seq_len = 128
  if not variant:
    c.train.steps, c.eval.every = 1500, 250
  return c.lock()
