r"""DistilBERT (Sanh et al. 2019): six layers that start from every second one of BERT-base and learn from it: 5 times the
soft loss at temperature 2, 2 times that of the masked tokens, and the cosine of the last hidden states.

  python -m tfm_jax.hf import --source=bert-base-uncased --workdir=runs/bert
  python train.py --config=configs/distilbert.py --workdir=runs/distilbert \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  make train && python train.py --config=configs/distilbert.py:small --workdir=runs/distilled

Three epochs in batches of 4,000 rows; the paper's corpus is English Wikipedia and books. The authors' code reads its soft
loss at all tokens by default, ours at the masked ones. `:small` distils two layers from the four of configs/quickstart.py
in minutes on two CPU cores. 66,985,530 parameters. Measured: not yet run.
"""

from configs import base, quickstart

VARIANTS = ("base", "small")


def get_config(variant="base"):
  small = variant == "small"
  c = quickstart.get_config() if small else base.get_config()
  teacher = "runs/quickstart" if small else "runs/bert"
  c.init_from = c.distill.teacher = teacher
  c.init_layers = "0,2" if small else "0,2,4,7,9,11"
  c.distill.update({"temperature": 2.0, "soft": 5.0, "hard": 2.0, "cosine": 1.0})
  c.model.num_layers = 2 if small else 6
  if small:
    return c
  c.family, c.objective.name, c.sharding.strategy = "distilbert", "mlm", "fsdp"
  c.model.update({"embed_dim": 768, "num_heads": 12, "mlp_dim": 3072})
  c.tokenizer.vocab_size = 30_522
  c.data.seq_len = 512
  c.optimizer.update({"name": "adamw", "learning_rate": 5e-4, "schedule": "linear", "warmup_fraction": 0.05})
  c.optimizer.update({"warmup_steps": 0, "weight_decay": 0.0, "beta2": 0.98, "epsilon": 1e-6, "grad_clip": 5.0})
  c.train.update({"batch_size": 4000, "epochs": 3.0})
  c.eval.update({"every": 1000, "batches": 4})
  return c.lock()
