r"""A word-level comparison on WikiText-2: an LSTM of two layers (Zaremba et al. 2014), or with `:gru` a GRU and with
`:gpt` a GPT of as many parameters.

  python train.py --config=configs/lstm_lm.py
  python train.py --config=configs/lstm_lm.py:gpt
  python -m tfm_jax.tasks --task=language_modeling --workdir=runs/lstm_lm \
    --data=$TFM_DATA_DIR/wikitext2/valid.txt.gz --out=runs/lstm_lm_words

The files are those of WikiText-2 in TFM_DATA_DIR; --config.data.path and --config.data.eval_path name others.
Parameters with 8,000 pieces: LSTM 3,098,624, GRU 3,096,200, GPT 3,107,024. Measured: with train.steps=2600,
perplexity per word 352 (LSTM), 246 (GRU), 266 (GPT); see docs/architectures.md.
"""

import os

from configs import base

VARIANTS = ("lstm", "gru", "gpt")
# family -> layers, width, peak of the learning rate
SIZES = {"lstm": (2, 256, 3e-3), "gru": (2, 274, 3e-3), "gpt": (4, 184, 1e-3)}


def get_config(variant="lstm"):
  c = base.get_config()
  c.family, c.objective.name = variant, "causal"
  layers, width, rate = SIZES[variant]
  c.model.update({"num_layers": layers, "embed_dim": width, "dropout": 0.2})
  if variant == "gpt":
    c.model.update({"num_heads": 4, "positions": "rotary", "attention_dropout": 0.0})
  c.tokenizer.vocab_size = 8000
  root = os.path.join(os.environ.get("TFM_DATA_DIR", "."), "wikitext2")
  files = {"path": os.path.join(root, "train.txt.gz"), "eval_path": os.path.join(root, "valid.txt.gz")}
  c.data.update(files | {"source": "text", "document": "file", "seq_len": 128})
  c.optimizer.update({"learning_rate": rate, "schedule": "linear", "warmup_fraction": 0.05, "weight_decay": 0.01})
  c.optimizer.update({"beta2": 0.98, "grad_clip": 1.0})
  c.train.update({"batch_size": 16, "steps": 4000, "log_every": 100})
  c.eval.update({"every": 1000, "batches": 0})
  return c.lock()
