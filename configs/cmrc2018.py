r"""Questions about passages in Chinese (CMRC 2018).

  python train.py --config=configs/cmrc2018.py
  python train.py --config=configs/cmrc2018.py --workdir=runs/mine \
    --config.data.path=train.json --config.data.eval_path=dev.json
  python train.py --config=configs/cmrc2018.py:base --config.init_from=runs/bert_base_chinese

The files are JSON in the form of SQuAD. Without paths, the file is TFM_DATA_DIR/cmrc2018/dev.json.gz, of which the
questions on a fifth of the passages are held out. The variant `base` fine-tunes a BERT-base. Measured: see
docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.get_config(variant)
  c.task.name = "question_answering"
  c.data.update(task.files("cmrc2018", "dev.json.gz", ""))
  c.data.update({"seq_len": 512, "eval_fraction": 0.2})
  return c.lock()
