r"""BERT-base (Devlin et al. 2018), masked language modelling, 128 tokens: the paper's recipe without next-sentence
prediction, 1M steps of 256 rows. The paper trains the last 10 % of its steps on 512 tokens: to do so, continue with
--config.data.seq_len=512 --config.init_from=runs/bert_base.

  python train.py --config=configs/bert_base.py --workdir=runs/bert_base \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/bert_base.py:wikipedia --workdir=runs/bert_base_wikipedia

`:wikipedia` reads English Wikipedia from TensorFlow Datasets, as docs/data.md tells; the paper adds books.
109,514,298 parameters with a vocabulary of 30,522. Measured: not yet run to the end.
"""

from configs import base

VARIANTS = ("wikipedia",)


def get_config(variant=""):
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "bert", "mlm", "fsdp"
  c.model.update({"num_layers": 12, "embed_dim": 768, "num_heads": 12, "mlp_dim": 3072})
  c.tokenizer.vocab_size = 30_522
  c.data.seq_len = 128
  c.optimizer.update({"name": "adamw", "learning_rate": 1e-4, "schedule": "linear", "warmup_steps": 10_000})
  c.optimizer.update({"weight_decay": 0.01, "beta2": 0.999, "epsilon": 1e-6, "grad_clip": 1.0})
  c.train.update({"batch_size": 256, "steps": 1_000_000})
  c.eval.update({"every": 5000, "batches": 4})
  if variant == "wikipedia":
    c.data.update({"source": "tfds", "path": "wikipedia/20230601.en", "eval_fraction": 0.001})
  return c.lock()
