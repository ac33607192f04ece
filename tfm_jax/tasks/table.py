"""The tasks by the name that `task.name` has in a configuration."""

from tfm_jax.errors import UserError
from tfm_jax.tasks.sequence_classification import SequenceClassification
from tfm_jax.training.pretraining import Pretraining
from tfm_jax.training.task import Task

TASKS: dict[str, type[Task]] = {
  "": Pretraining,
  "sequence_classification": SequenceClassification,
}


def find_task(name: str) -> type[Task]:
  """The task of that name, "" for pre-training. Raises UserError, which lists the names."""
  if name not in TASKS:
    raise UserError(f"task.name={name!r} is not one of {', '.join(filter(None, TASKS))}; empty: pre-training")
  return TASKS[name]
