"""Tracking: where the numbers of a run go. metrics.jsonl, TensorBoard, and a console that people read."""

import contextlib
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import TqdmWarning, tqdm

from tfm_jax.training.run_directory import RunDirectory

with warnings.catch_warnings():
  # In a notebook it misses ipywidgets, for a bar that is not ours.
  warnings.simplefilter("ignore", TqdmWarning)
  from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0  # at most one training line this often, where there is no bar


class Sink(Protocol):
  """Something that takes rows."""

  def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None: ...

  def sync(self) -> None: ...

  def close(self) -> None: ...


class Tracker:
  """Sends each row to metrics.jsonl, TensorBoard and the console. On processes that do not write, nowhere.

  Args:
    run: the run directory.
    total_steps: the step at which training ends.
    resume_step: the step of the restored checkpoint, None for a fresh start; later rows and events are cut.
  """

  def __init__(self, run: RunDirectory, total_steps: int, resume_step: int | None = None) -> None:
    self._sinks: list[Sink] = []
    self._stack = contextlib.ExitStack()
    if not run.writes:
      return
    self._sinks.append(_Metrics(run, resume_step))
    if run.is_local:
      self._sinks.append(_TensorBoard(run, resume_step))
    else:
      log.info("no TensorBoard events in %s: tensorboardX writes to local directories only", run.path)
    self._sinks.append(Console(total_steps, resume_step or 0))

  def __enter__(self) -> "Tracker":
    self._stack.enter_context(logging_redirect_tqdm())  # log lines go above the bar, not through it
    return self

  def __exit__(self, *_: object) -> None:
    with self._stack:
      self.close()

  def log(self, split: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes a row: split `train` or `eval`; metrics name -> number or array scalar (waits for it)."""
    row = {name: float(value) for name, value in metrics.items()}
    for sink in self._sinks:
      sink.log(split, step, row)

  def sync(self) -> None:
    """Returns when every row logged so far is on disk: to be called before each checkpoint."""
    for sink in self._sinks:
      sink.sync()

  def close(self) -> None:
    """Syncs and closes everything."""
    for sink in self._sinks:
      sink.close()
    self._sinks = []


class _Metrics:
  """Rows for metrics.jsonl."""

  def __init__(self, run: RunDirectory, resume_step: int | None) -> None:
    self._writer = run.open_metrics(resume_step)
    self.sync, self.close = self._writer.sync, self._writer.close

  def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
    self._writer.write({"step": step, "split": split, **metrics})


class _TensorBoard:
  """Scalars for TensorBoard, tagged `split/name`.

  Not by `SummaryWriter`: its `flush` does not wait for the thread that writes.
  """

  def __init__(self, run: RunDirectory, resume_step: int | None) -> None:
    if resume_step is None:
      run.tensorboard.rmtree(missing_ok=True)
    run.tensorboard.mkdir(parents=True, exist_ok=True)
    self._writer = EventsWriter(str(run.tensorboard / "events"))
    if resume_step is not None:
      # TensorBoard drops the events from this step on: those that the resumed run writes again.
      again = SessionLog(status=SessionLog.START)
      self._writer.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=again))
    self.sync, self.close = self._writer.flush, self._writer.close

  def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
      summary = scalar(f"{split}/{name}", value)
      self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))


class Console:
  """A progress bar on a terminal; elsewhere a line now and then. Evaluations always get a line.

  Args:
    total_steps: the step at which training ends.
    start_step: the step that it starts from.
    clock: seconds, monotonic.
  """

  def __init__(self, total_steps: int, start_step: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
    self._total, self._clock = total_steps, clock
    self._last: tuple[float, int] | None = None  # when the last training line was printed, and its step
    # disable=None: no bar where stderr is not a terminal.
    self._bar = tqdm(
      total=total_steps, initial=start_step, unit="step", disable=None, file=sys.stderr, dynamic_ncols=True
    )

  def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
    if split == "train" and not self._bar.disable:
      self._bar.set_postfix(_shown(metrics), refresh=False)
      self._bar.update(step - self._bar.n)
      return
    parts = [
      f"{split} step {step}/{self._total}",
      *(f"{name} {text}" for name, text in _shown(metrics).items()),
    ]
    if split == "train":
      now, last = self._clock(), self._last
      if last is not None and now - last[0] < LINE_SECONDS and step < self._total:
        return
      if last is not None and last[1] < step < self._total:  # not from the first line: that step compiles
        parts.append(f"ETA {human_seconds((now - last[0]) / (step - last[1]) * (self._total - step))}")
      self._last = now, step
    log.info("%s", "  ".join(parts))

  def sync(self) -> None:
    """Nothing to do: lines are written at once."""

  def close(self) -> None:
    self._bar.close()


def _shown(metrics: Mapping[str, float]) -> dict[str, str]:
  """What of a row the console shows."""
  shown = {
    name: f"{metrics[name]:.4g}" for name in ("loss", "accuracy", "perplexity", "bits_per_byte") if name in metrics
  }
  if "tokens_per_second" in metrics:
    shown["tokens/s"] = human_count(metrics["tokens_per_second"])
  return shown


@dataclass(frozen=True)
class ParameterRow:
  """One line of the start-up table."""

  path: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]  # logical axes, one a dimension
  shard: tuple[int, ...]  # the shape of the part that one device holds
  bytes: int  # of that part


def parameter_table(rows: Iterable[ParameterRow]) -> str:
  """The table as text; its totals are the number of elements, and the bytes on one device."""
  rows = list(rows)
  cells = [("parameter", "shape", "axes", "shard", "bytes")]
  for row in rows:
    axes = ", ".join(axis or "-" for axis in row.axes)
    cells.append((row.path, _times(row.shape), axes, _times(row.shard), human_bytes(row.bytes)))
  elements = sum(math.prod(row.shape) for row in rows)
  cells.append(("total", human_count(elements), "", "", human_bytes(sum(row.bytes for row in rows))))
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
  rule = "-" * max(map(len, lines))
  return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _times(shape: tuple[int, ...]) -> str:
  """A shape for people."""
  return " x ".join(map(str, shape)) or "scalar"


def human_count(count: float) -> str:
  """A number in three significant digits: 950, 12.3k, 124M, 1.56B, 2.1T."""
  return _scaled(count, 1000.0, ("", "k", "M", "B", "T"))


def human_bytes(count: float) -> str:
  """A number of bytes in binary units: 512 B, 1.5 KiB, 3.07 MiB, 139 GiB."""
  return _scaled(count, 1024.0, (" B", " KiB", " MiB", " GiB", " TiB"))


def human_seconds(seconds: float) -> str:
  """A duration by its two largest units: 12s, 3m20s, 5h07m, 2d04h."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds}s"
  if seconds < 3600:
    return f"{seconds // 60}m{seconds % 60:02d}s"
  if seconds < 86400:
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
  return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
  """A number with the unit that leaves it below the base, in three significant digits."""
  if not math.isfinite(value):
    return f"{value}{units[0]}"
  index = 0
  while index < len(units) - 1 and abs(value) >= base - 0.5:
    value, index = value / base, index + 1
  digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
  text = f"{value:.{digits}f}"
  return (text.rstrip("0").rstrip(".") if "." in text else text) + units[index]
