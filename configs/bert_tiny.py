r"""BERT at the size of BERT-tiny (Turc et al. 2019: 2 layers of 128), pre-trained in half an hour on two CPU cores.

  python train.py --config=configs/bert_tiny.py
  python train.py --config=configs/bert_tiny.py --workdir=runs/mine --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/sst2.py --workdir=runs/sst2_tuned --config.init_from=runs/bert_tiny

Its model is that of the small tasks (configs/task.py), so that they start from it as they stand. Without paths, the
text is that of the English Wikipedia paragraphs and novels in TFM_DATA_DIR. Measured: held-out loss 3.81 nats per
masked token; what tasks gain is in docs/tasks.md.
"""

import os

from configs import task

STEPS = 3000


def get_config():
  c = task.get_config()
  c.objective.update({"name": "mlm", "mask_rate": 0.2})
  root = os.environ.get("TFM_DATA_DIR", ".")
  text = [os.path.join(root, name) for name in ("wiki_paragraphs/train.txt.gz", "novels/train-*.txt.gz")]
  held_out = os.path.join(root, "wiki_paragraphs", "valid.txt.gz")
  c.data.update({"source": "text", "path": ",".join(text), "eval_path": held_out, "seq_len": 128, "buckets": 1})
  c.model.update({"dropout": 0.0, "attention_dropout": 0.0})
  c.optimizer.update({"learning_rate": 2e-3, "weight_decay": 0.01, "schedule": "linear", "warmup_fraction": 0.05})
  c.train.update({"batch_size": 128, "steps": STEPS, "log_every": 100})
  c.eval.update({"every": 1000, "batches": 8})
  return c.lock()
