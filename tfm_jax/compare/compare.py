"""`compare`: strategies side by side, each in a process of its own, measured or forecast."""

import dataclasses
import importlib.metadata
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from tfm_jax.compare.forecast import calibration
from tfm_jax.compare.forecast.ledger import versions
from tfm_jax.compare.forecast.topology import chip_count, needs_compiler, parse_topology
from tfm_jax.compare.results import COMPILER_CRASH, Comparison, StrategyResult, result_from_json
from tfm_jax.compare.worker import FORECAST_ENV, WorkerCrash, run_worker
from tfm_jax.errors import UserError
from tfm_jax.runtime.reporting.units import human_bytes
from tfm_jax.sharding.strategy import find_strategy
from tfm_jax.training.config import Config, resolve, to_dict

log = logging.getLogger(__name__)

EMULATED = (
  "The devices are emulated on the cores of one CPU, so step times do not rank the strategies. What carries over to "
  "real devices: the agreement with one device, the memory of parameters, optimizer and gradients, and which "
  "collectives there are."
)
CPU_PROGRAMS = (
  "XLA:CPU writes an all-reduce and a slice where other compilers write a reduce-scatter, and sends float32 where they "
  "send bfloat16."
)
OLD_CPU_PROGRAMS = (
  "On CPU, jax 0.9 (that of Python 3.11) also gathers operands of weight gradients and of attention, because it cannot "
  "split an array whose layout is fixed: those all-gathers exist on no other platform and in no later release."
)
REFERENCE = (
  "Loss and gradient differences are relative to one device in float32, the largest over the first three steps; the "
  "strategies compute in {}."
)
ASSUMPTIONS = (
  "Assumed efficiencies: large matrix products reach 92% of the chip's peak (83% on tpu7x), narrow ones less; splash "
  "attention, of which the compiler reports no cost, 50%; streaming operations 85% of the memory bandwidth."
)

# From this share of a device's memory on, XLA:TPU is seen to overlap no communication unless this flag is set.
NEARLY_FULL = 0.9
WHOLE_MEMORY_FLAG = "--xla_tpu_scheduler_percent_shared_memory_limit=100"


def compare(
  config: Config,
  strategies: Sequence[str],
  devices: int = 0,
  topology: str = "",
  steps: int = 10,
  parameter: str = "",
  name: str = "",
  progress: bool = True,
  overrides: Mapping[str, str] | None = None,
  command: str = "",
) -> Comparison:
  """Compares strategies: measures them on devices, or forecasts them for a TPU topology.

  Args:
    config: the run to compare. Its batch is the global batch; no corpus is read.
    strategies: names or compositions (fsdp+tp), or `NAME:AXIS=SIZE:...` for another mesh than the preset.
    devices: number of devices to measure on; 0: all that exist. If fewer exist, CPU devices are emulated.
    topology: TPUs to forecast for instead, as "v5e:16x16" or "2*v5e:16x16" (two slices).
    steps: number of timed steps.
    parameter: path of the parameter whose shard map is drawn; empty: the largest of the blocks.
    name: of the config, for the report.
    progress: show a progress bar on a terminal, and log one line per strategy elsewhere.
    overrides: keys of the config that were replaced, as text, for the report.
    command: the command that repeats this comparison, for the report.

  Raises:
    UserError: a mistake in the arguments or the config. A strategy that does not go with the model is no error, but a
      result with status "refused".
  """
  config = resolve(config)
  for strategy in strategies:
    find_strategy(strategy.split(":")[0])
  if not strategies:
    raise UserError("--strategies= is empty: name some, for instance dp,fsdp,tp")
  if steps < 1:
    raise UserError(f"--steps={steps} must be positive")
  request = {"config": to_dict(config), "parameter": parameter, "steps": steps}
  if topology:
    needs_compiler(topology)
  model = run_worker(request | {"task": "describe", "topology": topology}, FORECAST_ENV)
  if topology:
    results = _forecast(request, strategies, topology, progress)
    place = f"{chip_count(topology)} x TPU {parse_topology(topology)[0]}"
    notes = [calibration.sentence(), ASSUMPTIONS, *_overlap_notes(results)]
  else:
    results, place, notes = _measure(request, strategies, devices, config.model.dtype, progress)
  return Comparison(
    kind="forecast" if topology else "measured",
    config=name,
    devices=place,
    topology=topology or None,
    batch_size=config.train.batch_size,
    tokens_per_step=model["tokens"],
    parameters=model["parameters"],
    remat=config.model.remat,
    notes=tuple(notes),
    strategies=tuple(results),
    versions=versions(),
    overrides=dict(overrides or {}),
    command=command,
  )


