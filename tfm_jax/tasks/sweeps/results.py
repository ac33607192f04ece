"""The results of a sweep: sweep.json, the table on the terminal, and the best configuration as a command."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm_jax.runtime.reporting.units import human_seconds
from tfm_jax.tasks.sweeps.runs import FAILED, FINISHED, Metric, Point
from tfm_jax.tasks.sweeps.space import Space, short_keys, value_text


def ranked(points: Sequence[Point], metric: Metric) -> list[Point]:
  """The points, best mean first; those without a score last, in their order."""
  return sorted(points, key=lambda point: -metric.rank(point.mean(metric)))


def best(points: Sequence[Point], metric: Metric) -> Point | None:
  """The best point; None while there is no score."""
  first = next(iter(ranked(points, metric)), None)
  return first if first and first.mean(metric) is not None else None


def score_text(point: Point, metric: Metric) -> str:
  """Mean and, of several seeds, standard deviation."""
  mean, deviation = point.mean(metric), point.deviation(metric)
  if mean is None:
    return "-"
  return number(mean) if deviation is None else f"{number(mean)} ± {deviation:.2g}"


def number(value: float) -> str:
  """A score in a few digits."""
  return f"{value:.4f}" if 0.001 <= abs(value) < 10 else f"{value:.5g}"


def state_text(point: Point) -> str:
  """How far a point is: "finished", or what its runs are."""
  states = [run.status for run in point.runs]
  if len(set(states)) == 1:
    return states[0]
  return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def cells(points: Sequence[Point], metric: Metric, keys: Sequence[str]) -> tuple[list[str], list[list[str]]]:
  """(columns, rows) of the table, best first."""
  columns = ["", "point", *short_keys(keys).values(), metric.name, "seconds", "state"]
  rows = []
  for rank, point in enumerate(ranked(points, metric), 1):
    values = [value_text(point.values[key]) if key in point.values else "" for key in keys]
    times = [run.seconds for run in point.runs if run.status == FINISHED]
    seconds = human_seconds(sum(times) / len(times)) if times else "-"
    score = score_text(point, metric)
    rows.append([str(rank) if score != "-" else "-", f"{point.number:03d}", *values, score, seconds, state_text(point)])
  return columns, rows


def table(points: Sequence[Point], metric: Metric, keys: Sequence[str]) -> str:
  """The table for a terminal."""
  columns, rows = cells(points, metric, keys)
  widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
  line = lambda row: "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
  return "\n".join(map(line, [columns, *rows]))


def command(config: str, point: Point, lines: bool = False) -> str:
  """The point as a command, in one line or one flag per line. Of several seeds it has none: none of them was found."""
  overrides = dict(point.runs[0].overrides)
  if len(point.runs) > 1:
    overrides.pop("seed", None)
  name = Path(config.replace(".py", "").replace(":", "_")).name
  words = ["python", "train.py", f"--config={config}", f"--workdir=runs/{name}_best"]
  words += [f"--config.{key}={value}" for key, value in overrides.items()]
  between = " \\\n  " if lines else " "
  return between.join([shlex.join(words[:3]), *map(shlex.quote, words[3:])])


def failures(points: Sequence[Point]) -> list[tuple[str, str]]:
  """(name, error) of the runs that failed."""
  return [(run.name, run.error) for point in points for run in point.runs if run.status == FAILED]


def to_json(config: str, overrides: Mapping[str, str], space: Space, points: Sequence[Point], metric: Metric) -> str:
  """sweep.json: the points, best first."""
  top = best(points, metric)
  content: dict[str, Any] = {
    "config": config,
    "overrides": dict(overrides),
    "kind": space.kind,
    "metric": metric.name,
    "larger_is_better": metric.larger_is_better,
    "evaluation": metric.evaluation,
    "best": top and {"number": top.number, "values": top.values, "command": command(config, top)},
    "points": [_point(config, point, metric) for point in ranked(points, metric)],
  }
  return json.dumps(content, indent=2) + "\n"


def _point(config: str, point: Point, metric: Metric) -> dict[str, Any]:
  return {
    "number": point.number,
    "values": point.values,
    "mean": point.mean(metric),
    "deviation": point.deviation(metric),
    "command": command(config, point),
    "runs": [_run(run, metric) for run in point.runs],
  }


def _run(run: Any, metric: Metric) -> dict[str, Any]:
  step, value = metric.of(run.records) or (None, None)
  record: dict[str, Any] = next((r for r in run.records if r["step"] == step), {})
  metrics = {name: value for name, value in record.items() if name not in ("step", "split")}
  head = {"workdir": run.name, "seed": run.seed, "status": run.status, "error": run.error}
  return {**head, "seconds": round(run.seconds, 3), "step": step, metric.name: value, "metrics": metrics}
