"""The search: estimates every candidate, then compiles the most promising ones and corrects the estimates by them."""

import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from tfm_jax.compare.forecast.topology import chip_of
from tfm_jax.compare.plan.estimate import Estimate
from tfm_jax.compare.plan.paper import Paper
from tfm_jax.compare.plan.space import Candidate, meshes, variants
from tfm_jax.compare.plan.store import Store
from tfm_jax.compare.results import OK, OUT_OF_MEMORY, StrategyResult
from tfm_jax.errors import UserError
from tfm_jax.training.config import Config

log = logging.getLogger(__name__)

# An estimate of memory may be too high: up to this multiple of a device's memory a candidate is still compiled, and up
# to the second one when another with its strategy and remat has been compiled, which corrects the estimate.
MARGIN, CORRECTED_MARGIN = 1.2, 1.02
# Candidates that look slower than this multiple of the best compiled one of their topology are not compiled.
PROMISING = 1.1
FEW = 6  # candidates of a topology that are compiled, unless fewer are promising
POLL_SECONDS = 1.0

# (candidate, seconds left) -> its result; None if it did not end in time.
Compile = Callable[[Candidate, float], StrategyResult | None]


@dataclasses.dataclass(frozen=True)
class Survey:
  """All candidates with their estimates, and why some topologies have none: topology -> reason."""

  estimates: Mapping[Candidate, Estimate]
  refusals: Mapping[str, str]


def survey(config: Config, paper: Paper, topologies: Sequence[str], strategies: Sequence[str]) -> Survey:
  """Estimates every candidate of the space.

  Raises:
    UserError: no topology has a candidate: the batch or the model divides on none.
  """
  estimates: dict[Candidate, Estimate] = {}
  refusals: dict[str, str] = {}
  for topology in topologies:
    before = len(estimates)
    for strategy in strategies:
      found, reason = meshes(config, strategy, topology, paper.admits)
      refusals.setdefault(topology, reason)
      for mesh in found:
        for one in variants(config, topology, strategy, mesh, paper.admits):
          how = one.remat, one.microbatches, one.scan, one.rounds
          estimates[one] = paper.estimate(topology, one.strategy, one.sizes, *how)
    if len(estimates) > before:
      refusals.pop(topology)
  if not estimates:
    topology, reason = next(iter(refusals.items()))
    raise UserError(f"no strategy of {', '.join(strategies)} has a mesh on {topology}: {reason or 'none is admitted'}")
  return Survey(estimates, refusals)


class Corrections:
  """What compiled programs say of the estimates: ratios of forecast and estimate, of seconds and of memory.

  Seconds are corrected by the median ratio of the same strategy, memory by that of the same strategy and remat; where
  none has been compiled, by the median of all.
  """

  def __init__(self, estimates: Mapping[Candidate, Estimate], results: Mapping[Candidate, StrategyResult]) -> None:
    self._seconds: dict[str, list[float]] = {}
    self._memory: dict[tuple[str, str], list[float]] = {}
    for one, result in results.items():
      if one not in estimates:
        continue
      if result.forecast_step_seconds:
        ratio = result.forecast_step_seconds.total / estimates[one].seconds
        self._seconds.setdefault(one.strategy, []).append(ratio)
      needed = needed_bytes(result)
      if needed is not None:
        self._memory.setdefault((one.strategy, one.remat), []).append(needed / estimates[one].memory)

  def seconds(self, one: Candidate) -> float:
    """The factor of an estimate's seconds."""
    every = [ratio for ratios in self._seconds.values() for ratio in ratios]
    return statistics.median(self._seconds.get(one.strategy) or every or [1.0])

  def memory(self, one: Candidate) -> float:
    """The factor of an estimate's memory."""
    every = [ratio for ratios in self._memory.values() for ratio in ratios]
    return statistics.median(self._memory.get((one.strategy, one.remat)) or every or [1.0])

  def knows_memory(self, one: Candidate) -> bool:
    """Whether another candidate with its strategy and remat has been compiled."""
    return (one.strategy, one.remat) in self._memory


def needed_bytes(result: StrategyResult) -> float | None:
  """The bytes that a compiled step needs on a device, whether it fits or not; None if the compiler did not say."""
  if result.memory_bytes:
    return result.memory_bytes.peak
  return result.memory_limit + result.over_bytes if result.over_bytes and result.memory_limit else None


