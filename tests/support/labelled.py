"""Tasks on files: examples and rows without training data, and small trainings."""

import dataclasses
from pathlib import Path
from typing import Any

from tests.support.launching import tiny, write_experiment
from tfm_jax.models.model import resolve_model
from tfm_jax.tasks.labelled.task import LabelledTask
from tfm_jax.tasks.table import find_task
from tfm_jax.text.tokenizers.table import Tokenizer, TokenizerConfig, train_tokenizer
from tfm_jax.training.config import Config
from tfm_jax.training.loop import fit

TOKENIZER = train_tokenizer(
  TokenizerConfig("char"), ["abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,?0123456789é"]
)


def reading(name: str, **task: Any) -> Config:
  """A configuration for reading the files of a task."""
  return dataclasses.replace(Config(), task=dataclasses.replace(Config().task, name=name, **task))


def task_of(
  name: str,
  seq_len: int = 32,
  head: dict[str, Any] | None = None,
  tokenizer: Tokenizer = TOKENIZER,
  family: str = "bert",
  **task: Any,
) -> LabelledTask:
  """A task without training data, as for a trained model."""
  kind, config = find_task(name), reading(name, **task)
  model = resolve_model(family, {"head.name": kind.head_name, **(head or {})})
  data = dataclasses.replace(config.data, seq_len=seq_len)
  config = dataclasses.replace(config, family=family, model=model, data=data)
  return kind.of_run(config, tokenizer)


def read(task: LabelledTask, path: Path, labelled: bool = False) -> list[Any]:
  """The examples of a file."""
  return task.read(task.config, [path], labelled, {})


def small(name: str, train: Path, held_out: Path | None = None, family: str = "bert", **overrides: Any) -> Config:
  """The configuration of a tiny model that learns a task from a file; it is held out as well unless another one is."""
  settings = {"task__name": name, "data__path": str(train), "data__eval_path": str(held_out or train)}
  settings |= {"data__seq_len": 32, "eval__every": 0, "eval__batches": 0}
  return tiny(write_experiment(train.parent / "experiment"), family, **(settings | overrides))


def learn(name: str, train: Path, held_out: Path | None = None, **overrides: Any) -> dict[str, float]:
  """Trains the model of `small` in the folder "run" beside the file. Returns the metrics of the held-out file."""
  config = small(name, train, held_out, **overrides)
  return fit(config, train.parent / "run", find_task(config.task.name))
