"""The work of one strategy in a process of its own: measured on the devices at hand, or compiled for described ones."""

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tfm_jax.compare import hlo
from tfm_jax.compare.cost import Forecast
from tfm_jax.compare.minimum import minimum_bytes
from tfm_jax.compare.products import executed_flops
from tfm_jax.compare.program import build_program, random_batch
from tfm_jax.compare.record import OK, OUT_OF_MEMORY, REFUSED, Layout, Memory, Piece, Row
from tfm_jax.compare.topology import topology_devices
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.sharding.strategy import AXES, ShardingConfig
from tfm_jax.training.config import Config
from tfm_jax.training.memory import DoesNotFit, bytes_per_device, choose_microbatches, peak_bytes
from tfm_jax.training.program import Program

COMPARED = 3  # steps whose losses and gradient norms are compared with one device in float32


def with_strategy(config: Config, asked: str) -> Config:
  """The configuration under "NAME" or "NAME:AXIS=SIZE:...".

  Sizes of the config belong to its own strategy; another takes its preset, or the sizes that stand behind its name.

  Raises:
    UserError: something else than sizes of mesh axes stands behind the name.
  """
  name, *sizes = asked.split(":")
  own = config.sharding if name == config.sharding.strategy and not sizes else ShardingConfig(name)
  for size in sizes:
    axis, _, number = size.partition("=")
    if axis not in AXES or not number.isdigit():
      raise UserError(f"--strategies: {asked!r} is not NAME or NAME:AXIS=SIZE, with axes {', '.join(AXES)}")
    own = dataclasses.replace(own, **{axis: int(number)})  # type: ignore[arg-type]
  return dataclasses.replace(config, sharding=own)


def measure(
  config: Config, strategy: str, devices: Sequence[jax.Device], steps: int, layout: str = ""
) -> dict[str, Any]:
  """Compiles and times one strategy.

  Args:
    config: of the run; `train.microbatches` 0: chosen as a run would.
    strategy: see `with_strategy`.
    devices: to be laid out.
    steps: that are timed, after one that is not.
    layout: parameter whose layout is noted; empty: the largest.

  Returns:
    `row`, and of the first `COMPARED` steps the `losses` and `grad_norms`.

  Raises:
    UserError: the strategy, model and batch do not go together, or nothing fits.
  """
  program = build_program(with_strategy(config, strategy), devices)
  config, placement = program.config, program.model.placement
  begin = time.perf_counter()
  microbatches, compiled = _choose(program)
  row = described(program, strategy, compiled, microbatches, time.perf_counter() - begin, layout)
  state = program.init()
  seconds, losses, norms = [], [], []
  for step in range(steps + 1):
    batch = program.put(random_batch(program.fields, config.train.batch_size, step))
    jax.block_until_ready(batch)
    start = time.perf_counter()
    state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - start)
    if step < COMPARED:
      losses.append(float(metrics["loss"]))
      norms.append(float(metrics["grad_norm"]))
  timed = seconds[1:]
  tokens = config.train.batch_size * program.row_tokens / placement.mesh.size
  median, span = statistics.median(timed), (min(timed), max(timed))
  row = dataclasses.replace(
    row, step_seconds=median, step_seconds_range=span, tokens_per_second_per_device=tokens / median,
    tokens_per_second_per_device_range=(tokens / span[1], tokens / span[0]),
  )  # fmt: skip
  return {"row": row, "losses": losses, "grad_norms": norms}


def control(config: Config) -> dict[str, Any]:
  """`losses` and `grad_norms` of the first steps on one device in float32."""
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"))
  made = measure(config, "dp", jax.devices()[:1], COMPARED - 1)
  return {"losses": made["losses"], "grad_norms": made["grad_norms"]}


