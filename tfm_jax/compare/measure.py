"""Compiles one strategy for the devices of this process and times its steps."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax

from tfm_jax.compare.compiled.result import compile_step, result_of
from tfm_jax.compare.program import build_program, random_batch, with_strategy
from tfm_jax.compare.results import StrategyResult
from tfm_jax.runtime.devices import first_device
from tfm_jax.sharding.strategy import ShardingConfig
from tfm_jax.training.config import Config

COMPARED = 3  # number of steps whose losses and gradient norms are compared with one device in float32


def measure(
  config: Config, strategy: str, devices: Sequence[jax.Device], steps: int, parameter: str = ""
) -> tuple[StrategyResult, list[float], list[float]]:
  """Compiles and times one strategy.

  Args:
    config: of the run; with `train.microbatches` 0 their number is chosen as for training.
    strategy: see `with_strategy`.
    devices: all devices of the mesh.
    steps: number of timed steps, after one that is not timed.
    parameter: path of the parameter whose shard map is recorded; empty: the largest.

  Returns:
    (the result, the losses of the first `COMPARED` steps, their gradient norms).

  Raises:
    UserError: strategy, model and batch do not go together, or nothing fits the memory.
  """
  program = build_program(with_strategy(config, strategy), devices)
  config, mesh = program.config, program.model.placement.mesh
  begin = time.perf_counter()
  microbatches, compiled = compile_step(program)
  result = result_of(program, strategy, compiled, microbatches, time.perf_counter() - begin, parameter)
  state = program.init()
  seconds, losses, grad_norms = [], [], []
  for step in range(steps + 1):
    batch = program.put(random_batch(program.fields, config.train.batch_size, step))
    jax.block_until_ready(batch)
    program.settle(state)  # as the loop does
    start = time.perf_counter()
    state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - start)
    if step < COMPARED:
      losses.append(float(metrics["loss"]))
      grad_norms.append(float(metrics["grad_norm"]))
  timed = seconds[1:]
  tokens = config.train.batch_size * program.row_tokens / mesh.size
  median, smallest, largest = statistics.median(timed), min(timed), max(timed)
  result = dataclasses.replace(
    result,
    step_seconds=median,
    step_seconds_range=(smallest, largest),
    tokens_per_second_per_device=tokens / median,
    tokens_per_second_per_device_range=(tokens / largest, tokens / smallest),
  )
  return result, losses, grad_norms


def measure_reference(config: Config) -> dict[str, Any]:
  """`losses` and `grad_norms` of the first `COMPARED` steps on one device in float32."""
  model = dataclasses.replace(config.model, dtype="float32")
  alone = dataclasses.replace(config, model=model, sharding=ShardingConfig("dp"))  # without sizes of the config's mesh
  _, losses, grad_norms = measure(alone, "dp", [first_device()], COMPARED - 1)
  return {"losses": losses, "grad_norms": grad_norms}
