"""Measurements of the loop: the records of training steps, and profiler traces."""

import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
from etils import epath
from jax import Array

from tfm_jax.errors import UserError
from tfm_jax.runtime.reporting.tracking import Tracker

log = logging.getLogger(__name__)

MAX_SKIPPED = 10  # consecutive steps whose update is not finite, after which a run ends
PROFILED_STEPS = 3  # in one trace
SETTLED = 5  # steps of a start before one is compared with its forecast


class Work(NamedTuple):
  """What one step computes, on all devices together.

  Attributes:
    tokens: positions of the global batch, padding included.
    flops: floating-point operations.
    useful: positions that are not padding; None: not counted.
  """

  tokens: int
  flops: float
  useful: int | None = None


class Meter:
  """Turns the metrics of training steps into records, with timings.

  It waits for a step only after the next one has been dispatched, so that accelerators never wait for the host.

  Args:
    tracker: takes the records.
    log_every: steps between records; step 1 has one as well.
    peak: peak FLOP/s of all devices together; None if unknown, then records have no `mfu`.
    done: (tokens, FLOP) of the steps before, which records count as well.
    forecast: seconds per step that were forecast, to be logged once beside a measured step; None: there is none.
  """

  def __init__(
    self,
    tracker: Tracker,
    log_every: int,
    peak: float | None,
    done: tuple[float, float] = (0.0, 0.0),
    forecast: float | None = None,
  ) -> None:
    self._tracker, self._log_every, self._peak = tracker, log_every, peak
    self._forecast, self._steps = forecast, 0
    self._tokens, self._flops = done
    self._pending: tuple[int, Mapping[str, Array], float, Work] | None = None
    self._since = time.perf_counter()

  def resume(self) -> None:
    """Restarts the clock, after work that belongs to no step: evaluation, or a checkpoint."""
    self._since = time.perf_counter()

  def add(self, step: int, metrics: Mapping[str, Array], waited: float, work: Work) -> None:
    """Takes the metrics of a step that was just dispatched, and writes the record of the step before it.

    Args:
      step: number of the step, from 1.
      metrics: name -> scalar that is still being computed.
      waited: seconds for which the loop waited for the batch of this step.
      work: what this step computes.
    """
    previous, self._pending = self._pending, (step, metrics, waited, work)
    self._finish(previous)

  def finish(self) -> None:
    """Waits for the last step that was added, and writes its record."""
    previous, self._pending = self._pending, None
    self._finish(previous)

  def _finish(self, pending: tuple[int, Mapping[str, Array], float, Work] | None) -> None:
    """Waits for a step and writes its record, if one is due. Raises UserError after too many skipped steps."""
    if pending is None:
      return
    step, metrics, waited, work = pending
    skipped = int(metrics["skipped"])  # waits for the step
    now = time.perf_counter()
    seconds, self._since = now - self._since, now
    self._steps += 1
    self._tokens, self._flops = self._tokens + work.tokens, self._flops + work.flops
    if skipped >= MAX_SKIPPED:
      raise UserError(
        f"loss, gradient or update was not finite in {skipped} steps in a row, up to step {step} (parameters were left "
        f"as they were): lower optimizer.learning_rate, lengthen optimizer.warmup_steps, or set model.dtype=float32"
      )
    if skipped:
      log.warning("step %d was skipped: its loss, gradient or update was not finite", step)
    if step % self._log_every and step != 1:
      return
    record = {name: float(value) for name, value in jax.device_get(dict(metrics)).items() if name != "skipped"}
    record |= {
      "tokens_per_second": work.tokens / seconds,
      "step_seconds": seconds,
      "data_wait_seconds": waited,
      "tokens": self._tokens,
      "flop": self._flops,
    }
    if work.useful is not None:
      record["useful_tokens_per_second"] = work.useful / seconds
    if self._peak is not None:
      record["mfu"] = work.flops / seconds / self._peak
    if self._forecast is not None and self._steps >= SETTLED:
      error = self._forecast / seconds - 1
      log.info("step %d took %.4g s; the forecast was %.4g s (%+.1f%%)", step, seconds, self._forecast, 100 * error)
      self._forecast = None
    self._tracker.log("train", step, record)


class Profiler:
  """Writes a trace of `PROFILED_STEPS` steps, for TensorBoard's profile page and Perfetto.

  Args:
    directory: the folder of the traces.
    at: the step, from 0, with which the trace starts; 0: no trace.
  """

  def __init__(self, directory: epath.Path, at: int) -> None:
    self._directory, self._at, self._running = directory, at, False

  def before(self, step: int) -> None:
    """Call it before step number `step`, from 0, is dispatched."""
    if self._at and step == self._at:
      jax.profiler.start_trace(str(self._directory))
      self._running = True

  def after(self, step: int, result: Array) -> None:
    """Call it with a result of step number `step`, from 0."""
    if self._running and step + 1 >= self._at + PROFILED_STEPS:
      jax.block_until_ready(result)
      self.stop()

  def stop(self) -> None:
    """Ends the trace if one is running."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      log.info("a trace of %d steps is in %s", PROFILED_STEPS, self._directory)
