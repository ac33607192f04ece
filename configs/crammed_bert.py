r"""Crammed BERT (Geiping and Goldstein 2023): the best BERT of one day on one GPU. A pre-norm encoder without
biases and dropout, with GELU gates, 25 % masked, AdamW at a one-cycle rate.

  python train.py --config=configs/crammed_bert.py --workdir=runs/crammed \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

Rows of 128 tokens, 4,096 a batch, for 75,000 steps or as many as a day allows. The rate rises for half of the steps and
falls to 0. The paper's batch grows until 60 % of the day; here it does not, as the rate would then not have its peak in
the middle of the day. The paper multiplies the sinusoidal positions by a learned factor; here it is 1. 119,589,888
parameters with a vocabulary of 32,768. Measured: not yet run.
"""

from configs import base


def get_config():
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "bert", "mlm", "fsdp"
  c.model.update({"num_layers": 16, "embed_dim": 768, "num_heads": 12, "mlp_dim": 1536, "gated": True})
  c.model.update({"norm_order": "pre", "bias": "norm", "dropout": 0.0, "attention_dropout": 0.0, "token_types": 0})
  c.model.positions = "sinusoidal"
  c.head.update({"transform": False, "bias": False})
  c.tokenizer.update({"kind": "wordpiece", "vocab_size": 32_768})
  c.data.seq_len = 128
  c.objective.mask_rate = 0.25
  c.optimizer.update({"name": "adamw", "learning_rate": 1e-3, "schedule": "linear", "warmup_fraction": 0.5})
  c.optimizer.update({"weight_decay": 0.01, "beta2": 0.98, "epsilon": 1e-12, "grad_clip": 0.5})
  c.train.update({"batch_size": 4096, "steps": 75_000})
  c.eval.update({"every": 5000, "batches": 2})
  return c.lock()
