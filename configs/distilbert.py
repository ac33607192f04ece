r"""DistilBERT (Sanh et al. 2019): six layers that start from every second one of BERT-base and learn from it: 5 times
the soft loss at temperature 2, 2 times the loss of the masked tokens, and the cosine of the last hidden states.

  python -m tfm_jax.hf import --source=bert-base-uncased --workdir=runs/bert
  python train.py --config=configs/distilbert.py --workdir=runs/distilbert \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/quickstart.py --workdir=runs/teacher --config.train.steps=12000
  python train.py --config=configs/distilbert.py:small --workdir=runs/distilled

Three epochs in batches of 4,000 rows, on English Wikipedia (`:wikipedia` reads it from TensorFlow Datasets) and books.
The authors' code takes its soft loss at all tokens unless told otherwise, ours at the masked ones. `:small` distils two
layers from four, on two CPU cores in minutes. 66,985,530 parameters. Measured: not yet run; `:small`:
2.903 nats, its teacher 2.905 (docs/distillation.md)
"""

from configs import base, quickstart

VARIANTS = ("wikipedia", "small")


def get_config(variant=""):
  small = variant == "small"
  c = quickstart.get_config() if small else base.get_config()
  c.distill.update({"temperature": 2.0, "soft": 5.0, "hard": 2.0, "cosine": 1.0})
  c.init_from = c.distill.teacher = "runs/teacher" if small else "runs/bert"
  c.init_layers = "0,2" if small else "0,2,4,7,9,11"
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
  if variant == "wikipedia":
    c.data.update({"source": "tfds", "path": "wikipedia/20230601.en", "eval_fraction": 0.001})
  return c.lock()
