r"""Crammed BERT (Geiping and Goldstein 2023): the best BERT of one day on one GPU. A pre-norm encoder without
biases and dropout, with GELU gates, 25 % masked, AdamW at a one-cycle rate.

  python train.py --config=configs/crammed_bert.py --workdir=runs/crammed \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

Rows of 128 tokens; the paper's batch grows to 4,096 rows, here it is 4,096 from the start, for 75,000 steps or as many
as a day allows. The rate rises for half of the steps and falls to 0. 119,983,104 parameters with a
vocabulary of 32,768. Measured: not yet run.
"""

from configs import base


def get_config():
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "bert", "mlm", "fsdp"
  c.model.update({"num_layers": 16, "embed_dim": 768, "num_heads": 12, "mlp_dim": 1536, "gated": True})
  c.model.update({"norm_order": "pre", "bias": "norm", "dropout": 0.0, "attention_dropout": 0.0, "token_types": 0})
  c.head.update({"transform": False, "bias": False})
  c.tokenizer.update({"kind": "wordpiece", "vocab_size": 32_768})
  c.data.seq_len = 128
  c.objective.mask_rate = 0.25
  c.optimizer.update({"name": "adamw", "learning_rate": 1e-3, "schedule": "linear", "warmup_fraction": 0.5})
  c.optimizer.update({"weight_decay": 0.01, "beta2": 0.98, "epsilon": 1e-12, "grad_clip": 0.5})
  c.train.update({"batch_size": 4096, "steps": 75_000})
  c.eval.update({"every": 5000, "batches": 2})
  return c.lock()