def next_candidate(
  estimates: Mapping[Candidate, Estimate],
  results: Mapping[Candidate, StrategyResult],
  running: Sequence[Candidate] = (),
  few: int = FEW,
  promising: float = PROMISING,
) -> Candidate | None:
  """The candidate to compile next; None if no other is worth it.

  It is the fastest, by its corrected estimate, of the topology of which fewest have been compiled, without those that
  are not expected to fit, are much slower than a compiled one, or differ from a compiled one only by
  - more microbatches than one that fits, or fewer than one that does not;
  - unrolled blocks, before the loop has been compiled.
  """
  corrections = Corrections(estimates, results)
  tried = {*results, *running}
  started: dict[str, int] = {one.topology: 0 for one in estimates}
  for one in tried:
    started[one.topology] = started.get(one.topology, 0) + 1
  best: dict[str, float] = {}
  fits: dict[tuple, int] = {}  # family -> the fewest microbatches that fit
  fails: dict[tuple, int] = {}  # family -> the most that do not
  for one, result in results.items():
    if result.forecast_step_seconds and result.fits:
      best[one.topology] = min(best.get(one.topology, math.inf), result.forecast_step_seconds.total)
      fits[family_of(one)] = min(fits.get(family_of(one), one.microbatches), one.microbatches)
    elif result.status == OUT_OF_MEMORY:
      fails[family_of(one)] = max(fails.get(family_of(one), 0), one.microbatches)
  choices: list[tuple[int, float, Candidate]] = []
  for one, estimate in estimates.items():
    family = family_of(one)
    if one in tried or started[one.topology] >= few:
      continue
    if one.microbatches > fits.get(family, math.inf) or one.microbatches <= fails.get(family, 0):
      continue
    if not one.scan and dataclasses.replace(one, scan=True) in estimates and family_of(one, scan=True) not in fits:
      continue
    memory = estimate.memory * corrections.memory(one)
    margin = CORRECTED_MARGIN if corrections.knows_memory(one) else MARGIN
    limit = chip_of(one.topology).memory
    seconds = estimate.seconds * corrections.seconds(one)
    if memory > margin * limit or seconds > promising * best.get(one.topology, math.inf):
      continue
    # What may not fit is tried when it would be clearly faster than what surely does.
    risk = 1 + max(memory / limit - 0.95, 0.0)
    choices.append((started[one.topology], seconds * risk, one))
  return min(choices, key=lambda choice: choice[:2])[2] if choices else None


def family_of(one: Candidate, scan: bool | None = None) -> tuple:
  """What all candidates share that differ in nothing but microbatches."""
  return one.topology, one.strategy, one.mesh, one.rounds, one.remat, one.scan if scan is None else scan


def search(
  estimates: Mapping[Candidate, Estimate],
  compile: Compile,
  store: Store,
  minutes: float,
  jobs: int,
  few: int = FEW,
  promising: float = PROMISING,
  clock: Callable[[], float] = time.monotonic,
) -> dict[Candidate, StrategyResult]:
  """Compiles candidates until none is promising or the time is up. What `store` holds already is not compiled again.

  Args:
    estimates: of all candidates.
    compile: compiles one, in a process of its own. A crash, or too little memory, is a result.
    store: takes every result at once, so that an interrupted search goes on.
    minutes: after which nothing is compiled any more.
    jobs: programs that are compiled at a time.
    few, promising: see `next_candidate`.
    clock: seconds.
  """
  results = {one: result for one, result in store.results().items() if one in estimates}
  if results:
    log.info("%d candidates were compiled before", len(results))
  until = clock() + 60 * minutes
  running: dict[Future, Candidate] = {}
  given_up: set[Candidate] = set()
  with ThreadPoolExecutor(jobs) as pool:
    try:
      while True:
        while len(running) < jobs and clock() < until:
          busy = [*running.values(), *given_up]
          one = next_candidate(estimates, results, busy, few, promising)
          if one is None:
            break
          running[pool.submit(compile, one, until - clock())] = one
        if not running:
          return results
        for future in wait(running, POLL_SECONDS, FIRST_COMPLETED).done:
          one = running.pop(future)
          result = future.result()
          if result is None:
            given_up.add(one)
            log.info("%s: not compiled within the time", one.text)
            continue
          results[one] = result
          store.add(one, result)
          log.info("%s", progress_line(one, estimates[one], result, (until - clock()) / 60))
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def progress_line(one: Candidate, estimate: Estimate, result: StrategyResult, minutes: float) -> str:
  """One line of progress: what was compiled, its estimate and forecast, and the minutes that are left."""
  if result.status == OK and result.forecast_step_seconds:
    outcome = f"forecast {result.forecast_step_seconds.total:.4g} s"
  else:
    outcome = f"{result.status.replace('_', ' ')}: {result.reason}"
  return f"{one.text}: estimate {estimate.seconds:.4g} s, {outcome} ({max(minutes, 0):.1f} minutes left)"


def nearest(estimates: Mapping[Candidate, Estimate], results: Mapping[Candidate, StrategyResult]) -> str:
  """What comes nearest to fitting when nothing fits, and what would help, in one line."""
  corrections = Corrections(estimates, results)

  def share(one: Candidate) -> float:
    needed = needed_bytes(results[one]) if one in results else None
    return (needed or estimates[one].memory * corrections.memory(one)) / chip_of(one.topology).memory

  one = min(estimates, key=share)
  limit, by = chip_of(one.topology).memory, "compiled" if one in results else "by estimate"
  needed = share(one) * limit
  return (
    f"nothing fits: the nearest is {one.text}, which needs {needed / 2**30:.1f} of {limit / 2**30:.1f} GiB per device "
    f"({by}, {needed / limit - 1:.0%} too much): name topologies with at least {math.ceil(share(one))} times the chips "
    f"or with more memory per chip, a smaller data.seq_len, or a smaller train.batch_size"
  )
