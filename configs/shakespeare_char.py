r"""A character-level GPT on Tiny Shakespeare: size and number of steps are those of nanoGPT's recipe for a CPU.

  python train.py --config=configs/shakespeare_char.py --config.data.path=input.txt

`input.txt` (or .gz) is the Tiny Shakespeare file. Without data.path, it is TFM_DATA_DIR/tinyshakespeare/input.txt.gz.
Measured: held-out loss 1.772 nats per character after 2,000 steps with rotary positions (the default here), 1.896 with
--config.model.positions=learned.
"""

import os

from configs import base


def get_config():
  c = base.get_config()
  c.family, c.objective.name = "gpt", "causal"
  c.model.update({"num_layers": 4, "embed_dim": 128, "num_heads": 4, "positions": "rotary"})
  c.model.update({"dropout": 0.0, "attention_dropout": 0.0})
  c.tokenizer.kind = "char"
  c.data.update({"source": "text", "document": "file", "eval_fraction": 0.1, "seq_len": 64})
  c.data.path = os.path.join(os.environ.get("TFM_DATA_DIR", "."), "tinyshakespeare", "input.txt.gz")
  c.optimizer.update({"learning_rate": 1e-3, "schedule": "cosine", "final_fraction": 0.1, "warmup_steps": 100})
  c.optimizer.update({"weight_decay": 0.1, "beta2": 0.99})
  c.train.update({"batch_size": 12, "steps": 2000, "log_every": 100})
  c.eval.update({"every": 500, "batches": 0})
  return c.lock()
