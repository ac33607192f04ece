"""What the forecasts take for granted of each TPU generation: one stated set of constants, none fitted to a run."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from tfm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation, a device as JAX sees it (v4, v5p: a chip of two cores that act as one; tpu7x: half a chip).

  Attributes:
    name: in topologies, as "v5e".
    peak: dense bfloat16 FLOP/s: the vendor's data sheet.
    hbm: bytes a second of its memory: the data sheet.
    memory: bytes that a program may use: what the compiler names when a program does not fit.
    clock: cycles a second, by which the compiler's cycles become seconds: the peak divided by the multiplications and
      additions of its matrix units in a cycle (128 x 128 each; v6e and tpu7x 256 x 256).
    unit: rows and columns of a matrix unit.
    link: bytes a second of one link in one direction, between chips of a slice: the data sheet.
    ring: the extent from which an axis of the slice closes to a ring; shorter ones are lines.
    network: bytes a second of the network between slices, for one chip: that of its host, shared by the host's chips.
  """

  name: str
  peak: float
  hbm: float
  memory: int
  clock: float
  unit: int
  link: float
  ring: int
  network: float


_GIB = 2**30
CHIPS = {
  "v4": Chip("v4", 275e12, 1.2e12, int(30.75 * _GIB), 1.05e9, 128, 45e9, 4, 6.25e9),
  "v5e": Chip("v5e", 197e12, 0.81e12, int(15.75 * _GIB), 1.5e9, 128, 50e9, 16, 3.125e9),
  "v5p": Chip("v5p", 459e12, 2.77e12, int(95.73 * _GIB), 1.75e9, 128, 100e9, 4, 6.25e9),
  "v6e": Chip("v6e", 918e12, 1.64e12, int(31.24 * _GIB), 1.75e9, 256, 100e9, 16, 12.5e9),
  "tpu7x": Chip("tpu7x", 1153.5e12, 3.7e12, int(94.74 * _GIB), 2.2e9, 256, 100e9, 4, 12.5e9),
}

# The share of the peak that a matrix product reaches: between 0.88 and 0.97 by the compiler's cycles of large ones that
# have nothing fused into them. One value for all generations. Two runs of the calibration were known when it was set
# (v5e, one slice): they would want 0.88 and 0.96.
MATRIX_EFFICIENCY = 0.92
# The share of the peak that splash attention reaches in its tiles: its softmax keeps the vector unit busy between two
# products whose inner size (a head of 128) fills the matrix unit but shortly.
SPLASH_EFFICIENCY = 0.5
# The share of the memory's bandwidth that streaming operations reach.
HBM_EFFICIENCY = 0.85
# One hop of a collective between neighbours; and the start of one over the network between slices.
HOP_SECONDS = 1e-6
NETWORK_SECONDS = 1e-4


def parse_topology(topology: str) -> tuple[str, str, int]:
  """(generation, "AxB", slices) of "v5e:16x16" or, for several slices, "4*v5e:16x16". Raises UserError."""
  slices, star, rest = topology.partition("*")
  if not star:
    slices, rest = "1", topology
  name, _, shape = rest.partition(":")
  if name not in CHIPS or not slices.isdigit() or int(slices) < 1 or not shape.replace("x", "").isdigit():
    raise UserError(
      f"--topology={topology} is unknown: write GENERATION:AxB[xC], as v5e:16x16 or v5p:8x8x8, or N*v5e:16x16 for N "
      f"slices; generations: {', '.join(CHIPS)}"
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
  return CHIPS[name], made.devices
