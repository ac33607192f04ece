r"""Sentiment of film reviews (SST-2): a small Transformer, trained from scratch on phrases with the labels 0 and 1.

  python train.py --config=configs/sst2.py
  python train.py --config=configs/sst2.py --workdir=runs/mine \
    --config.data.path=train.tsv --config.data.eval_path=dev.tsv

The files are tables with tabs between the columns; the classes are those in the training file. Without paths, they are
GLUE's in TFM_DATA_DIR/sst2. Predictions for the held-out rows are written to `predictions.jsonl` in the run directory.
Measured: 80.28 % of the 872 dev sentences are right after 3,000 steps (80.96 % at step 1,000), 6 minutes on two CPU
cores; one seed.
"""

import os

from configs import base


def get_config():
  c = base.get_config()
  c.family, c.task.name = "bert", "sequence_classification"
  c.model.update({"num_layers": 2, "embed_dim": 128, "num_heads": 4, "mlp_dim": 512, "positions": "rotary"})
  c.model.update({"norm_order": "pre", "embed_norm": False})
  c.head.update({"pooling": "mean", "pooler": "none"})
  c.tokenizer.vocab_size = 8000
  folder = os.path.join(os.environ.get("TFM_DATA_DIR", "."), "sst2")
  c.data.update({"path": os.path.join(folder, "train.tsv.gz"), "eval_path": os.path.join(folder, "dev.tsv.gz")})
  c.data.update({"source": "tsv", "seq_len": 64})
  c.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 100, "weight_decay": 0.1, "beta2": 0.98})
  c.train.update({"batch_size": 64, "steps": 3000, "log_every": 100})
  c.eval.update({"every": 500, "batches": 0})
  return c.lock()


def get_sweep():
  """What `python -m tfm_jax.tasks.sweep --config=configs/sst2.py` tries."""
  return {"optimizer.learning_rate": [3e-4, 1e-3, 3e-3], "model.dropout": [0.0, 0.1]}
