"""The rows of a plan: what each candidate takes, ranked, and which of them no other beats in both days and cost."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence

from tfm_jax.compare.forecast.topology import chip_count, chip_of
from tfm_jax.compare.plan.estimate import Estimate
from tfm_jax.compare.plan.goal import Goal
from tfm_jax.compare.plan.search import needed_bytes
from tfm_jax.compare.plan.space import Candidate
from tfm_jax.compare.results import Seconds, StrategyResult
from tfm_jax.training.config import Config


@dataclasses.dataclass(frozen=True)
class Row:
  """A compiled candidate: one object of `rows` in plan.json. What is unknown is None.

  Attributes:
    topology, strategy, mesh, remat, microbatches, scan, rounds: the candidate; of the mesh all axes.
    chips: of the topology.
    fits: whether the step fits the memory of a device.
    forecast_step_seconds, parts: of a step, and what they consist of.
    mfu: model FLOPs per second, as a share of the peak.
    days, chip_hours, cost: of the whole run; `cost` is None without prices.
    in_time: whether the run ends within --days; None without that flag.
    memory_bytes, memory_limit, memory_left: on one device.
    bound_by: the largest part of the forecast.
    estimate_seconds, estimate_memory_bytes: what was estimated before it was compiled.
    status, reason: as in comparison.json.
    command: that trains so.
  """

  topology: str
  strategy: str
  mesh: dict[str, int]
  remat: str
  microbatches: int
  scan: bool
  rounds: int
  chips: int
  fits: bool
  forecast_step_seconds: float | None
  parts: Seconds | None
  mfu: float | None
  days: float | None
  chip_hours: float | None
  cost: float | None
  in_time: bool | None
  memory_bytes: float | None
  memory_limit: int
  memory_left: float | None
  bound_by: str | None
  estimate_seconds: float
  estimate_memory_bytes: float
  status: str
  reason: str | None
  command: str

  @property
  def price(self) -> float:
    """What a plan saves: the cost, or chip-hours without prices; infinite without a forecast."""
    price = self.chip_hours if self.cost is None else self.cost
    return math.inf if price is None else price


def make_rows(
  results: Mapping[Candidate, StrategyResult],
  estimates: Mapping[Candidate, Estimate],
  goal: Goal,
  config: Config,
  name: str,
  overrides: Mapping[str, str],
) -> list[Row]:
  """The rows of all compiled candidates, ranked.

  With days: the cheapest (by cost, or by chip-hours without prices) that ends in time comes first; after those that end
  in time the others follow, fastest first. Without days the fastest comes first. What does not fit comes last.
  """
  rows = []
  for one, result in results.items():
    seconds = result.forecast_step_seconds.total if result.forecast_step_seconds else None
    fits = bool(result.fits) and seconds is not None
    days = goal.days_of(seconds) if seconds is not None else None
    needed, limit = needed_bytes(result), chip_of(one.topology).memory
    row = Row(
      one.topology,
      one.strategy,
      one.sizes,
      one.remat,
      one.microbatches,
      one.scan,
      one.rounds,
      chip_count(one.topology),
      fits,
      seconds,
      result.forecast_step_seconds,
      result.mfu,
      days,
      goal.chip_hours(one.topology, seconds) if seconds is not None else None,
      goal.cost(one.topology, seconds) if seconds is not None else None,
      days <= goal.days if days is not None and goal.days is not None else None,
      needed,
      limit,
      None if needed is None else limit - needed,
      result.bound_by,
      estimates[one].seconds,
      estimates[one].memory,
      result.status,
      result.reason,
      train_command(one, config, name, overrides, goal),
    )
    rows.append(row)
  return sorted(rows, key=lambda row: _rank(row, goal))


def _rank(row: Row, goal: Goal) -> tuple[float, ...]:
  """Smaller is better."""
  days = math.inf if row.days is None else row.days
  if not row.fits:
    return (2, days, row.memory_bytes or math.inf)
  if goal.days is not None and row.in_time:
    return (0, row.price, days)
  return (1, days, row.price)


def pareto(rows: Sequence[Row]) -> list[Row]:
  """The rows that fit and that no other beats in both days and price, by ascending days."""
  front: list[Row] = []
  for row in sorted((row for row in rows if row.fits), key=lambda row: (row.days, row.price)):
    if not front or row.price < front[-1].price:
      front.append(row)
  return front


def train_command(one: Candidate, config: Config, name: str, overrides: Mapping[str, str], goal: Goal) -> str:
  """The command that trains so, quoted for a shell.

  The keys that the user has replaced come first. `train.steps` is set if it is not that of the config.
  """
  keys = dict(overrides) | one.overrides(config)
  if goal.steps != config.train.steps:
    keys["train.steps"] = str(goal.steps)
  if config.train.epochs:
    keys["train.epochs"] = "0"
  flags = [f"--config={name}", *(f"--config.{key}={value}" for key, value in keys.items())]
  return shlex.join(["python", "train.py", *flags])
