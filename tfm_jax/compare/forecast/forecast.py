"""Compiles one strategy for TPUs that are not here and forecasts its step time."""

import dataclasses
import math
import time

from tfm_jax.compare.compiled import hlo
from tfm_jax.compare.compiled.minimum import minimum_bytes
from tfm_jax.compare.compiled.result import compile_step, one_line, result_of
from tfm_jax.compare.compiled.shard_map import shard_map_of
from tfm_jax.compare.forecast.schedule import Forecast
from tfm_jax.compare.forecast.topology import compiler_options, topology_devices
from tfm_jax.compare.program import build_program, with_strategy
from tfm_jax.compare.results import OUT_OF_MEMORY, StrategyResult
from tfm_jax.training.compiled.memory import DoesNotFit
from tfm_jax.training.config import Config


def forecast(config: Config, strategy: str, topology: str, parameter: str = "") -> StrategyResult:
  """Compiles one strategy for the TPUs of a topology and simulates its schedule.

  Args:
    config: of the run.
    strategy: see `with_strategy`.
    topology: as "v5e:16x16".
    parameter: path of the parameter whose shard map is recorded; empty: the largest of the blocks.

  Raises:
    UserError: an unknown topology, or strategy, model and batch do not go together.
  """
  chip, devices = topology_devices(topology)
  program = build_program(with_strategy(config, strategy), devices)
  mesh = program.model.placement.mesh
  begin = time.perf_counter()
  try:
    microbatches, compiled = compile_step(program, chip.memory, compiler_options(topology))
  except DoesNotFit as error:
    return StrategyResult(
      strategy,
      dict(mesh.shape),
      OUT_OF_MEMORY,
      one_line(error),
      microbatches=error.microbatches,
      compile_seconds=time.perf_counter() - begin,
      memory_limit=chip.memory,
      fits=False,
      over_bytes=round(error.needed - chip.memory) if math.isfinite(error.needed) else None,
      shard_map=shard_map_of(program, parameter),
    )
  result = result_of(program, strategy, compiled, microbatches, time.perf_counter() - begin, parameter)
  seconds, bound_by = Forecast(hlo.parse(compiled.as_text()), mesh, chip).seconds()
  tokens = program.config.train.batch_size * program.row_tokens / mesh.size
  return dataclasses.replace(
    result,
    memory_limit=chip.memory,
    fits=True,
    over_bytes=0,
    forecast_step_seconds=seconds,
    bound_by=bound_by,
    mfu=(result.model_flops or 0.0) / seconds.total / chip.peak,
    tokens_per_second_per_device=tokens / seconds.total,
    minimum_bytes=minimum_bytes(program, microbatches),
  )
