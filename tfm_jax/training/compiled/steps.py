"""The compiled train steps of a run: one per number of rows and length of rows."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfm_jax.runtime.reporting.meter import Work
from tfm_jax.training.compiled.lengths import batch_length
from tfm_jax.training.compiled.program import Program

log = logging.getLogger(__name__)


class Form(NamedTuple):
  """What a train step is compiled for.

  Attributes:
    rows: of the global batch.
    length: of the rows; 0 for a task of one length.
  """

  rows: int
  length: int


class TrainSteps:
  """Form of a batch -> the train step for it.

  Args:
    program: the program of the declared length and of the full batch.
    microbatches: the number into which the full batch is cut; those of smaller batches are as large.
    step: the train step of the declared form, compiled.
    lengths: see `Task.lengths`.
    culprit: what made the batches, for messages.
  """

  def __init__(self, program: Program, microbatches: int, step: Any, lengths: Sequence[int], culprit: str) -> None:
    self.microbatches, self._lengths, self._culprit = microbatches, tuple(lengths), culprit
    self._declared = Form(program.config.train.batch_size, lengths[-1] if lengths else 0)
    self._programs: dict[Form, tuple[Program, Any]] = {self._declared: (program, step)}

  def form(self, rows: int, batch: Mapping[str, np.ndarray]) -> Form:
    """The form of a batch of so many rows, of which it may be a part. Raises UserError if the task declares no rows of
    that length."""
    fields = self._programs[self._declared][0].fields
    return Form(rows, batch_length(batch, fields, self._lengths, self._culprit))

  def __contains__(self, form: Form) -> bool:
    return form in self._programs

  def __getitem__(self, form: Form) -> Any:
    return self._programs[form][1]

  def program(self, form: Form) -> Program:
    """The program whose step it is."""
    return self._programs[form][0]

  def compile(self, form: Form) -> None:
    """Compiles the step for one more form. All processes call it for the same batch."""
    begin = time.monotonic()
    program = self._programs[self._declared][0]
    program = program if form.rows == self._declared.rows else program.with_rows(form.rows)
    program = program if form.length == self._declared.length else program.at_length(form.length, self._declared.length)
    self._programs[form] = program, program.compile(self._parts(form.rows // program.placement.batch_shards))
    tokens, rows = f"rows of {form.length} tokens", f"batches of {form.rows} rows"
    described = rows if form.length == self._declared.length else tokens
    log.info("train step for %s: compiled in %.1f s", described, time.monotonic() - begin)
    self.work(form, None)  # counts its operations now, rather than while a step is timed

  def _parts(self, rows: int) -> int:
    """Into how many microbatches the `rows` of a shard are cut: each is no larger than those of the full batch."""
    most = self._declared.rows // self._programs[self._declared][0].placement.batch_shards // self.microbatches
    return next(parts for parts in range(1, rows + 1) if rows % parts == 0 and rows // parts <= most)

  def work(self, form: Form, batch: Mapping[str, np.ndarray] | None) -> Work:
    """What a step of that form computes; `batch`: the global batch, whose useful positions are counted."""
    program, _ = self._programs[form]
    segments = [name for name, field in program.fields.items() if field.kind == "segments"]
    useful = sum(int(np.count_nonzero(batch[name])) for name in segments) if batch is not None and segments else None
    return Work(form.rows * program.row_tokens, program.flops.full, useful)
