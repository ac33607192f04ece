"""Measuring the loop: rows of metrics one step late, and traces."""

import logging
import time
from collections.abc import Mapping

import jax
from etils import epath
from jax import Array

from tfm_jax.errors import UserError
from tfm_jax.training.tracking import Tracker

log = logging.getLogger(__name__)

MAX_SKIPPED = 10  # steps in a row that are not finite before a run gives up
PROFILED_STEPS = 3


class Meter:
  """Turns the metrics of steps into rows. It waits for a step only after the next one was handed to the device.

  Args:
    tracker: where rows go.
    log_every: steps between rows.
    tokens: positions of the global batch, padding included.
    flops: of one step, all devices together.
    peak: FLOP/s of all devices together, None if unknown (then rows have no `mfu`).
  """

  def __init__(self, tracker: Tracker, log_every: int, tokens: int, flops: float, peak: float | None) -> None:
    self._tracker, self._log_every, self._tokens, self._flops, self._peak = tracker, log_every, tokens, flops, peak
    self._pending: tuple[int, Mapping[str, Array], float] | None = None
    self._since = time.perf_counter()

  def resume(self) -> None:
    """The clock starts anew: what was done in between (evaluation, a checkpoint) belongs to no step."""
    self._since = time.perf_counter()

  def add(self, step: int, metrics: Mapping[str, Array], waited: float) -> None:
    """A step was handed to the device after `waited` seconds without a batch; the one before it is finished now."""
    previous, self._pending = self._pending, (step, metrics, waited)
    self._finish(previous)

  def finish(self) -> None:
    """Waits for the last step."""
    previous, self._pending = self._pending, None
    self._finish(previous)

  def _finish(self, pending: tuple[int, Mapping[str, Array], float] | None) -> None:
    if pending is None:
      return
    step, metrics, waited = pending
    skipped = int(metrics["skipped"])  # waits for the step
    now = time.perf_counter()
    seconds, self._since = now - self._since, now
    if skipped >= MAX_SKIPPED:
      raise UserError(
        f"loss, gradient or update was not finite in {skipped} steps in a row, up to step {step} (parameters were left "
        f"as they were): lower optimizer.learning_rate, lengthen optimizer.warmup_steps, or set model.dtype=float32"
      )
    if skipped:
      log.warning("step %d was left out: its loss or gradient was not finite", step)
    if step % self._log_every and step != 1:
      return
    row = {name: float(value) for name, value in jax.device_get(dict(metrics)).items() if name != "skipped"}
    row |= {
      "tokens_per_second": self._tokens / seconds,
      "step_seconds": seconds,
      "data_wait_seconds": waited,
    }
    if self._peak is not None:
      row["mfu"] = self._flops / seconds / self._peak
    self._tracker.log("train", step, row)


class Profiler:
  """Writes a trace of `PROFILED_STEPS` steps from step `at` on, for TensorBoard's profile page and Perfetto."""

  def __init__(self, directory: epath.Path, at: int) -> None:
    self._directory, self._at, self._running = directory, at, False

  def before(self, step: int) -> None:
    """To be called before step number `step` (from 0) is handed to the device."""
    if self._at and step == self._at:
      jax.profiler.start_trace(str(self._directory))
      self._running = True

  def after(self, step: int, result: Array) -> None:
    """To be called with a result of step number `step`."""
    if self._running and step + 1 >= self._at + PROFILED_STEPS:
      jax.block_until_ready(result)
      self.stop()

  def stop(self) -> None:
    """Ends a trace that is running."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      log.info("a trace of %d steps is in %s", PROFILED_STEPS, self._directory)
