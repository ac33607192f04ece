"""The runs of a sweep: a folder each, in the sweep's folder, and what their files say.

    OUT/003_learning_rate=0.0003_seed=0/    point.json  log.txt  result.json, and the files of a run directory

`point.json` is written before a run starts, `result.json` once it is finished. The number of a point is that of its
first appearance in the folder, so that points can be added and removed without moving the others.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.tasks.sweeps.space import Values, point_name, point_text, value_text
from tfm_jax.tasks.sweeps.worker import RESULT, replace
from tfm_jax.training.best import smaller_is_better
from tfm_jax.training.config import changed_keys, from_stored, load, to_dict

POINT, LOG = "point.json", "log.txt"
WAITING, RUNNING, FINISHED, FAILED, INTERRUPTED = "waiting", "running", "finished", "failed", "interrupted"


@dataclasses.dataclass(frozen=True)
class Metric:
  """What points are ranked by.

  Attributes:
    name: as in metrics.jsonl.
    evaluation: whose value counts: "last", or "best" of the run.
  """

  name: str
  evaluation: str = "last"

  @property
  def larger_is_better(self) -> bool:
    """Not of losses, perplexities, bits and errors."""
    return not smaller_is_better(self.name)

  def of(self, records: Iterable[Mapping[str, Any]]) -> tuple[int, float] | None:
    """(step, value) in the records of evaluations; None: no evaluation has a finite one."""
    found = [(int(r["step"]), float(r[self.name])) for r in records if _finite(r.get(self.name))]
    if not found or self.evaluation == "last":
      return found[-1] if found else None
    return max(found, key=lambda pair: self.rank(pair[1]))

  def rank(self, value: float | None) -> float:
    """A number that is larger for a better value."""
    if value is None:
      return -math.inf
    return value if self.larger_is_better else -value


@dataclasses.dataclass
class SweepRun:
  """One point with one seed.

  Attributes:
    number: of the point, from 1.
    values: the point.
    seed: `config.seed` of the run.
    folder: the work directory.
    overrides: all keys that differ from the experiment file, as on a command line.
    config: the whole configuration, nested.
    status: waiting, running, finished, failed or interrupted.
    error: of a failed run, in one line.
    records: of a finished run: its evaluations on the first held-out stream.
    seconds: of its last start.
  """

  number: int
  values: Values
  seed: int
  folder: Path
  overrides: dict[str, str]
  config: dict[str, Any]
  status: str = WAITING
  error: str = ""
  records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  seconds: float = 0.0

  @property
  def name(self) -> str:
    """The folder's name."""
    return self.folder.name

  def look(self) -> None:
    """Reads whether the run is finished, and its evaluations. Raises UserError if it ran with other settings."""
    result = _json(self.folder / RESULT)
    started = _json(self.folder / POINT)
    before = result.get("config") or (started.get("config") if (self.folder / "checkpoints").is_dir() else None)
    before = before and to_dict(from_stored(before))  # keys that are newer than the run have their defaults
    changed = changed_keys(before, self.config) if before else []
    if changed:
      raise UserError(
        f"{self.folder} holds a run with other settings of {', '.join(changed)}: set them back, or choose another --out"
      )
    if result and before == self.config:
      self.status, self.seconds = FINISHED, float(result["seconds"])
      self.records = evaluations(self.folder)

  def prepare(self) -> None:
    """Makes the folder with `point.json`."""
    self.folder.mkdir(parents=True, exist_ok=True)
    point = {"number": self.number, "values": self.values, "seed": self.seed, "config": self.config}
    replace(self.folder / POINT, json.dumps(point, indent=2) + "\n")

  def flags(self) -> list[str]:
    """The overrides as flags."""
    return [f"--config.{key}={value}" for key, value in self.overrides.items()]


@dataclasses.dataclass
class Point:
  """A point with its runs, one per seed."""

  number: int
  values: Values
  runs: list[SweepRun]

  @property
  def text(self) -> str:
    """The point in words."""
    return point_text(self.values) or "as configured"

  def scores(self, metric: Metric) -> list[float]:
    """The metric of the finished runs that have it."""
    found = [metric.of(run.records) for run in self.runs if run.status == FINISHED]
    return [value for _, value in filter(None, found)]

  def mean(self, metric: Metric) -> float | None:
    """Their mean; None if there is none."""
    scores = self.scores(metric)
    return statistics.fmean(scores) if scores else None

  def deviation(self, metric: Metric) -> float | None:
    """Their standard deviation (of a sample); None of fewer than two."""
    scores = self.scores(metric)
    return statistics.stdev(scores) if len(scores) > 1 else None

  @property
  def done(self) -> bool:
    """Whether all runs are finished."""
    return all(run.status == FINISHED for run in self.runs)


class Folder:
  """The folder of a sweep, and the numbers of the points in it.

  Args:
    path: the folder.
    config: the experiment file.
    overrides: keys of the configuration from the command line.
  """

  def __init__(self, path: Path, config: str, overrides: Mapping[str, str]) -> None:
    self.path, self.config, self.overrides = path, config, dict(overrides)
    self.known: list[tuple[int, Values]] = []
    for file in sorted(path.glob(f"*/{POINT}")):
      stored = _json(file)
      if "number" in stored and not any(number == stored["number"] for number, _ in self.known):
        self.known.append((stored["number"], stored["values"]))
    self.known.sort(key=lambda pair: pair[0])

  def point(self, values: Values, seeds: Iterable[int] | None) -> Point:
    """A point with its runs, as the folder knows them; a new one has the next number. Raises UserError.

    Args:
      values: the point.
      seeds: of its runs; None: one run, with the seed of the configuration.
    """
    number = next((number for number, other in self.known if other == values), None)
    if number is None:
      number = max((number for number, _ in self.known), default=0) + 1
      self.known.append((number, values))
    chosen: list[int | None] = [*seeds] if seeds else [None]
    return Point(number, values, [self._run(number, values, seed) for seed in chosen])

  def _run(self, number: int, values: Values, seed: int | None) -> SweepRun:
    overrides = self.overrides | {key: value_text(value) for key, value in values.items()}
    overrides |= {} if seed is None else {"seed": str(seed)}
    config = to_dict(load(self.config, overrides))
    parts = [f"{number:03d}", point_name({key: value for key, value in values.items() if key != "seed"})]
    folder = self.path / "_".join([*filter(None, parts), f"seed={config['seed']}"])
    run = SweepRun(number, values, config["seed"], folder, overrides, config)
    run.look()
    return run


def evaluations(workdir: Path) -> list[dict[str, Any]]:
  """The records of the first held-out stream of a run, in order."""
  records = [record for record in RunDirectory(workdir).read_metrics() if record["split"] != "train"]
  return [record for record in records if record["split"] == records[0]["split"]]


def _json(path: Path) -> dict[str, Any]:
  """The content of a JSON file; {} if there is none, or it is damaged."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _finite(value: Any) -> bool:
  return isinstance(value, (int, float)) and math.isfinite(value)
