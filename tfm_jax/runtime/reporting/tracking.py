"""`Tracker`: sends the metrics of a run to metrics.jsonl, TensorBoard, the console and, if asked, Weights & Biases."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import TqdmWarning, tqdm

from tfm_jax.errors import UserError
from tfm_jax.runtime.reporting.logs import PACKAGE
from tfm_jax.runtime.reporting.units import human_count, human_seconds
from tfm_jax.runtime.run_directory import RunDirectory

with warnings.catch_warnings():
  # In a notebook tqdm warns that ipywidgets is missing, for a kind of bar that is not used here.
  warnings.simplefilter("ignore", TqdmWarning)
  from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0  # between training lines, where there is no bar
# Metric -> its name on the console, and how many digits are shown.
_ON_CONSOLE = {
  "loss": ("loss", 4),
  "accuracy": ("accuracy", 4),
  "f1": ("f1", 4),
  "exact_match": ("exact_match", 4),
  "matthews": ("matthews", 4),
  "pearson": ("pearson", 4),
  "bleu": ("bleu", 4),
  "rougeL": ("rougeL", 4),
  "perplexity": ("perplexity", 4),
  "bits_per_byte": ("bits_per_byte", 4),
  "bits_per_pixel": ("bits_per_pixel", 4),
  "zero_shot_accuracy": ("zero_shot", 4),
  "learning_rate": ("lr", 3),
  "grad_norm": ("grad_norm", 3),
}


class Sink(Protocol):
  """A destination of records."""

  def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None: ...

  def sync(self) -> None: ...

  def close(self) -> None: ...


class Tracker:
  """Sends each record to metrics.jsonl, TensorBoard and the console; on processes that do not write, does nothing.

  A context manager: log lines are kept out of the progress bar while it is open.

  Args:
    run: the run directory.
    total_steps: the step at which training ends.
    resume_step: the step of the restored checkpoint, None at the start of a run; later records and events are removed.
    wandb: a project at Weights & Biases; empty: none. See `check_wandb`.
  """

  def __init__(self, run: RunDirectory, total_steps: int, resume_step: int | None = None, wandb: str = "") -> None:
    self._sinks: list[Sink] = []
    self._stack = contextlib.ExitStack()
    if not run.writes:
      return
    if wandb:
      self._sinks.append(_Wandb(run, wandb))  # the one that can fail comes before any file is changed
    self._sinks.append(_Metrics(run, resume_step))
    if run.is_local:
      self._sinks.append(_TensorBoard(run, resume_step))
    else:
      log.info("no TensorBoard events in %s: tensorboardX writes to local directories only", run.path)
    self._sinks.append(Console(total_steps, resume_step or 0))

  def __enter__(self) -> "Tracker":
    if any(isinstance(sink, Console) and sink.has_bar for sink in self._sinks):
      # Log lines go above the bar, not through it. Loggers without a console handler would be given one.
      loggers = [logger for logger in (logging.getLogger(), logging.getLogger(PACKAGE)) if _on_console(logger)]
      self._stack.enter_context(logging_redirect_tqdm(loggers))
    return self

  def __exit__(self, *_: object) -> None:
    with self._stack:
      self.close()

  def log(self, split: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Logs one record.

    Args:
      split: `train`, `eval` or another stream of held-out data.
      step: the number of steps taken.
      metrics: name -> number or array scalar, for which it waits.
    """
    record = {name: float(value) for name, value in metrics.items()}
    for sink in self._sinks:
      sink.log(split, step, record)

  def sync(self) -> None:
    """Returns when every record logged so far is on disk. Call it before each checkpoint."""
    for sink in self._sinks:
      sink.sync()

  def close(self) -> None:
    """Syncs and closes everything."""
    for sink in self._sinks:
      sink.close()
    self._sinks = []


class _Metrics:
  """Writes metrics.jsonl."""

  def __init__(self, run: RunDirectory, resume_step: int | None) -> None:
    self._writer = run.open_metrics(resume_step)
    self.sync, self.close = self._writer.sync, self._writer.close

  def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
    self._writer.write({"step": step, "split": split, **metrics})


