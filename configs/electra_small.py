r"""ELECTRA-Small (Clark et al. 2020): a generator of a quarter of the width fills masks, and the model finds
what it wrote.

  python train.py --config=configs/electra_small.py --workdir=runs/electra \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/electra_small.py:tiny --workdir=runs/electra_tiny

The paper's recipe: 128 rows of 128 tokens, 1M steps, 15 % of the tokens masked, 50 times the loss of the model beside
that of its generator, whose embeddings are the model's. `:tiny` has the model and the text of configs/bert_tiny.py, and
fewer steps, as one costs more. The model is fine-tuned from the run by init_from; its export is the model alone.
14,196,219 parameters with its generator and a vocabulary of 30,522. Measured: not yet run to the end.
"""

from configs import base, bert_tiny

VARIANTS = ("wikipedia", "tiny")


def get_config(variant=""):
  if variant == "tiny":
    return tiny()
  c = base.get_config()
  c.family, c.objective.name, c.head.name, c.sharding.strategy = "electra", "electra", "electra", "fsdp"
  c.model.update({"num_layers": 12, "embed_dim": 256, "num_heads": 4, "mlp_dim": 1024, "embedding_dim": 128})
  c.tokenizer.update({"kind": "wordpiece", "vocab_size": 30_522})
  c.data.seq_len = 128
  c.head.generator, c.loss.replaced = 0.25, 50.0
  c.optimizer.update({"name": "adamw", "learning_rate": 5e-4, "schedule": "linear", "warmup_steps": 10_000})
  c.optimizer.update({"weight_decay": 0.01, "beta2": 0.999, "epsilon": 1e-6, "grad_clip": 1.0})
  c.train.update({"batch_size": 128, "steps": 1_000_000})
  c.eval.update({"every": 5000, "batches": 8})
  if variant == "wikipedia":
    c.data.update({"source": "tfds", "path": "wikipedia/20230601.en", "eval_fraction": 0.001})
  return c.lock()


def tiny():
  """ELECTRA at the size of configs/bert_tiny.py."""
  c = bert_tiny.get_config().unlock()
  c.objective.update({"name": "electra", "mask_rate": 0.15})
  c.head.update({"name": "electra", "generator": 0.5})
  return c.lock()
