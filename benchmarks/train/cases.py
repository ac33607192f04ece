"""What is trained: a config of this repository and the keys that differ from it, one entry per shape."""

from typing import Any, NamedTuple

from tfm_jax.errors import UserError, nearest


class Case(NamedTuple):
  """One shape.

  Attributes:
    about: the shape in words.
    config: the experiment file.
    overrides: key -> value of what differs from it.
    needs_accelerator: whether a CPU is too slow for it; such cases run by default where an accelerator is found.
  """

  about: str
  config: str
  overrides: dict[str, Any]
  needs_accelerator: bool = False


# What both sides share: no dropout, AdamW with a constant learning rate after a warm-up, one device. The token tables
# have the recipe's size; the text is cut into fewer pieces, whose tokenizer is trained in seconds.
_SHARED: dict[str, Any] = {
  "model.dropout": 0.0,
  "model.attention_dropout": 0.0,
  "loss.z_loss": 0.0,
  "optimizer.name": "adamw",
  "optimizer.schedule": "constant",
  "optimizer.warmup_steps": 100,
  "optimizer.grad_clip": 1.0,
  "sharding.strategy": "dp",
  "tokenizer.vocab_size": 8192,
}


def _sized(layers: int, width: int, heads: int) -> dict[str, Any]:
  """The shared keys, and the keys of a model's size."""
  size = {"num_layers": layers, "embed_dim": width, "num_heads": heads, "mlp_dim": 4 * width}
  return _SHARED | {f"model.{name}": value for name, value in size.items()}


_SMALL = _sized(4, 512, 8)
_BYTES = {"model.vocab_size": 300, "tokenizer.kind": "byte"}
_T5 = {"optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.01}

CASES: dict[str, Case] = {
  "bert": Case(
    "BERT, 4 layers of 512, 128 tokens, 16 rows",
    "configs/bert_base.py",
    _SMALL | {"model.vocab_size": 30_522, "train.batch_size": 16},
  ),
  "gpt2": Case(
    "GPT-2, 4 layers of 512, 512 tokens, 4 rows",
    "configs/gpt2_small.py",
    _SMALL | {"model.vocab_size": 50_257, "data.seq_len": 512, "train.batch_size": 4},
  ),
  "t5": Case(
    "T5 1.0, 4 + 4 layers of 512, 256 tokens in and 64 out, 8 rows",
    "configs/t5_small.py",
    _SMALL | _T5 | {"model.vocab_size": 32_128, "data.seq_len": 256, "data.target_len": 64, "train.batch_size": 8},
  ),
  "characters": Case(
    "GPT-2, 4 layers of 128, 64 bytes, 12 rows: the size of configs/shakespeare_char.py",
    "configs/gpt2_small.py",
    _sized(4, 128, 4) | _BYTES | {"data.seq_len": 64, "train.batch_size": 12},
  ),
  "bert_base_128": Case(
    "BERT-base, 128 tokens, 256 rows",
    "configs/bert_base.py",
    _SHARED | {"model.vocab_size": 30_522, "train.batch_size": 256},
    needs_accelerator=True,
  ),
  "bert_base_512": Case(
    "BERT-base, 512 tokens, 64 rows",
    "configs/bert_base.py",
    _SHARED | {"model.vocab_size": 30_522, "data.seq_len": 512, "train.batch_size": 64},
    needs_accelerator=True,
  ),
  "gpt2_small": Case(
    "GPT-2 small, 1,024 tokens, 32 rows",
    "configs/gpt2_small.py",
    _SHARED | {"model.vocab_size": 50_257, "train.batch_size": 32},
    needs_accelerator=True,
  ),
  "t5_base": Case(
    "T5 1.1 base, 512 tokens in and 114 out, 64 rows",
    "configs/t5_base.py:1.1",
    _SHARED | _T5 | {"model.vocab_size": 32_128, "train.batch_size": 64},
    needs_accelerator=True,
  ),
  "tiny": Case(
    "GPT-2, 2 layers of 32, 16 tokens, 8 rows: to try the command, too small to compare anything",
    "configs/gpt2_small.py",
    _sized(2, 32, 4) | _BYTES | {"data.seq_len": 16, "train.batch_size": 8},
  ),
}


def find_case(name: str) -> Case:
  """The case of that name. Raises UserError, which lists the names."""
  if name not in CASES:
    hint = f"; did you mean {similar}?" if (similar := nearest(name, CASES)) else ""
    raise UserError(f"--cases: {name!r} is not one of {', '.join(CASES)}{hint}")
  return CASES[name]


def default_cases(accelerator: bool) -> list[str]:
  """The names of the cases for a machine with or without an accelerator."""
  return [name for name, case in CASES.items() if case.needs_accelerator == accelerator and name != "tiny"]
