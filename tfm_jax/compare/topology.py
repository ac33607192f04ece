"""Slices of TPUs by name, to compile for without having them."""

from collections.abc import Sequence
from typing import Any

import jax

from tfm_jax.errors import UserError
from tfm_jax.training.chips import TPUS, Chip


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


def topology_devices(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
  """The chip, and the devices of a topology to compile for; none of them has to exist. Raises UserError."""
  name, shape, slices = parse_topology(topology)
  kind: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if name == "v4":
    kind["chip_config_name"] = "megacore"  # two cores, one device: as TPU VMs show it
  from jax.experimental import topologies

  try:
    made = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape}", **kind)
  except Exception as error:  # of several types, by where libtpu or the name is amiss
    said = " ".join(str(error).split())
    if "INVALID_ARGUMENT" in said:
      raise UserError(
        f"--topology={topology}: the TPU compiler knows no such slice ({said.split(': ', 1)[-1]})"
      ) from error
    raise UserError(
      f"--topology needs the TPU compiler, which does not start here: pip install 'jax[tpu]' brings libtpu ({said})"
    ) from error
  return TPUS[name], made.devices
