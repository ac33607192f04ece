"""`compare`: strategies side by side, each in a process of its own, measured or forecast."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tfm_jax.compare import calibration
from tfm_jax.compare.record import COMPILER_CRASH, Comparison, Row, row_from_json
from tfm_jax.compare.topology import parse_topology
from tfm_jax.errors import UserError
from tfm_jax.sharding.strategy import find_strategy
from tfm_jax.training.config import Config, resolve, to_dict
from tfm_jax.training.tracking import human_bytes

EMULATED = (
  "The devices are emulated on the cores of one CPU: their times rank nothing. What holds on real devices too: the "
  "agreement with one device, the memory of state and gradients, and which collectives there are."
)
CPU_PROGRAMS = (
  "XLA:CPU writes an all-reduce and a slice for a reduce-scatter, and moves float32 where others move bfloat16."
)
REFERENCE = (
  "Differences are to one device in float32, the largest of the first three steps; the strategies compute in {}."
)
SPLASH = (
  "The compiler says nothing of the cost of splash attention: its products are taken to reach half of the peak. "
  "Large matrix products are taken to reach 92 % of it (83 % on tpu7x), narrow ones less, and streaming operations "
  "85 % of the memory's bandwidth."
)

NEARLY_FULL = 0.9  # of a device's memory: from here on XLA:TPU is seen to hide no communication, unless it is told to
WHOLE_MEMORY = "--xla_tpu_scheduler_percent_shared_memory_limit=100"


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
  """Lays strategies side by side.

  Args:
    config: what is trained. Its batch is the global batch; no corpus is read.
    strategies: names, or `NAME:AXIS=SIZE:...` for another mesh than the preset.
    devices: number of devices to measure on; 0: those that are there. Where there are fewer, CPU devices are emulated.
    topology: TPUs to forecast for instead, as "v5e:16x16" or "2*v5e:16x16" (two slices).
    steps: that are timed.
    parameter: path of the parameter whose layout is drawn; empty: the largest of the blocks.
    name: of the config, for the report.
    progress: show a bar.
    overrides: keys of the config that were replaced, as text, for the report.
    command: that repeats this comparison, for the report.

  Raises:
    UserError: a mistake in the arguments or the config. A strategy that does not go with the model is a row instead.
  """
  config = resolve(config)
  for strategy in strategies:
    find_strategy(strategy.split(":")[0])
  if not strategies:
    raise UserError("--strategies= names none: dp,fsdp,tp for instance")
  if steps < 1:
    raise UserError(f"--steps={steps} must be positive")
  request = {"config": to_dict(config), "parameter": parameter, "steps": steps}
  if topology:
    parse_topology(topology)
    if importlib.util.find_spec("libtpu") is None:
      raise UserError("--topology needs the TPU compiler: pip install 'jax[tpu]' brings libtpu; no TPU has to be there")
  about = _ask(request | {"task": "describe", "topology": topology}, _DESCRIBED, must=True)
  if topology:
    rows, where = _forecast(request, strategies, topology, progress), _described(topology)
    notes: tuple[str, ...] = (SPLASH, calibration.sentence(), *_unhidden(rows))
  else:
    rows, where, notes = _measure(request, strategies, devices, config.model.dtype, progress)
  return Comparison(
    kind="forecast" if topology else "measured", config=name, devices=where, topology=topology or None,
    batch_size=config.train.batch_size, tokens_per_step=about["tokens"],
    parameters=about["parameters"], remat=config.model.remat, notes=notes, strategies=tuple(rows), versions=_versions(),
    overrides=dict(overrides or {}), command=command,
  )  # fmt: skip


def _unhidden(rows: Sequence[Row]) -> list[str]:
  """Of programs that fill the memory: XLA:TPU then waits for each transfer as soon as it has begun."""
  notes = []
  for row in rows:
    seconds, memory = row.forecast_step_seconds, row.memory_bytes
    if seconds is None or memory is None or memory.peak < NEARLY_FULL * (row.memory_limit or math.inf):
      continue
    if seconds.communication > 0.05 * seconds.total and seconds.hidden < 0.05 * seconds.communication:
      notes.append(
        f"{row.strategy}: the compiler hides none of its {seconds.communication:.2f} s of communication, as the step "
        f"needs {human_bytes(memory.peak)} of {human_bytes(row.memory_limit or 0)}: one that needs less may be faster, "
        f"or the same with LIBTPU_INIT_ARGS={WHOLE_MEMORY}."
      )
  return notes


def _measure(
  request: dict[str, Any], strategies: Sequence[str], devices: int, dtype: str, progress: bool
) -> tuple[list[Row], str, tuple[str, ...]]:
  """(rows, the devices in words, notes)."""
  there = _ask({"task": "probe"}, {}, must=True)
  count = devices or there["devices"]
  emulated = count > there["devices"]
  env = {}
  if emulated:
    others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    env = {"XLA_FLAGS": " ".join([*others, f"--xla_force_host_platform_device_count={count}"]), "JAX_PLATFORMS": "cpu"}
  cpu = emulated or there["platform"] == "cpu"
  where = f"{count} x {'cpu (emulated)' if cpu and count > 1 else there['kind']}"
  work = ["one device in float32", *strategies]
  rows: list[Row] = []
  reference: dict[str, Any] | None = None
  for asked in _shown(work, progress):
    if reference is None:
      reference = _ask(request | {"task": "control"}, env)
      continue
    made = _ask(request | {"task": "measure", "strategy": asked, "devices": count}, env)
    rows.append(_with_differences(made, reference) if "row" in made else _crash(asked, made))
  notes = [REFERENCE.format(dtype)] if reference and "losses" in reference else []
  if reference and "losses" not in reference:
    notes.append(f"There is no comparison with one device in float32: {reference['failed']}.")
  if cpu and count > 1:
    notes = [EMULATED, *notes, CPU_PROGRAMS]
  return rows, where, tuple(notes)


def _forecast(request: dict[str, Any], strategies: Sequence[str], topology: str, progress: bool) -> list[Row]:
  rows = []
  for asked in _shown(strategies, progress):
    made = _ask(request | {"task": "forecast", "strategy": asked, "topology": topology}, _DESCRIBED)
    row = row_from_json(made["row"]) if "row" in made else _crash(asked, made)
    rows.append(dataclasses.replace(row, calibration_error=calibration.sentence()))
  return rows


# The TPU compiler neither looks for a TPU nor asks the cloud's metadata server.
_DESCRIBED = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_LIBRARY_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}


def _described(topology: str) -> str:
  name, shape, slices = parse_topology(topology)
  chips = slices
  for extent in shape.split("x"):
    chips *= int(extent)
  return f"{chips} x TPU {name} chips, none of them here"


def _shown(items: Sequence[str], progress: bool) -> Iterator[str]:
  """The items, with a bar that says which is at work."""
  with tqdm(total=len(items), disable=not progress, unit="strategy", leave=False) as bar:
    for item in items:
      bar.set_description(item)
      yield item
      bar.update()


def _ask(request: dict[str, Any], env: dict[str, str], must: bool = False) -> dict[str, Any]:
  """The answer of a worker; `failed` and `status` say how it ended without one. Its UserErrors are raised here."""
  with tempfile.TemporaryDirectory(prefix="tfm_jax-compare-") as folder:
    asked, result, said = (Path(folder) / name for name in ("request.json", "result.json", "said.txt"))
    asked.write_text(json.dumps(request))
    command = [sys.executable, "-m", "tfm_jax.compare.worker", str(asked), str(result)]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with said.open("w") as log:  # the TPU library writes to the process's own error stream
      ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": path} | env, stdout=log, stderr=log, check=False)
    if result.exists():
      answer: dict[str, Any] = json.loads(result.read_text())
      if "error" in answer:
        raise UserError(answer["error"])
      return answer
    lines = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "Error" in line or "error" in line), lines[-1] if lines else "")
    if must:
      raise RuntimeError(f"a worker of compare failed: {reason}\n" + "\n".join(lines[-40:]))
    return {"failed": reason[:400], "status": ended.returncode}


def _crash(strategy: str, made: dict[str, Any]) -> Row:
  status = made["status"]
  how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
  return Row(strategy, {}, COMPILER_CRASH, f"the process that compiled it ended with {how}: {made['failed']}")


def _with_differences(made: dict[str, Any], reference: dict[str, Any]) -> Row:
  """The row, with the largest relative differences of the first steps from the reference."""
  row = row_from_json(made["row"])
  if "losses" not in made or "losses" not in reference:
    return row

  def largest(name: str) -> float:
    pairs = zip(made[name], reference[name], strict=False)  # one timed step is fewer than the reference has
    return max(abs(a - b) / max(abs(b), 1e-30) for a, b in pairs)

  return dataclasses.replace(row, loss_difference=largest("losses"), grad_norm_difference=largest("grad_norms"))


def _versions() -> dict[str, str]:
  found = {}
  for package in ("tfm_jax", "jax", "jaxlib", "libtpu"):
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found
