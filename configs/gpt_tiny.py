r"""A small GPT that learns to write English prose on two CPU cores, from 54 novels of 1847 to 1927.

  python train.py --config=configs/gpt_tiny.py
  python train.py --config=configs/gpt_tiny.py --workdir=runs/mine --config.data.path='stories/*.txt.gz'
  python -m tfm_jax.decode --workdir=runs/gpt_tiny --prompt="The old man" --temperature=0.8 --top_p=0.9

Without paths, the text is that of the novels in TFM_DATA_DIR, one paragraph a line. Measured: held-out loss 3.78 nats
per piece, 1.563 bits per byte, in 37 minutes beside other work; what it writes is in docs/generation.md.
"""

import os

from configs import base


def get_config():
  c = base.get_config()
  c.family, c.objective.name = "gpt", "causal"
  c.model.update({"num_layers": 4, "embed_dim": 256, "num_heads": 4, "positions": "rotary"})
  c.model.update({"dropout": 0.0, "attention_dropout": 0.0})
  c.tokenizer.update({"algorithm": "bpe", "vocab_size": 4096})
  root = os.path.join(os.environ.get("TFM_DATA_DIR", "."), "novels")
  c.data.update({"source": "text", "path": os.path.join(root, "train-*.txt.gz"), "seq_len": 128})
  c.data.eval_path = os.path.join(root, "valid.txt.gz")
  c.optimizer.update({"learning_rate": 2e-3, "schedule": "cosine", "final_fraction": 0.1, "warmup_steps": 200})
  c.optimizer.update({"weight_decay": 0.1, "beta2": 0.98})
  c.train.update({"batch_size": 32, "steps": 4000, "log_every": 100})
  c.eval.update({"every": 1000, "batches": 16})
  return c.lock()
