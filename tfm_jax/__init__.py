"""tfm_jax: pre-train Transformers of every family, on any mesh, with JAX.

    import tfm_jax

    config = tfm_jax.load("configs/quickstart.py", {"train.steps": 100})
    tfm_jax.fit(config, "runs/hundred")
    run = tfm_jax.load_run("runs/hundred")  # run.config, run.model, run.params, run.tokenizer

`load`, `load_run` and `Run` are imported when they are first used: worker processes that only tokenize import this
package too, and need no JAX.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from tfm_jax.training.config import Config, load
  from tfm_jax.training.load import Run, load_run
  from tfm_jax.training.task import Task

__all__ = ["Run", "fit", "load", "load_run"]

_HOMES = {"load": "tfm_jax.training.config", "load_run": "tfm_jax.training.load", "Run": "tfm_jax.training.load"}


def fit(config: "Config", workdir: "str | os.PathLike[str]", task: "type[Task] | None" = None) -> dict[str, float]:
  """Trains to `config.train.steps` in `workdir`, resuming an earlier start, as `python train.py` does.

  Args:
    config: see `load`.
    workdir: the run directory, local or gs://.
    task: what to train on; None: the task that `config.task.name` names, pre-training if that is empty.

  Returns:
    The last record of evaluation (loss and what else applies), empty without held-out data.

  Raises:
    UserError: a mistake in the configuration, the data or the directory, in one line.
  """
  from tfm_jax.tasks.table import find_task
  from tfm_jax.training import loop

  return loop.fit(config, workdir, task or find_task(config.task.name))


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