def _measure(
  request: dict[str, Any], strategies: Sequence[str], devices: int, dtype: str, progress: bool
) -> tuple[list[StrategyResult], str, list[str]]:
  """(results, the devices in words, notes)."""
  probe = run_worker({"task": "probe"}, {})
  count = devices or probe["devices"]
  emulated = count > probe["devices"]
  env = {}
  if emulated:
    others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    env = {"XLA_FLAGS": " ".join([*others, f"--xla_force_host_platform_device_count={count}"]), "JAX_PLATFORMS": "cpu"}
  shared_cpu = count > 1 and (emulated or probe["platform"] == "cpu")
  place = f"{count} x {'cpu (emulated)' if shared_cpu else probe['kind']}"
  notes = [EMULATED] if shared_cpu else []
  results: list[StrategyResult] = []
  reference: dict[str, Any] = {}
  for index, work in enumerate(_progress(["one device in float32", *strategies], "measuring", progress)):
    if index == 0:
      try:
        reference = run_worker(request | {"task": "reference"}, env)
        notes.append(REFERENCE.format(dtype))
      except WorkerCrash as crash:
        notes.append(f"No comparison with one device in float32: its process ended with {crash.reason}.")
      continue
    try:
      values = run_worker(request | {"task": "measure", "strategy": work, "devices": count}, env)
      results.append(_with_differences(result_from_json(values["result"]), values, reference))
    except WorkerCrash as crash:
      results.append(_crashed(work, crash))
  if shared_cpu:
    old = importlib.metadata.version("jax").startswith("0.9.")
    notes += [CPU_PROGRAMS, OLD_CPU_PROGRAMS] if old else [CPU_PROGRAMS]
  return results, place, notes


def _forecast(
  request: dict[str, Any], strategies: Sequence[str], topology: str, progress: bool
) -> list[StrategyResult]:
  results = []
  for strategy in _progress(strategies, "forecasting", progress):
    try:
      values = run_worker(request | {"task": "forecast", "strategy": strategy, "topology": topology}, FORECAST_ENV)
      result = result_from_json(values["result"])
    except WorkerCrash as crash:
      result = _crashed(strategy, crash)
    results.append(dataclasses.replace(result, calibration_error=calibration.sentence()))
  return results


def _progress(items: Sequence[str], verb: str, show: bool) -> Iterator[str]:
  """The items, with a progress bar on a terminal and a log line per item elsewhere."""
  terminal = sys.stderr.isatty()
  with tqdm(total=len(items), disable=not (show and terminal), unit="strategy", leave=False) as bar:
    for number, item in enumerate(items, 1):
      if show and not terminal:
        log.info("%s %s (%d of %d)", verb, item, number, len(items))
      bar.set_description(item)
      yield item
      bar.update()


def _crashed(strategy: str, crash: WorkerCrash) -> StrategyResult:
  return StrategyResult(strategy, {}, COMPILER_CRASH, f"the process that compiled it ended with {crash.reason}")


def _with_differences(result: StrategyResult, run: dict[str, Any], reference: dict[str, Any]) -> StrategyResult:
  """The result with the largest relative differences of losses and gradient norms between run and reference."""
  if "losses" not in run or "losses" not in reference:
    return result

  def largest(name: str) -> float:
    pairs = zip(run[name], reference[name], strict=False)  # with one timed step the run has fewer than the reference
    return max(abs(a - b) / max(abs(b), 1e-30) for a, b in pairs)

  return dataclasses.replace(result, loss_difference=largest("losses"), grad_norm_difference=largest("grad_norms"))


def _overlap_notes(results: Sequence[StrategyResult]) -> list[str]:
  """A note for each program that nearly fills the memory and whose communication XLA:TPU therefore does not overlap."""
  notes = []
  for result in results:
    seconds, memory = result.forecast_step_seconds, result.memory_bytes
    if seconds is None or memory is None or memory.peak < NEARLY_FULL * (result.memory_limit or math.inf):
      continue
    if seconds.communication > 0.05 * seconds.total and seconds.hidden < 0.05 * seconds.communication:
      notes.append(
        f"{result.strategy}: the compiler hides none of its {seconds.communication:.2f} s of communication, because "
        f"the step needs {human_bytes(memory.peak)} of {human_bytes(result.memory_limit or 0)}. A step that needs less "
        f"memory may be faster, or the same one with LIBTPU_INIT_ARGS={WHOLE_MEMORY_FLAG}."
      )
  return notes
