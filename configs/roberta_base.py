r"""RoBERTa-base (Liu et al. 2019): BERT-base without next sentences, on long rows in large batches, with new masks each
epoch: 500,000 steps of 8,192 rows of 512 tokens.

  python train.py --config=configs/roberta_base.py --workdir=runs/roberta \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/roberta_base.py:100k --workdir=runs/roberta_100k \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

`:100k` is the paper's comparison with BERT: 100,000 steps. Rows are packed with whole documents one after the other.
124,697,433 parameters with a vocabulary of 50,265. Measured: not yet run to the end.
"""

from configs import base

VARIANTS = ("500k", "100k")


def get_config(variant="500k"):
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "roberta", "mlm", "fsdp"
  c.model.update({"num_layers": 12, "embed_dim": 768, "num_heads": 12, "mlp_dim": 3072})
  c.tokenizer.update({"kind": "gpt2", "vocab_size": 50_265})
  c.data.seq_len = 512
  c.optimizer.update({"name": "adamw", "learning_rate": 6e-4, "schedule": "linear", "warmup_steps": 24_000})
  c.optimizer.update({"weight_decay": 0.01, "beta2": 0.98, "epsilon": 1e-6, "grad_clip": 0.0})
  c.train.update({"batch_size": 8192, "steps": 500_000 if variant == "500k" else 100_000})
  c.eval.update({"every": 5000, "batches": 1})
  return c.lock()