class _TensorBoard:
  """Writes scalars for TensorBoard, tagged `split/name`.

  It does not use `SummaryWriter`, whose `flush` does not wait for the thread that writes.
  """

  def __init__(self, run: RunDirectory, resume_step: int | None) -> None:
    if resume_step is None:
      run.tensorboard.rmtree(missing_ok=True)
    run.tensorboard.mkdir(parents=True, exist_ok=True)
    self._writer = EventsWriter(str(run.tensorboard / "events"))
    if resume_step is not None:
      # TensorBoard drops earlier events from this step on, which the resumed run writes again.
      start = SessionLog(status=SessionLog.START)
      self._writer.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))
    self.sync, self.close = self._writer.flush, self._writer.close

  def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
      summary = scalar(f"{split}/{name}", value)
      self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))


def check_wandb(project: str) -> None:
  """Raises UserError if records are to be sent to Weights & Biases, and its package is not installed."""
  if project and importlib.util.find_spec("wandb") is None:
    raise UserError(f"train.wandb={project}: wandb is not installed: pip install -e '.[wandb]'")


class _Wandb:
  """Sends records to Weights & Biases, as `split/name`; a resumed run goes on as the same run there.

  Of steps that are repeated after a crash, it keeps what it has: they are the same.

  Raises:
    UserError: there is no key, or no connection.
  """

  def __init__(self, run: RunDirectory, project: str) -> None:
    import wandb

    first = json.dumps(run.starts()[:1], sort_keys=True)  # it has a random id, and moves with the run
    id = hashlib.sha256(first.encode()).hexdigest()[:16]
    folder = str(run.path) if run.is_local else None
    try:
      self._run = wandb.init(
        project=project, id=id, resume="allow", name=run.path.name, config=run.read_config(), dir=folder
      )
    except (wandb.errors.Error, ValueError, OSError) as error:
      reason = " ".join(str(error).split())
      raise UserError(f"train.wandb={project}: {reason}: run wandb login, or set WANDB_MODE=offline") from error
    self.close = self._run.finish

  def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
    self._run.log({f"{split}/{name}": value for name, value in metrics.items()}, step=step)

  def sync(self) -> None:
    """Does nothing: records are sent in the background."""


class Console:
  """A progress bar on a terminal, elsewhere a line at most every `LINE_SECONDS`. Evaluations always have a line.

  Args:
    total_steps: the step at which training ends.
    start_step: the step at which this start begins.
    clock: returns monotonic seconds.
  """

  def __init__(self, total_steps: int, start_step: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
    self._total, self._clock = total_steps, clock
    self._last: tuple[float, int] | None = None  # time and step of the last training line
    # disable=None: no bar where stderr is not a terminal.
    self._bar = tqdm(
      total=total_steps, initial=start_step, unit="step", disable=None, file=sys.stderr, dynamic_ncols=True
    )

  @property
  def has_bar(self) -> bool:
    """Whether there is a progress bar."""
    return not self._bar.disable

  def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
    if split == "train" and self.has_bar:
      self._bar.set_postfix(_readable(metrics), refresh=False)
      self._bar.update(step - self._bar.n)
      return
    parts = [
      f"{split} step {step}/{self._total}",
      *(f"{name} {text}" for name, text in _readable(metrics).items()),
    ]
    if split == "train":
      now, last = self._clock(), self._last
      if last is not None and now - last[0] < LINE_SECONDS and step < self._total:
        return
      if last is not None and last[1] < step < self._total:
        parts.append(f"ETA {human_seconds((now - last[0]) / (step - last[1]) * (self._total - step))}")
      self._last = now, step
    log.info("%s", "  ".join(parts))

  def sync(self) -> None:
    """Does nothing: lines are written at once."""

  def close(self) -> None:
    self._bar.leave = self._bar.n >= self._total  # an interrupted run leaves no bar, which would show an earlier step
    self._bar.close()


def _on_console(logger: logging.Logger) -> bool:
  """Whether a handler of this very logger writes to stdout or stderr."""
  streams = (sys.stdout, sys.stderr)
  return any(isinstance(h, logging.StreamHandler) and h.stream in streams for h in logger.handlers)


def _readable(metrics: Mapping[str, float]) -> dict[str, str]:
  """The values of a record that the console shows, by their short names."""
  texts = {short: f"{metrics[name]:.{digits}g}" for name, (short, digits) in _ON_CONSOLE.items() if name in metrics}
  if "tokens_per_second" in metrics:
    texts["tokens/s"] = human_count(metrics["tokens_per_second"])
  return texts
