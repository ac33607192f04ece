"""Candidates of a plan, with estimates and results that are made up."""

from tfm_jax.compare.forecast.topology import chip_of
from tfm_jax.compare.plan.estimate import Estimate
from tfm_jax.compare.plan.space import Candidate
from tfm_jax.compare.results import OK, OUT_OF_MEMORY, Memory, Seconds, StrategyResult

LIMIT = chip_of("v5e:2x2").memory


def candidate(strategy="fsdp", data=4, remat="full", microbatches=1, topology="v5e:2x2", scan=True):
  return Candidate(topology, strategy, (1, data, 4 // data, 1, 1), remat, microbatches, scan)


def estimated(seconds, memory=0.5 * LIMIT):
  return Estimate(0.0, 0.0, 0.0, memory, seconds, 0.0, 0.0, 0.0, "compute")


def compiled(one, seconds=1.0, memory=0.5 * LIMIT, mfu=0.4):
  """The result of a candidate that needs so much memory."""
  limit = chip_of(one.topology).memory
  if memory > limit:
    over = round(memory - limit)
    return StrategyResult(
      one.name, one.sizes, OUT_OF_MEMORY, "too large", one.microbatches, memory_limit=limit, fits=False, over_bytes=over
    )
  return StrategyResult(
    one.name,
    one.sizes,
    OK,
    microbatches=one.microbatches,
    memory_bytes=Memory(0, 0, 0, 0, 0, round(memory)),
    memory_limit=limit,
    forecast_step_seconds=Seconds(seconds, seconds, 0.0, 0.0, 0.0),
    fits=True,
    over_bytes=0,
    mfu=mfu,
    bound_by="compute",
  )
