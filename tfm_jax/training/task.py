"""What a run trains on: a task supplies batches, a loss and a report; the loop does the rest."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from tfm_jax.models.model import Model
from tfm_jax.objectives.objective import Fields
from tfm_jax.text.tokenizers import Tokenizer
from tfm_jax.training.loss import LossFunction

Batch = Mapping[str, np.ndarray]


class Task(Protocol):
  """A batch is a dictionary of arrays [rows, ...] with the task's `fields`; `rows` selects rows of the global batch."""

  @property
  def tokenizer(self) -> Tokenizer:
    """Text <-> ids; stored with the run."""

  @property
  def fields(self) -> Fields:
    """The arrays of a batch by name."""

  @property
  def fingerprints(self) -> Mapping[str, str]:
    """Of what decides the batches: a run is not resumed on others."""

  def train_batches(self, start: int, stop: int, rows: np.ndarray | None) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for the steps from start to stop - 1: a pure function of the step."""

  def eval_batches(self, rows: np.ndarray | None) -> Iterator[Batch]:
    """The held-out batches, always the same."""

  def loss(self, model: Model) -> LossFunction:
    """The loss, see `tfm_jax.training.loss`."""

  def eval_metrics(self, loss: float) -> dict[str, float]:
    """What else belongs into a row of evaluation, from its mean loss in nats."""

  def report(self, model: Model, params: Any, metrics: Mapping[str, float]) -> list[str]:
    """Lines to print at the end of a run. `metrics`: the last row of evaluation, empty without held-out text."""
