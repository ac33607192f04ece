"""TPU slices by name, as "v5e:16x16", to compile for without having them."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from tfm_jax.errors import UserError
from tfm_jax.runtime.chips import TPUS, Chip


def parse_topology(topology: str) -> tuple[str, str, int]:
  """(generation, "AxB", slices) of "v5e:16x16" or, for several slices, "4*v5e:16x16". Raises UserError."""
  slices, star, rest = topology.partition("*")
  if not star:
    slices, rest = "1", topology
  name, _, shape = rest.partition(":")
  if name not in TPUS or not slices.isdigit() or int(slices) < 1 or not shape.replace("x", "").isdigit():
    raise UserError(
      f"--topology={topology} is unknown: write GENERATION:AxB[xC], as v5e:16x16 or v5p:8x8x8, or N*v5e:16x16 for N "
      f"slices; generations: {', '.join(TPUS)}"
    )
  return name, shape, int(slices)


def chip_count(topology: str) -> int:
  """Number of chips, all slices together. Raises UserError."""
  _, shape, slices = parse_topology(topology)
  return slices * math.prod(int(extent) for extent in shape.split("x"))


def topology_devices(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
  """The chip's constants, and device descriptions to compile for; the devices need not exist. Raises UserError."""
  name, shape, slices = parse_topology(topology)
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if name == "v4":
    options["chip_config_name"] = "megacore"  # two cores form one device, as on TPU VMs
  from jax.experimental import topologies

  try:
    description = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape}", **options)
  except Exception as error:  # its type depends on whether libtpu or the name is at fault
    message = " ".join(str(error).split())
    if "INVALID_ARGUMENT" in message:
      raise UserError(
        f"--topology={topology}: the TPU compiler knows no such slice ({message.split(': ', 1)[-1]})"
      ) from error
    raise UserError(
      f"--topology needs the TPU compiler, which does not start here ({message}); pip install -e '.[tpu]' installs it"
    ) from error
  return TPUS[name], description.devices
