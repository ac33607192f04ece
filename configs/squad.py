r"""Questions about passages of Wikipedia (SQuAD 1.1 and 2.0): the span that answers, scored by exact match and F1.

  python train.py --config=configs/squad.py
  python train.py --config=configs/squad.py --workdir=runs/mine \
    --config.data.path=train.json --config.data.eval_path=dev.json
  python train.py --config=configs/squad.py:base --config.init_from=runs/bert_base

The files are JSON in the form of SQuAD. Without paths, they are in TFM_DATA_DIR/squad_v1. The variant `base` fine-tunes
a BERT-base. Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.get_config(variant)
  c.task.name = "question_answering"
  c.data.update(task.files("squad_v1", "train.json.gz", "dev_a.json.gz"))
  c.data.seq_len = 384
  return c.lock()
