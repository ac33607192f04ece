"""The best evaluation of a run, by `eval.metric`, and early stopping: both follow from the records of its evaluations.

Nothing else is stored that decides: a killed and resumed run reads its records again and goes on alike.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.runtime.run_directory import RunDirectory

_SMALLER = (
  "loss",
  "objective",
  "perplexity",
  "bits_per_byte",
  "bits_per_character",
  "bits_per_pixel",
  "error",
  "bio_faults",
)


def smaller_is_better(metric: str) -> bool:
  """Whether a smaller value of a metric is better: of losses, perplexities, errors and faults."""
  named = metric.startswith("loss_") or metric.endswith(("_loss", "_perplexity", "_error"))
  return metric in _SMALLER or named


class Best:
  """The best evaluation after step 0, and how many evaluations came after the last improvement.

  Evaluations that earlier starts did not choose by this metric may lack a checkpoint. They cannot be the best, but
  patience counts from them.

  Args:
    metric: the metric that decides; empty: none does.
    patience: evaluations without improvement after which a run ends; 0: it never does.

  Attributes:
    step: the step of the best evaluation that has a checkpoint; None: there is none yet.
    metrics: its metrics.
  """

  def __init__(self, metric: str, patience: int = 0) -> None:
    self.metric, self._patience = metric, patience
    self.step: int | None = None
    self.metrics: dict[str, float] = {}
    self._top = -math.inf
    self._waited = 0

  def replay(self, records: Iterable[Mapping[str, Any]], split: str, saved: Collection[int]) -> None:
    """Takes the evaluations of earlier starts: the records of a split, and the steps that have a checkpoint."""
    for record in records:
      if record["split"] == split:
        metrics = {name: value for name, value in record.items() if name not in ("step", "split")}
        self.add(record["step"], metrics, record["step"] in saved)

  def add(self, step: int, metrics: Mapping[str, Any], saved: bool = True) -> bool:
    """Takes an evaluation. Returns whether it is the best so far, so that its checkpoint is to be kept.

    Raises:
      UserError: the evaluation has no such metric.
    """
    if not self.metric:
      return False
    if self.metric not in metrics:
      raise UserError(f"eval.metric={self.metric!r} is not measured here: choose one of {', '.join(metrics)}")
    if step == 0:
      return False
    score = self._score(metrics)
    self._waited = 0 if score > self._top else self._waited + 1
    self._top = max(self._top, score)
    if not saved or score <= (self._score(self.metrics) if self.metrics else -math.inf):
      return False
    self.step, self.metrics = step, dict(metrics)
    return True

  def _score(self, metrics: Mapping[str, Any]) -> float:
    """The metric, negative if smaller is better; -inf if it was not finite, of which records have null."""
    value = metrics[self.metric]
    if value is None or not math.isfinite(value):
      return -math.inf
    return -value if smaller_is_better(self.metric) else float(value)

  def exhausted(self) -> bool:
    """Whether the run has waited long enough for an improvement."""
    return bool(self.metric) and 0 < self._patience <= self._waited

  def describe(self, split: str) -> dict[str, Any] | None:
    """The content of the run's file about it; None if no metric decides."""
    if not self.metric:
      return None
    return {"split": split, "metric": self.metric, "step": self.step, "value": self.metrics.get(self.metric)}


def best_step(run: RunDirectory, saved: Collection[int]) -> int | None:
  """The step of a run's best evaluation among the steps that have a checkpoint; None if no metric decides.

  The run's file says which metric decides. The step is found anew, as the run may have been killed between the
  evaluation and its checkpoint.
  """
  described = run.read_best()
  if described is None:
    return None
  best = Best(described["metric"])
  best.replay(run.read_metrics(), described["split"], saved)
  return best.step
