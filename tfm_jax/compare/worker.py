"""Worker processes: each strategy is compiled in a process of its own, so that its crash is one result, not the end.

`run_worker` runs `python -m tfm_jax.compare.worker REQUEST.json RESULT.json`, and `handle` is what that process does.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tfm_jax.errors import UserError

# For forecasts: the TPU compiler neither looks for a TPU nor queries the cloud's metadata server, and the GPU compiler
# needs none of CUDA's libraries.
FORECAST_ENV = {
  "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_LIBRARY_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}


class WorkerCrash(RuntimeError):
  """A worker that ended without a result. `reason` says how, in one line; the message has the end of its log."""

  def __init__(self, status: int, log: str) -> None:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "Error" in line or "error" in line), lines[-1] if lines else "")
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    self.reason = f"{how}: {last[:400]}"
    super().__init__(f"a worker of compare failed with {self.reason}\n" + "\n".join(lines[-40:]))


def run_worker(request: dict[str, Any], env: dict[str, str], seconds: float | None = None) -> dict[str, Any]:
  """The result of a request, computed by a new worker with `env` added to its environment.

  Args:
    request: see `handle`.
    env: variables.
    seconds: after which the worker is killed; None: it takes as long as it takes.

  Raises:
    UserError: the worker reports a mistake in the request.
    WorkerCrash: the worker ended without a result.
    TimeoutError: it was killed.
  """
  with tempfile.TemporaryDirectory(prefix="tfm_jax-compare-") as folder:
    request_file, result_file, log_file = (Path(folder) / name for name in ("request.json", "result.json", "log.txt"))
    request_file.write_text(json.dumps(request))
    command = [sys.executable, "-m", "tfm_jax.compare.worker", str(request_file), str(result_file)]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path} | env
    with log_file.open("w") as log:  # the TPU library writes to the process's own stderr
      try:
        process = subprocess.run(command, env=env, stdout=log, stderr=log, check=False, timeout=seconds)
      except subprocess.TimeoutExpired:
        raise TimeoutError(f"a worker of compare took longer than {seconds:.0f} s") from None
    if not result_file.exists():
      raise WorkerCrash(process.returncode, log_file.read_text(errors="replace"))
    result: dict[str, Any] = json.loads(result_file.read_text())
  if "error" in result:
    raise UserError(result["error"])
  return result


def handle(request: dict[str, Any]) -> dict[str, Any]:
  """The result of a request, whose `task` is `probe`, `describe`, `reference`, `measure` or `forecast`.

  A strategy that does not go with the model has a result with status "refused"; a topology or a parameter that does
  not exist is an `error`.
  """
  from tfm_jax.compare.compiled.result import refusal
  from tfm_jax.compare.forecast.forecast import forecast
  from tfm_jax.compare.measure import measure, measure_reference
  from tfm_jax.compare.results import to_json
  from tfm_jax.runtime.devices import all_devices
  from tfm_jax.training.config import from_dict

  if request["task"] == "probe":
    devices = all_devices()
    return {"devices": len(devices), "platform": devices[0].platform, "kind": devices[0].device_kind}
  config = from_dict(request["config"])
  if request["task"] == "describe":
    return _describe(config, request["topology"], request["parameter"])
  if request["task"] == "reference":
    return measure_reference(config)
  strategy, parameter = request["strategy"], request["parameter"]
  try:
    if request["task"] == "forecast":
      values: dict[str, Any] = {"result": forecast(config, strategy, request["topology"], parameter)}
    else:
      devices = all_devices()[: request["devices"]]
      result, losses, grad_norms = measure(config, strategy, devices, request["steps"], parameter)
      values = {"result": result, "losses": losses, "grad_norms": grad_norms}
  except UserError as error:
    values = {"result": refusal(strategy, error)}
  return values | {"result": to_json(values["result"])}


def _describe(config: Any, topology: str, parameter: str) -> dict[str, Any]:
  """Number of parameters, and tokens per step; an `error` if the topology or the parameter does not exist."""
  from tfm_jax.compare.compiled.shard_map import parameter_leaves
  from tfm_jax.compare.forecast.topology import topology_devices
  from tfm_jax.compare.program import fields_of, vocabulary_size
  from tfm_jax.models.model import Model
  from tfm_jax.sharding.placement import single_device
  from tfm_jax.training.compiled.flops import sequence_lengths

  try:
    if topology:
      topology_devices(topology)
    model = Model(config.family, config.model, single_device(), vocabulary_size(config))
    parameter_leaves(model, parameter)
    tokens = sum(sequence_lengths(config.model, fields_of(config)))
    return {"parameters": model.parameter_count(), "tokens": config.train.batch_size * tokens}
  except UserError as error:
    return {"error": str(error)}


def main() -> None:
  """Writes the result of the request in one file to another, which takes its name only when it is complete."""
  request_file, result_file = (Path(name) for name in sys.argv[1:])
  result = handle(json.loads(request_file.read_text()))
  temporary = result_file.with_suffix(".tmp")
  temporary.write_text(json.dumps(result))
  os.replace(temporary, result_file)


if __name__ == "__main__":
  main()
