r"""ModernBERT-base (Warner et al. 2024): rotary positions, GEGLU, local attention in two of three layers, 30 % masked.

  python train.py --config=configs/modernbert_base.py --workdir=runs/modernbert \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/modernbert_base.py:long --workdir=runs/modernbert_long \
    --config.init_from=runs/modernbert --config.data.source=text --config.data.path='corpus/*.txt.gz'

The first phase: rows of 1,024 tokens, 4,608 a batch, about 1.7 trillion tokens. `:long` goes on with rows of 8,192 and
a rotary base of 160,000 also where attention is global. It departs from the authors' training in this: AdamW instead of
StableAdamW, no dropout (they have 0.1 on attention's output), the whole batch from the start (theirs grows from 768 to
4,608 rows), no third phase in which the rate decays, and held-out rows with 30 % masks (theirs have 15 %).
149,655,232 parameters with a vocabulary of 50,368. Measured: not yet run to the end.
"""

from configs import base

VARIANTS = ("short", "long")


def get_config(variant="short"):
  long = variant == "long"
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "modernbert", "mlm", "fsdp"
  c.model.update({"num_layers": 22, "embed_dim": 768, "num_heads": 12, "mlp_dim": 1152})
  c.rotary.base = 160_000.0 if long else 10_000.0
  c.tokenizer.update({"kind": "gpt2", "vocab_size": 50_368})
  c.data.seq_len = 8192 if long else 1024
  c.objective.update({"mask_rate": 0.3})
  rate = 3e-4 if long else 8e-4
  c.optimizer.update({"name": "adamw", "schedule": "constant", "learning_rate": rate})
  # The authors' decay of 1e-5 is per step at the peak of the rate; ours is a factor of the rate.
  c.optimizer.update({"warmup_steps": 0 if long else 640, "weight_decay": 1e-5 / rate, "beta2": 0.98, "epsilon": 1e-6})
  c.train.update({"batch_size": 576 if long else 4608, "steps": 53_000 if long else 360_000})
  c.eval.update({"every": 5000, "batches": 1})
  return c.lock()
