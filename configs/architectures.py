r"""Architectures side by side, at sizes for two CPU cores: what `python -m tfm_jax.tasks.architectures` trains.

  python -m tfm_jax.tasks.architectures --config=configs/architectures.py --out=runs/architectures
  python train.py --config=configs/architectures.py:lstm
  python train.py --config=configs/architectures.py:lstm-sst2 --config.init_from=runs/architectures_lstm

A variant NAME pre-trains an architecture on the novels in TFM_DATA_DIR, NAME-TASK fine-tunes it. The width of all but
the first (encoder) is chosen by the command, so that parameters are equal. Rows are 256 tokens of one text, so that
there is something distant to use. Measured: see
docs/architectures.md. The steps are few for masked language models and spans.
"""

import os

from configs import base, task

# name -> family, objective, layers, peak of the learning rate
ARCHITECTURES = {
  "encoder": ("bert", "mlm", 4, 1e-3),
  "decoder": ("gpt", "causal", 4, 1e-3),
  "encoder_decoder": ("t5", "span_corruption", 2, 1e-3),
  "lstm": ("lstm", "causal", 2, 3e-3),
  "gru": ("gru", "causal", 2, 3e-3),
  "lstm_encoder": ("lstm_encoder", "mlm", 2, 3e-3),
  "gru_encoder": ("gru_encoder", "mlm", 2, 3e-3),
  "lstm_encoder_decoder": ("lstm_encoder_decoder", "span_corruption", 2, 3e-3),
  "gru_encoder_decoder": ("gru_encoder_decoder", "span_corruption", 2, 3e-3),
}
# name -> task, folder and files, longest row, longest text that an encoder-decoder writes. Of the held-out texts none
# is cut, also with an encoder-decoder's prefix. Where both lengths are equal, short texts are padded less.
TASKS = {
  "sst2": ("sst2", ("sst2", "train.tsv.gz", "dev.tsv.gz"), 96, 16),
  "conll2003": ("token_classification", ("conll2003", "train.txt.gz", "dev.txt.gz"), 288, 288),
}
VARIANTS = (*ARCHITECTURES, *(f"{name}-{of}" for name in ARCHITECTURES for of in TASKS))
TRANSFORMERS = ("bert", "gpt")


def get_config(variant="encoder"):
  name, _, of_task = variant.partition("-")
  family, objective, layers, rate = ARCHITECTURES[name]
  c = base.get_config()
  c.family, c.objective.name = family, objective
  c.model.update({"num_layers": layers, "embed_dim": 128, "dropout": 0.0, "attention_dropout": 0.0})
  if family in (*TRANSFORMERS, "t5"):
    c.model.num_heads = 2
  if family in TRANSFORMERS:
    c.model.update({"positions": "rotary", "norm_order": "pre", "embed_norm": False})
  if family == "bert":
    c.head.update({"pooling": "mean", "pooler": "none"})
  c.tokenizer.update({"vocab_size": 8000, "sentinels": 100})
  c.optimizer.update({"learning_rate": rate, "weight_decay": 0.01, "beta2": 0.98, "warmup_fraction": 0.05})
  c.optimizer.update({"schedule": "linear", "grad_clip": 1.0})
  if of_task:
    fine_tuning(c, of_task, text="encoder_decoder" in name)
    return c.lock()
  root = os.path.join(os.environ.get("TFM_DATA_DIR", "."), "novels")
  text, held_out = (os.path.join(root, name) for name in ("train-*.txt.gz", "valid.txt.gz"))
  c.data.update({"source": "text", "path": text, "eval_path": held_out, "document": "file", "seq_len": 256})
  c.train.update({"batch_size": 16, "steps": 400, "log_every": 20})
  c.eval.update({"every": 200, "batches": 16})
  return c.lock()


def fine_tuning(c, name, text):
  """The settings of a task; an encoder-decoder writes classes and tags as text."""
  of_task, files, c.data.seq_len, longest = TASKS[name]
  c.task.name = "text_to_text" if text else of_task
  if text:
    c.task.source_task, c.data.target_len, c.objective.name = name, longest, "seq2seq"
  c.data.update(task.files(*files) | {"buckets": 3})
  c.model.dropout = 0.1
  c.optimizer.update({"learning_rate": c.optimizer.learning_rate / 2, "warmup_fraction": 0.1})
  c.train.update({"batch_size": 32, "steps": 250, "log_every": 50})
  c.eval.update({"every": 250, "batches": 0})