def forecast(config: Config, strategy: str, topology: str, layout: str = "") -> dict[str, Any]:
  """Compiles one strategy for described TPUs and plays its schedule through. Returns `row`. Raises UserError."""
  chip, devices = topology_devices(topology)
  program = build_program(with_strategy(config, strategy), devices)
  begin = time.perf_counter()
  try:
    microbatches, compiled = _choose(program, chip.memory)
  except DoesNotFit as error:
    over = error.needed - chip.memory if math.isfinite(error.needed) else None
    return {"row": Row(
      strategy, dict(program.model.placement.mesh.shape), OUT_OF_MEMORY, _one_line(error), error.microbatches,
      time.perf_counter() - begin, memory_limit=chip.memory, fits=False,
      over_bytes=None if over is None else round(over), layout=layout_of(program, layout),
    )}  # fmt: skip
  row = described(program, strategy, compiled, microbatches, time.perf_counter() - begin, layout)
  mesh_of = program.model.placement.mesh
  seconds, bound_by = Forecast(hlo.parse(compiled.as_text()), mesh_of, chip).seconds()
  tokens = program.config.train.batch_size * program.row_tokens / mesh_of.size
  return {"row": dataclasses.replace(
    row, memory_limit=chip.memory, fits=True, over_bytes=0, forecast_step_seconds=seconds, bound_by=bound_by,
    step_seconds=None, mfu=(row.model_flops or 0.0) / seconds.total / chip.peak,
    tokens_per_second_per_device=tokens / seconds.total, minimum_bytes=minimum_bytes(program, microbatches),
  )}  # fmt: skip


def _choose(program: Program, limit: float | None = None) -> tuple[int, Any]:
  """As a run does, for the devices at hand or described ones."""
  train = program.config.train
  return choose_microbatches(
    program.model.placement, program.state, train.batch_size, train.microbatches, program.compile, limit
  )


def described(program: Program, strategy: str, compiled: Any, microbatches: int, seconds: float, layout: str) -> Row:
  """What a compiled program says of itself."""
  model = program.model
  mesh = model.placement.mesh
  module = hlo.parse(compiled.as_text())
  work = program.flops.full
  return Row(
    strategy, dict(mesh.shape), OK, microbatches=microbatches, compile_seconds=seconds,
    memory_bytes=memory_of(program, compiled, module), flops=executed_flops(module), model_flops=work / mesh.size,
    collectives=hlo.collectives(module, mesh), layout=layout_of(program, layout),
  )  # fmt: skip


def memory_of(program: Program, compiled: Any, module: hlo.Module) -> Memory:
  """The peak by its compiler, split: what is stored, the gradient, what loops keep for later loops, and the rest."""
  peak = round(peak_bytes(compiled, program.model.placement.platform))
  parameters, optimizer = bytes_per_device(program.state.params), bytes_per_device(program.state.opt_state)
  rest = max(peak - parameters - optimizer, 0)
  gradients = min(parameters, rest)
  activations = min(hlo.kept_bytes(module), rest - gradients)
  return Memory(parameters, optimizer, gradients, activations, rest - gradients - activations, peak)


def parameter_leaves(model: Model, asked: str) -> dict[str, tuple[tuple, jax.ShapeDtypeStruct]]:
  """Name -> (path, shape) of all parameters. Raises UserError if the one asked for is not there."""
  paths = {
    "/".join(str(key.key) for key in path): (path, leaf) for path, leaf in jax.tree.leaves_with_path(model.shapes())
  }
  if asked and asked not in paths:
    raise UserError(f"--parameter={asked} is none of the model's: {', '.join(paths)}")
  return paths


def layout_of(program: Program, parameter: str) -> Layout:
  """Where a parameter lies; the largest if none is named. Raises UserError for a name that the model does not have."""
  model = program.model
  paths = parameter_leaves(model, parameter)
  blocks = [name for name in paths if "blocks/" in name] or list(paths)
  name = parameter or max(blocks, key=lambda n: math.prod(paths[n][1].shape))
  path, leaf = paths[name]
  axes = model.axes(path).names
  sharding = model.placement.sharding(axes)
  mesh = model.placement.mesh
  flat = {device: n for n, device in enumerate(mesh.devices.flat)}
  pieces = []
  for device, index in sharding.devices_indices_map(leaf.shape).items():
    places = np.unravel_index(flat[device], mesh.devices.shape)
    bounds = [part.indices(n) for part, n in zip(index, leaf.shape, strict=True)]
    coordinates = {axis: int(n) for axis, n in zip(mesh.axis_names, places, strict=True)}
    pieces.append(Piece(flat[device], coordinates, tuple(b[0] for b in bounds), tuple(b[1] for b in bounds)))
  spec = tuple(",".join((p,) if isinstance(p, str) else p or ()) for p in model.placement.spec(axes))
  return Layout(name, leaf.shape, axes, spec, tuple(sorted(pieces, key=lambda p: p.device)))


def refused(strategy: str, error: UserError) -> Row:
  """The row of a strategy that the model, the batch or the memory does not admit."""
  return Row(strategy, {}, OUT_OF_MEMORY if isinstance(error, DoesNotFit) else REFUSED, _one_line(error))


def _one_line(error: UserError) -> str:
  return " ".join(str(error).split())
