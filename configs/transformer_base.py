r"""The Transformer of Vaswani et al. 2017, base: sequence to sequence, with the paper's Adam, inverse square root
schedule and label smoothing. Without parallel text it learns to continue: the first part of a row -> the rest. For
translation:

  python train.py --config=configs/transformer_base.py --workdir=runs/transformer_base \
    --config.data.source=parallel --config.data.path=train.en.gz --config.data.target_path=train.de.gz
  python train.py --config=configs/transformer_base.py:wmt14 --workdir=runs/transformer_base_wmt14

`:wmt14` is the paper's English to German, from TensorFlow Datasets, as docs/data.md tells.
63,082,496 parameters with a vocabulary of 37,000. Measured: not yet run to the end.
"""

from configs import base

VARIANTS = ("wmt14",)


def get_config(variant=""):
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "transformer", "seq2seq", "fsdp"
  c.model.update({"num_layers": 6, "embed_dim": 512, "num_heads": 8, "mlp_dim": 2048, "dropout": 0.1})
  c.tokenizer.update({"algorithm": "bpe", "vocab_size": 37_000})
  c.data.update({"seq_len": 128, "target_len": 128})
  c.loss.label_smoothing = 0.1
  # The paper's D^-0.5 min(step^-0.5, step warmup^-1.5) has its peak, (D warmup)^-0.5, at `warmup_steps`.
  peak = (c.model.embed_dim * 4000) ** -0.5
  c.optimizer.update({"name": "adam", "learning_rate": peak, "schedule": "rsqrt", "warmup_steps": 4000})
  c.optimizer.update({"beta2": 0.98, "epsilon": 1e-9, "grad_clip": 0.0})
  # The paper's 25,000 tokens per side and step are about 196 full rows of 128.
  c.train.update({"batch_size": 192, "steps": 100_000})
  c.eval.every = 2000
  if variant == "wmt14":
    c.data.update({"source": "tfds", "path": "wmt14_translate/de-en", "field": "en", "target_field": "de"})
  return c.lock()
