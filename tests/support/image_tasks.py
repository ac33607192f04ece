"""Small tasks on pictures for tests."""

import jax

from tfm_jax.tasks.table import find_task
from tfm_jax.training.compiled.program import build_program
from tfm_jax.training.config import from_dict, resolve

SMALL = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "mlp_dim": 64, "dtype": "float32", "init": "xavier"}
OF_TASKS = {
  "image_classification": {
    "family": "vit",
    "model": SMALL,
    "head": {"pooling": "mean", "labels": "a|b|c|d", "num_labels": 4},
  },
  "image_modeling": {
    "family": "gpt",
    "objective": {"name": "causal"},
    "model": SMALL | {"dropout": 0.0, "attention_dropout": 0.0, "vocab_size": 5},
  },
  "image_text": {
    "family": "clip",
    "model": SMALL | {"max_positions": 32},
    "head": {"labels": "top left|top right|bottom left|bottom right", "num_labels": 4},
    "tokenizer": {"kind": "byte"},
  },
}


def config_of(name, data, steps=60, **sections):
  """The configuration of a small run."""
  values = {
    "seed": 1,
    "data": data | {"seq_len": 32, "prefetch": 0},
    "image": {"height": 8, "width": 8, "channels": 1} | ({} if name == "image_modeling" else {"patch": 4}),
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 5, "schedule": "constant"},
    "train": {"steps": steps, "batch_size": 32, "log_every": 10},
    "eval": {"every": 30, "batches": 0},
    "checkpoint": {"every": 30},
  }
  own = OF_TASKS[name] | {"task": {"name": name}}
  for section, keys in [*own.items(), *sections.items()]:
    values[section] = values.get(section, {}) | keys if isinstance(keys, dict) else keys
  return from_dict(values)


def task_of(name, data, **sections):
  """A task without a run."""
  kind = find_task(name)
  return kind(resolve(kind.configure(config_of(name, data, **sections))))


def program_of(task, devices=1):
  """The program of a task's configuration."""
  sizes = task.tokenizer.vocab_size if task.tokenizer else 0
  return build_program(task.config, sizes, task.fields, jax.devices()[:devices], loss=task.loss)
