r"""Paraphrases (MRPC): are two sentences the same in meaning?

  python train.py --config=configs/mrpc.py
  python train.py --config=configs/mrpc.py --workdir=runs/mine \
    --config.data.path=train.tsv --config.data.eval_path=dev.tsv
  python train.py --config=configs/mrpc.py:base --config.init_from=runs/bert_base

The files are tables in the form of GLUE. Without paths, the training file is TFM_DATA_DIR/mrpc, of which a tenth is
held out. The variant `base` fine-tunes a BERT-base. Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.get_config(variant)
  c.task.name = "mrpc"
  c.data.update(task.files("mrpc", "train.tsv.gz", ""))
  c.data.update({"seq_len": 128, "eval_fraction": 0.1})
  return c.lock()
