"""A process that does the work of one strategy: python -m tfm_jax.compare.worker REQUEST.json RESULT.json.

In a process of its own a crash of the compiler, or a lack of memory, is one row of the comparison and not its end.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tfm_jax.errors import UserError


def answer(request: dict[str, Any]) -> dict[str, Any]:
  """What a request asks for: `probe`, `describe`, `control`, `measure` or `forecast`.

  A strategy that does not go with the model is a refused row; a topology that does not exist is an `error`.
  """
  import jax

  from tfm_jax.compare import work
  from tfm_jax.compare.record import to_json
  from tfm_jax.training.config import from_dict

  if request["task"] == "probe":
    devices = jax.devices()
    return {"devices": len(devices), "platform": devices[0].platform, "kind": devices[0].device_kind}
  config = from_dict(request["config"])
  if request["task"] == "describe":
    return _described(config, request["topology"], request["parameter"])
  if request["task"] == "control":
    return work.control(config)
  strategy, layout = request["strategy"], request["parameter"]
  try:
    if request["task"] == "forecast":
      made = work.forecast(config, strategy, request["topology"], layout)
    else:
      devices = jax.devices()[: request["devices"]]
      made = work.measure(config, strategy, devices, request["steps"], layout)
  except UserError as error:
    made = {"row": work.refused(strategy, error)}
  return made | {"row": to_json(made["row"])}


def _described(config: Any, topology: str, parameter: str) -> dict[str, Any]:
  """Number of parameters and tokens of a step; an error if the topology or the parameter does not exist."""
  from tfm_jax.compare import work
  from tfm_jax.compare.program import fields_of, vocabulary_size
  from tfm_jax.compare.topology import topology_devices
  from tfm_jax.models.model import Model
  from tfm_jax.sharding.placement import single_device
  from tfm_jax.training.flops import sequence_lengths

  try:
    if topology:
      topology_devices(topology)
    model = Model(config.family, config.model, single_device(), vocabulary_size(config))
    work.parameter_leaves(model, parameter)
    tokens = sum(sequence_lengths(config.model, fields_of(config)))
    return {"parameters": model.parameter_count(), "tokens": config.train.batch_size * tokens}
  except UserError as error:
    return {"error": str(error)}


def main() -> None:
  """Answers the request in one file with another, which stands whole or not at all."""
  request, result = (Path(name) for name in sys.argv[1:])
  made = answer(json.loads(request.read_text()))
  temporary = result.with_suffix(".tmp")
  temporary.write_text(json.dumps(made))
  os.replace(temporary, result)


if __name__ == "__main__":
  main()
