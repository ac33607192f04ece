"""`Sweep`: the points of a sweep, what is still to run, and what is said and written about it."""

import dataclasses
import logging
import math
import statistics
from collections.abc import Iterator

from tfm_jax.errors import UserError, nearest
from tfm_jax.runtime.reporting.units import human_seconds
from tfm_jax.tasks.sweeps import adaptive, results
from tfm_jax.tasks.sweeps.page import sweep_page
from tfm_jax.tasks.sweeps.runs import FAILED, FINISHED, WAITING, Folder, Metric, SweepRun
from tfm_jax.tasks.sweeps.space import Space, point_text
from tfm_jax.tasks.sweeps.worker import replace

log = logging.getLogger(__name__)


class Sweep:
  """The points of a sweep and what is still to do.

  Args:
    space: what is tried.
    folder: where.
    metric: what points are ranked by.
    seeds: of the runs of each point; None: one run, with the seed of the configuration.
    jobs: runs at a time, for the remaining time.
  """

  def __init__(self, space: Space, folder: Folder, metric: Metric, seeds: list[int] | None, jobs: int) -> None:
    self.space, self.folder, self.metric, self.seeds, self.jobs = space, folder, metric, seeds, jobs
    values = space.points
    if space.kind == "optuna":  # points of an earlier start
      values = tuple(known for _, known in folder.known if set(known) == set(space.dimensions))[: space.count]
    self.points = [folder.point(point, seeds) for point in values]
    self._total = space.count * len(seeds or [None])
    self._seconds: list[float] = []
    runs = self._runs()
    if done := sum(run.status == FINISHED for run in runs):
      log.info("%d of %d runs are finished already, in %s", done, self._total, folder.path)

  def _runs(self) -> list[SweepRun]:
    return [run for point in self.points for run in point.runs]

  def _waiting(self) -> Iterator[SweepRun]:
    """What is to run, in order: all points with the first seed, then with the next; adaptive ones point by point."""
    points, count = self.points, len(self.seeds or [None])
    by_seed = [point.runs[i] for i in range(count) for point in points]
    return (run for run in (self._runs() if self.space.kind == "optuna" else by_seed) if run.status == WAITING)

  def take(self) -> SweepRun | None:
    """The next run; None if there is none (now)."""
    run = next(self._waiting(), None)
    if run is None and self.space.kind == "optuna" and len(self.points) < self.space.count:
      known = [(point.values, point.mean(self.metric) if point.done else None) for point in self.points]
      values = adaptive.propose(self.space.dimensions, known, self.metric.larger_is_better, self.space.seed)
      if values is None:  # all there are
        self.space = dataclasses.replace(self.space, count=len(self.points))
        self._total = len(self._runs())
        return None
      self.points.append(self.folder.point(values, self.seeds))
      run = next(self._waiting(), None)
    if run is not None:
      done = sum(other.status != WAITING for other in self._runs())
      log.info("run %d of %d starts: %s", done + 1, self._total, run.name)
    return run

  def ended(self, run: SweepRun) -> None:
    """Reports the end of a run, and writes the results so far."""
    left = self._total - sum(other.status in (FINISHED, FAILED) for other in self._runs())
    if run.status == FINISHED:
      self._seconds.append(run.seconds)
      found = self.metric.of(run.records)
      score = f"{self.metric.name} {results.number(found[1])}" if found else self._missing(run)
      log.info("%s finished in %s: %s; %s", run.name, human_seconds(run.seconds), score, self._progress(left))
    elif run.status == FAILED:
      log.error("%s failed: %s; log: %s; %s", run.name, run.error, run.folder / "log.txt", self._progress(left))
    else:
      log.info("%s interrupted after %s", run.name, human_seconds(run.seconds))
    self.write(active=left > 0)

  def _progress(self, left: int) -> str:
    """The best so far, and the time that the rest will take if runs take as long as those of this start."""
    top = results.best(self.points, self.metric)
    parts = [f"best so far {results.score_text(top, self.metric)} ({top.text})"] if top else []
    if left and self._seconds:
      ended = sum(run.status in (FINISHED, FAILED) for run in self._runs())
      seconds = statistics.fmean(self._seconds) * math.ceil(left / self.jobs)
      parts.append(f"{ended} of {self._total} done, about {human_seconds(seconds)} left")
    else:
      parts.append(f"{left} left" if left else "none left")
    return "; ".join(parts)

  def _missing(self, run: SweepRun) -> str:
    """Why a finished run has no score."""
    names = sorted({name for record in run.records for name in record} - {"step", "split"})
    if not names:
      return f"no {self.metric.name}: nothing is held out"
    similar = nearest(self.metric.name, names)
    hint = (
      f"did you mean --metric={similar}?"
      if similar and similar != self.metric.name
      else f"there are {', '.join(names)}"
    )
    return f"no finite {self.metric.name}; {hint}"

  def write(self, active: bool = False) -> None:
    """Writes sweep.json and sweep.html."""
    config, path = self.folder.config, self.folder.path
    replace(path / "sweep.json", results.to_json(config, self.folder.overrides, self.space, self.points, self.metric))
    replace(path / "sweep.html", sweep_page(config, self.space, self.points, self.metric, active))

  def summary(self) -> str:
    """The table, the best configuration, and where the rest is."""
    lines = ["", results.table(self.points, self.metric, list(self.space.dimensions)), ""]
    top = results.best(self.points, self.metric)
    if top:
      lines += [f"best: {point_text(top.values)}", results.command(self.folder.config, top), ""]
    return "\n".join([*lines, f"written: {self.folder.path / 'sweep.html'}, sweep.json"])

  def check(self) -> None:
    """Raises UserError if runs failed, or none has the metric."""
    failed = results.failures(self.points)
    if failed:
      name, error = failed[0]
      raise UserError(f"{len(failed)} of {self._total} runs failed (the same command tries again); {name}: {error}")
    finished = [run for run in self._runs() if run.status == FINISHED]
    if finished and not any(self.metric.of(run.records) for run in finished):
      raise UserError(f"no run has a score: {self._missing(finished[0])}")
