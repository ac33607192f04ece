"""What the configs of tasks share: a small model from scratch, or the fine-tuning of a large one (variant `base`).

`get_config` is for tasks with a head of their own: the small model is an encoder that trains in minutes on two CPU
cores, and a BERT-base is fine-tuned with the settings of Devlin et al. 2018, the learning rate in the middle of theirs.

`generation` is for tasks that generate: the small model is the Transformer of Vaswani et al. 2017 at a size for two
cores, with a byte pair encoding that both sides share, and a T5-base is fine-tuned as by Raffel et al. 2020.
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


def generation(variant=""):
  c = base.get_config()
  c.objective.name = "seq2seq"
  c.data.buckets = 3
  c.eval.update({"batches": 0, "generate_every": 1000})
  if variant == "base":
    c.family = "t5"
    c.model.update({"num_layers": 12, "embed_dim": 768, "num_heads": 12, "head_dim": 64, "mlp_dim": 3072})
    c.optimizer.update({"name": "adafactor", "learning_rate": 1e-3, "schedule": "constant", "grad_clip": 0.0})
    c.loss.z_loss = 1e-4
    c.train.update({"batch_size": 64, "epochs": 3.0})
    return c
  if variant:
    raise ValueError(f"no such variant: {variant}; choose base")
  c.family = "transformer"
  c.model.update({"num_layers": 3, "embed_dim": 256, "num_heads": 4, "mlp_dim": 1024, "dropout": 0.1})
  c.tokenizer.update({"algorithm": "bpe", "vocab_size": 8000})
  c.loss.label_smoothing = 0.1
  c.optimizer.update({"name": "adam", "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 500, "beta2": 0.98})
  c.train.update({"batch_size": 64, "steps": 5000, "log_every": 100})
  return c


def files(folder, train, dev):
  """The paths of a data set in TFM_DATA_DIR."""
  root = os.path.join(os.environ.get("TFM_DATA_DIR", "."), folder)
  return {"path": os.path.join(root, train), "eval_path": os.path.join(root, dev) if dev else ""}
