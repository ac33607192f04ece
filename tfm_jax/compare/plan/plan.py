"""`plan`: from a configuration and topologies to ranked rows, in a folder that a second call goes on from."""

import collections
import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm_jax.compare.forecast import calibration
from tfm_jax.compare.forecast.ledger import entry, versions
from tfm_jax.compare.forecast.topology import chip_of, is_gpu, needs_compiler
from tfm_jax.compare.plan.estimate import Estimate
from tfm_jax.compare.plan.goal import Goal
from tfm_jax.compare.plan.paper import Paper
from tfm_jax.compare.plan.rows import Row, make_rows, pareto
from tfm_jax.compare.plan.scaling import ScalingPoint, limit_of, scaling
from tfm_jax.compare.plan.search import FEW, PROMISING, Compile, Corrections, Survey, family_of, nearest, search, survey
from tfm_jax.compare.plan.space import Candidate, strategies_for
from tfm_jax.compare.plan.store import Store
from tfm_jax.compare.results import COMPILER_CRASH, StrategyResult, result_from_json
from tfm_jax.compare.worker import FORECAST_ENV, WorkerCrash, run_worker
from tfm_jax.errors import UserError
from tfm_jax.runtime import ledger
from tfm_jax.training.config import Config, to_dict

log = logging.getLogger(__name__)

SHOWN = 6  # candidates without a forecast that plan.json and the page name, per topology
INTERRUPTED = ("SIGINT", "KeyboardInterrupt", "SIGTERM")


@dataclasses.dataclass(frozen=True)
class Waiting:
  """A candidate that was not compiled: its corrected estimate, and why."""

  candidate: str
  topology: str
  seconds: float
  memory_bytes: float
  memory_limit: int
  reason: str


@dataclasses.dataclass(frozen=True)
class Plan:
  """The answer.

  Attributes:
    config, overrides, command: as requested.
    goal: see `Goal`.
    tokens_per_step, parameters, batch_size: of the run.
    rows: all compiled candidates, best first.
    front: those that no other beats in both days and price.
    waiting: the best of those that were not compiled.
    scaling, limits: of the first row, by estimate.
    searched: number of candidates that were estimated.
    refusals: topology -> why nothing could be laid out on it.
    notes: sentences to read with the figures.
  """

  config: str
  overrides: dict[str, str]
  command: str
  goal: Goal
  tokens_per_step: int
  parameters: int
  batch_size: int
  rows: tuple[Row, ...]
  front: tuple[Row, ...]
  waiting: tuple[Waiting, ...]
  scaling: tuple[ScalingPoint, ...]
  limits: tuple[str, ...]
  searched: int
  refusals: dict[str, str]
  notes: tuple[str, ...]

  @property
  def best(self) -> Row:
    """The row to take."""
    return self.rows[0]


def plan(
  config: Config,
  topologies: Sequence[str],
  folder: Path,
  *,
  tokens: float | None = None,
  days: float | None = None,
  prices: Mapping[str, float] | None = None,
  strategies: Sequence[str] = (),
  minutes: float = 30.0,
  jobs: int = 2,
  few: int = FEW,
  promising: float = PROMISING,
  name: str = "",
  overrides: Mapping[str, str] | None = None,
  command: str = "",
  compile: Compile | None = None,
) -> Plan:
  """Plans a run: searches layouts on each topology, compiles the best few, and ranks them.

  Args:
    config: the run. Its batch is the global batch; no corpus is read.
    topologies: to choose from.
    folder: takes results as they come; a second call goes on from them.
    tokens: of the whole run; None: `train.steps` steps.
    days: in which it shall end.
    prices: chip -> price per chip-hour.
    strategies: to consider, as for `compare`; empty: see `space.SEARCHED`.
    minutes, jobs, few, promising: see `search`.
    name, overrides, command: of the config, for commands and pages.
    compile: takes the place of the compiler, for tests.

  Raises:
    UserError: a mistake in the config; nothing can be laid out, or fits; no program was compiled in time.
  """
  strategies = strategies_for(config, strategies)
  if compile is None:
    for topology in topologies:
      needs_compiler(topology)
  if config.train.epochs and tokens is None:
    raise UserError(f"train.epochs={config.train.epochs:g} needs a corpus, which a plan does not read: give --tokens")
  paper = Paper(config)
  steps = math.ceil(tokens / paper.tokens) if tokens is not None else config.train.steps
  goal = Goal(tuple(topologies), steps, days, prices or {})
  found = survey(config, paper, topologies, strategies)
  fitting = sum(e.memory <= chip_of(one.topology).memory for one, e in found.estimates.items())
  log.info("%d candidates, of which %d fit by estimate", len(found.estimates), fitting)
  recorded: Compile = _recorded(compile or compiler(config, topologies), config, name, folder)
  store = Store(folder, config)
  results = search(found.estimates, recorded, store, minutes, jobs, few, promising)
  rows = make_rows(results, found.estimates, goal, config, name, overrides or {})
  if not rows or not rows[0].fits:
    if not results and fitting:
      raise UserError(f"no program was compiled within --minutes={minutes:g}: the same command with more goes on")
    raise UserError(nearest(found.estimates, results))
  corrections = Corrections(found.estimates, results)
  best = next(one for one in results if _is(one, rows[0]))
  points = scaling(config, paper, best, corrections)
  return Plan(
    name,
    dict(overrides or {}),
    command,
    goal,
    paper.tokens,
    paper.program.model.parameter_count(),
    config.train.batch_size,
    tuple(rows),
    tuple(pareto(rows)),
    tuple(_waiting(found.estimates, results, corrections, few, promising)),
    tuple(points),
    tuple(limit_of(points, kind) for kind in ("strong", "weak")),
    len(found.estimates),
    dict(found.refusals),
    tuple(_notes(found, results)),
  )


