"""What the configs of tasks share: a small model from scratch, or the fine-tuning of a BERT-base (variant `base`).

The small one trains in minutes on two CPU cores. Fine-tuning has the settings of Devlin et al. 2018, with the learning
rate in the middle of theirs.
"""

import os

from configs import base


def get_config(variant=""):
  c = base.get_config()
  c.family = "bert"
  c.data.buckets = 3
  c.eval.batches = 0
  c.optimizer.warmup_fraction = 0.1
  if variant == "base":
    c.model.update({"num_layers": 12, "embed_dim": 768, "num_heads": 12, "mlp_dim": 3072})
    c.optimizer.update({"learning_rate": 3e-5, "weight_decay": 0.01})
    c.train.update({"batch_size": 32, "epochs": 3.0})
    c.eval.every = 500
    return c
  if variant:
    raise ValueError(f"no such variant: {variant}; choose base")
  c.model.update({"num_layers": 2, "embed_dim": 128, "num_heads": 4, "mlp_dim": 512, "positions": "rotary"})
  c.model.update({"norm_order": "pre", "embed_norm": False})
  c.head.update({"pooling": "mean", "pooler": "none"})
  c.tokenizer.vocab_size = 8000
  c.optimizer.update({"learning_rate": 1e-3, "weight_decay": 0.1, "beta2": 0.98})
  c.train.update({"batch_size": 64, "steps": 3000, "log_every": 100})
  c.eval.every = 500
  return c


def files(folder, train, dev):
  """The paths of a data set in TFM_DATA_DIR."""
  root = os.path.join(os.environ.get("TFM_DATA_DIR", "."), folder)
  return {"path": os.path.join(root, train), "eval_path": os.path.join(root, dev) if dev else ""}
