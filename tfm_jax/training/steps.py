"""The compiled train steps of a run: one per length of rows."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfm_jax.runtime.reporting.meter import Work
from tfm_jax.training.lengths import batch_length
from tfm_jax.training.program import Program

log = logging.getLogger(__name__)


class TrainSteps:
  """Length of rows -> the train step for batches of that length.

  Args:
    program: the program of the declared length.
    microbatches: the number that all steps use.
    step: the train step of the declared length, compiled.
    lengths: see `Task.lengths`.
    culprit: what made the batches, for messages.
  """

  def __init__(self, program: Program, microbatches: int, step: Any, lengths: Sequence[int], culprit: str) -> None:
    self._microbatches, self._lengths, self._culprit = microbatches, tuple(lengths), culprit
    self._declared = lengths[-1] if lengths else 0
    self._programs: dict[int, tuple[Program, Any]] = {self._declared: (program, step)}

  def length(self, batch: Mapping[str, np.ndarray]) -> int:
    """The length of the rows of a batch. Raises UserError if the task does not declare it."""
    return batch_length(batch, self._programs[self._declared][0].fields, self._lengths, self._culprit)

  def __contains__(self, length: int) -> bool:
    return length in self._programs

  def __getitem__(self, length: int) -> Any:
    return self._programs[length][1]

  def compile(self, length: int) -> None:
    """Compiles the step for one more length. All processes call it for the same batch."""
    begin = time.monotonic()
    program = self._programs[self._declared][0].at_length(length, self._declared)
    self._programs[length] = program, program.compile(self._microbatches)
    log.info("train step for rows of %d tokens: compiled in %.1f s", length, time.monotonic() - begin)
    self.work(length, None)  # counts its operations now, rather than while a step is timed

  def work(self, length: int, batch: Mapping[str, np.ndarray] | None) -> Work:
    """What a step of that length computes; `batch`: the global batch, whose useful positions are counted."""
    program, _ = self._programs[length]
    segments = [name for name, field in program.fields.items() if field.kind == "segments"]
    useful = sum(int(np.count_nonzero(batch[name])) for name in segments) if batch is not None and segments else None
    return Work(program.config.train.batch_size * program.row_tokens, program.flops.full, useful)