def compiler(config: Config, topologies: Sequence[str]) -> Compile:
  """Compiles candidates of a configuration in processes of their own.

  Raises:
    UserError: the compiler knows no such devices.
  """
  for topology in topologies:
    request = {"task": "describe", "topology": topology, "parameter": "", "config": to_dict(config)}
    run_worker(request, FORECAST_ENV)

  def compile(one: Candidate, seconds: float) -> StrategyResult | None:
    request = {"task": "forecast", "strategy": one.name, "topology": one.topology, "parameter": "", "steps": 1}
    try:
      values = run_worker(request | {"config": to_dict(one.of(config))}, FORECAST_ENV, max(seconds, 1.0))
    except TimeoutError:
      return None
    except WorkerCrash as crash:
      if any(word in crash.reason for word in INTERRUPTED):
        return None
      return StrategyResult(one.name, one.sizes, COMPILER_CRASH, f"its process ended with {crash.reason}")
    return result_from_json(values["result"])

  return compile


def _recorded(compile: Compile, config: Config, name: str, folder: Path) -> Compile:
  """`compile`, with every forecast appended to the ledger."""

  def recorded(one: Candidate, seconds: float) -> StrategyResult | None:
    result = compile(one, seconds)
    if result is not None:
      ledger.append([entry(one.of(config), name, one.topology, result)], folder)
    return result

  return recorded


def _is(one: Candidate, row: Row) -> bool:
  """Whether a row is that of a candidate."""
  same = (one.topology, one.strategy, one.sizes, one.remat, one.microbatches, one.scan, one.rounds)
  return same == (row.topology, row.strategy, row.mesh, row.remat, row.microbatches, row.scan, row.rounds)


def _waiting(
  estimates: Mapping[Candidate, Estimate],
  results: Mapping[Candidate, StrategyResult],
  corrections: Corrections,
  few: int,
  promising: float,
) -> list[Waiting]:
  """The best candidates of each topology that differ from all compiled ones in more than microbatches, and why."""
  compiled = {family_of(one) for one in results}
  tried = collections.Counter(one.topology for one in results)
  best: dict[str, float] = {}
  for one, result in results.items():
    if result.forecast_step_seconds and result.fits:
      best[one.topology] = min(best.get(one.topology, math.inf), result.forecast_step_seconds.total)
  families: dict[tuple, Waiting] = {}
  for one, estimate in estimates.items():
    if family_of(one) in compiled:
      continue
    seconds, memory = estimate.seconds * corrections.seconds(one), estimate.memory * corrections.memory(one)
    limit = chip_of(one.topology).memory
    reason = f"{tried[one.topology]} others of its topology were compiled"
    if memory > limit:
      reason = f"by estimate it needs {memory / 2**30:.1f} of {limit / 2**30:.1f} GiB"
    elif seconds > promising * best.get(one.topology, math.inf):
      reason = f"by estimate it takes {seconds / best[one.topology]:.2f} times as long as the best of its topology"
    elif not one.scan and family_of(one, scan=True) not in compiled:
      reason = "unrolled blocks are compiled only where their loop was"
    elif tried[one.topology] < few:
      reason = "the time was up"
    waiting = Waiting(one.text, one.topology, seconds, memory, limit, reason)
    families[family_of(one)] = min(waiting, families.get(family_of(one), waiting), key=_preference)
  chosen: list[Waiting] = []
  for waiting in sorted(families.values(), key=lambda waiting: waiting.seconds):
    if sum(other.topology == waiting.topology for other in chosen) < SHOWN:
      chosen.append(waiting)
  return chosen


def _preference(waiting: Waiting) -> tuple[bool, float]:
  """Of candidates that differ only in microbatches the fastest that fits stands for all, or the one of least memory."""
  fits = waiting.memory_bytes <= waiting.memory_limit
  return not fits, waiting.seconds if fits else waiting.memory_bytes


def _notes(found: Survey, results: Mapping[Candidate, StrategyResult]) -> list[str]:
  """What to know about the figures."""
  kinds = {is_gpu(one.topology): one.topology for one in found.estimates}
  notes = [calibration.sentence(topology) for topology in kinds.values()]
  ratios = [
    result.forecast_step_seconds.total / found.estimates[one].seconds
    for one, result in results.items()
    if result.forecast_step_seconds
  ]
  if ratios:
    notes.append(
      f"Forecasts are {min(ratios):.2f} to {max(ratios):.2f} times the estimates by which these {len(results)} of "
      f"{len(found.estimates)} candidates were chosen; what was not compiled is known by its estimate alone."
    )
  notes.append("Days count nothing but steps: no compilation, evaluation, checkpoints, restarts or waiting for data.")
  return notes + [f"{topology}: nothing can be laid out on it: {reason}" for topology, reason in found.refusals.items()]


def write_json(answer: Plan, folder: Path) -> None:
  """Writes plan.json, atomically."""
  values: dict[str, Any] = dataclasses.asdict(answer)
  values["goal"] |= {"tokens": answer.goal.steps * answer.tokens_per_step}
  values["rows"] = [dataclasses.asdict(row) for row in answer.rows]
  values["versions"] = versions()
  temporary = folder / f".plan.json.{os.getpid()}.tmp"
  temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
  os.replace(temporary, folder / "plan.json")
