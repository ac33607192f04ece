"""What a run trains on: a task supplies batches, a loss, metrics and a report; the loop does the rest."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from etils import epath

from tfm_jax.models.model import Model
from tfm_jax.objectives.objective import Fields
from tfm_jax.ops.losses import LossTerms
from tfm_jax.text.tokenizers import Tokenizer
from tfm_jax.training.config import Config
from tfm_jax.training.loss import LossFunction
from tfm_jax.training.run_directory import RunDirectory

Batch = Mapping[str, np.ndarray]
EvalStream = Callable[[np.ndarray | None], Iterator[Batch]]
"""rows -> the held-out batches, always the same; `rows` as in `Task.train_batches`."""


class Task(Protocol):
  """What a run learns. A class with this form is all that `fit` wants.

  Args:
    config: the resolved configuration, after `configure`.
    stored_tokenizer: the folder of the tokenizer that stands (of the run, or of that it starts from); None: a new one.
  """

  def __init__(self, config: Config, stored_tokenizer: epath.PathLike | None = None) -> None: ...

  @classmethod
  def configure(cls, config: Config) -> Config:
    """The configuration with what the task knows better: its head, and the classes that its data has."""

  @property
  def tokenizer(self) -> Tokenizer | None:
    """Text <-> ids, stored with the run; None where the data has no text."""

  @property
  def fields(self) -> Fields:
    """What the arrays of a batch hold."""

  @property
  def fingerprints(self) -> Mapping[str, str]:
    """Of what decides the batches: a run is not resumed on others."""

  def train_batches(self, start: int, stop: int, rows: np.ndarray | None) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for the steps from start to stop - 1: a pure function of the step.

    `rows`: indices of the rows of the global batch that are wanted; None: all.
    """

  @property
  def eval_streams(self) -> Mapping[str, EvalStream]:
    """Held-out data by the name that its rows of metrics have as `split`; the first is the one that `fit` returns."""

  def loss(self, model: Model) -> LossFunction:
    """The loss, see `tfm_jax.training.loss`; it may add metrics of its own."""

  def eval_metrics(self, split: str, totals: LossTerms) -> dict[str, float]:
    """What else belongs into a row of evaluation, from the sums over a stream."""

  def report(self, model: Model, params: Any, metrics: Mapping[str, float], run: RunDirectory) -> list[str]:
    """Lines to print at the end of a run, whose files it may add to. All processes call it.

    `metrics`: the last row of evaluation, empty without held-out data.
    """
