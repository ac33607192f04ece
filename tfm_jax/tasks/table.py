"""The tasks by the name that `task.name` has in a configuration."""

from tfm_jax.errors import UserError
from tfm_jax.tasks.generation import GENERATED, Generation
from tfm_jax.tasks.glue import GLUE
from tfm_jax.tasks.images.classification import ImageClassification
from tfm_jax.tasks.images.contrastive import ImageText
from tfm_jax.tasks.images.modeling import ImageModeling
from tfm_jax.tasks.multiple_choice import MultipleChoice
from tfm_jax.tasks.question_answering import QuestionAnswering
from tfm_jax.tasks.sequence_classification import SequenceClassification, SequenceRegression
from tfm_jax.tasks.similarity import Similarity
from tfm_jax.tasks.text_to_text import TextToText
from tfm_jax.tasks.token_classification import TokenClassification
from tfm_jax.training.pretraining import Pretraining
from tfm_jax.training.task import Task

TASKS: dict[str, type[Task]] = {
  "": Pretraining,
  "sequence_classification": SequenceClassification,
  "sequence_regression": SequenceRegression,
  "token_classification": TokenClassification,
  "question_answering": QuestionAnswering,
  "multiple_choice": MultipleChoice,
  "similarity": Similarity,
  **{name: SequenceRegression if glue.numbers else SequenceClassification for name, glue in GLUE.items()},
  **dict.fromkeys(GENERATED, Generation),
  "text_to_text": TextToText,
  "image_classification": ImageClassification,
  "image_modeling": ImageModeling,
  "image_text": ImageText,
}

LANGUAGE_MODELING, CHOICE, OBJECTIVE = "language_modeling", "choice", "objective"
"""Not tasks to train on: `python -m tfm_jax.tasks` evaluates language models by them, and by their own objective."""


def find_task(name: str) -> type[Task]:
  """The task of that name, "" for pre-training. Raises UserError, which lists the names."""
  if name not in TASKS:
    raise UserError(f"task.name={name!r} is not one of {', '.join(filter(None, TASKS))}; empty: pre-training")
  return TASKS[name]
