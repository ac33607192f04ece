"""The result of a strategy, as far as its compiled program tells it."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from tfm_jax.compare.compiled import hlo
from tfm_jax.compare.compiled.collectives import collectives
from tfm_jax.compare.compiled.products import executed_flops
from tfm_jax.compare.compiled.shard_map import shard_map_of
from tfm_jax.compare.results import OK, OUT_OF_MEMORY, REFUSED, Memory, StrategyResult
from tfm_jax.errors import UserError
from tfm_jax.training.compiled.memory import DoesNotFit, bytes_per_device, choose_microbatches, peak_bytes
from tfm_jax.training.compiled.program import Program


def compile_step(
  program: Program, limit: float | None = None, options: Mapping[str, Any] | None = None
) -> tuple[int, Any]:
  """(number of microbatches, compiled train step), chosen as for training.

  Args:
    program: of the train step.
    limit: as in `choose_microbatches`.
    options: of the compiler.
  """
  train, compile_with = program.config.train, functools.partial(program.compile, options=options)
  return choose_microbatches(
    program.model.placement, program.state, train.batch_size, train.microbatches, compile_with, limit
  )


def result_of(
  program: Program, strategy: str, compiled: Any, microbatches: int, seconds: float, parameter: str
) -> StrategyResult:
  """What a compiled train step tells of itself.

  Args:
    program: the program that was compiled.
    strategy: its name, as requested.
    compiled: the compiled train step.
    microbatches: number of parts of the batch.
    seconds: that compilation took.
    parameter: the parameter whose shard map is recorded; empty: the largest of the blocks.
  """
  mesh = program.model.placement.mesh
  text = compiled.as_text()
  module, pipeline = hlo.parse(text), program.schedule(microbatches)
  return StrategyResult(
    strategy,
    dict(mesh.shape),
    OK,
    microbatches=microbatches,
    bubble=pipeline.bubble if pipeline else None,
    compile_seconds=seconds,
    memory_bytes=memory_of(program, compiled, module),
    flops=executed_flops(module),
    model_flops=program.flops.full / mesh.size,
    collectives=collectives(module, mesh),
    shard_map=shard_map_of(program, parameter),
    program_hash=hashlib.sha256(text.encode()).hexdigest()[:16],
  )


def memory_of(program: Program, compiled: Any, module: hlo.Module) -> Memory:
  """The compiler's peak, divided into state, gradients, what loops store for later loops, and the rest."""
  peak = round(peak_bytes(compiled, program.model.placement.platform))
  state = program.state
  parameters = bytes_per_device(state.params) + bytes_per_device(state.teacher)
  optimizer = bytes_per_device(state.opt_state)
  rest = max(peak - parameters - optimizer, 0)
  gradients = min(bytes_per_device(program.gradients), rest)
  activations = min(hlo.stored_bytes(module), rest - gradients)
  return Memory(parameters, optimizer, gradients, activations, rest - gradients - activations, peak)


def refusal(strategy: str, error: UserError) -> StrategyResult:
  """The result of a strategy that does not go with the model, the batch or the memory."""
  return StrategyResult(strategy, {}, OUT_OF_MEMORY if isinstance(error, DoesNotFit) else REFUSED, one_line(error))


def one_line(error: UserError) -> str:
  """The message without line breaks."""
  return " ".join(str(error).split())
