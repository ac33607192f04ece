"""Evaluation of a model on held-out batches of a task."""

import logging
import math
from typing import Any

import jax
import numpy as np

from tfm_jax.training.compiled.program import Program
from tfm_jax.training.task import EvalStream, Task

log = logging.getLogger(__name__)


def evaluate_stream(
  program: Program, eval_step: Any, params: Any, task: Task, split: str, stream: EvalStream, rows: np.ndarray | None
) -> dict[str, float]:
  """The metrics of a stream, means over all of its batches; empty if there is nothing to predict.

  Args:
    program: of the model.
    eval_step: the program's `prediction_step` if the task `predicts`, otherwise its `eval_step`.
    params: the parameters that are evaluated.
    task: whose stream it is.
    split: the name of the stream.
    stream: the batches.
    rows: the rows of the global batch that this process has; None: all.
  """
  sums: list[Any] = []
  predictions: list[Any] = []
  pending: Any = None
  for batch in stream(rows):
    results = eval_step(params, program.put(batch, rows))
    program.settle(results)
    if not task.predicts:
      sums.append(results)
      continue
    sums.append(results[0])
    predictions += [] if pending is None else [jax.device_get(pending)]  # while the next ones are computed
    pending = results[1]
  predictions += [] if pending is None else [jax.device_get(pending)]
  if not sums:
    return {}
  totals = jax.tree.map(lambda *parts: math.fsum(map(float, parts)), *jax.device_get(sums))
  if not all(weight > 0 for _, weight in totals.loss.values()):
    log.warning("%s: nothing to predict in its %d batches: no evaluation", split, len(sums))
    return {}
  metrics = totals.means()
  del metrics["objective"]  # the same as the loss: evaluation has no label smoothing or z-loss
  return metrics | task.eval_metrics(split, totals, predictions)
