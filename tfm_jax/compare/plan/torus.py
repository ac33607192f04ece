"""Where the axes of a mesh lie on the torus of a slice, without the devices: how many links each has, and hops."""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

from tfm_jax.compare.forecast.topology import chip_count, chip_of, parse_topology


class Wires(NamedTuple):
  """What connects the devices along some mesh axes.

  Attributes:
    links: that a collective uses at a time.
    hops: between the devices that are furthest apart.
    slices: groups that only the network connects.
  """

  links: float
  hops: int
  slices: int


def device_count(topology: str) -> int:
  """Number of devices as JAX counts them: of a tpu7x two per chip. Raises UserError."""
  return chip_count(topology) * chip_of(topology).per_chip


def slices_of(topology: str) -> int:
  """Number of slices. Raises UserError."""
  return parse_topology(topology)[2]


def wires(topology: str, sizes: Mapping[str, int]) -> dict[str, Wires]:
  """Mesh axis -> its wires, for all axes with more than one device.

  It follows `jax.make_mesh`: the innermost axes come first, and take as many whole axes of the torus as their size is
  the product of, or else parts of axes. Of several slices, the outermost axis that they divide runs across them.
  """
  chip, (_, shape, slices) = chip_of(topology), parse_topology(topology)
  whole = [int(extent) for extent in shape.split("x")] + ([chip.per_chip] if chip.per_chip > 1 else [])
  free = list(whole)
  across = next((axis for axis, size in sizes.items() if size % slices == 0), "") if slices > 1 else ""
  found = {}
  for axis, size in reversed(list(sizes.items())):
    if size == 1:
      continue
    within = size // slices if axis == across else size
    links, hops = 0.0, 0
    for place, extent in _taken(within, free):
      ring = extent == whole[place] and extent >= chip.ring and extent % chip.ring == 0
      links += 2.0 if ring else 1.0
      hops += extent // 2 if ring else extent - 1
    found[axis] = Wires(max(links, 1.0), max(hops, 1), slices if axis == across else 1)
  return found


def _taken(size: int, free: list[int]) -> list[tuple[int, int]]:
  """(axis of the torus, extent along it) that a mesh axis of this size takes; `free` is what is left, and shrinks."""
  places = [place for place, extent in enumerate(free) if extent > 1]
  for count in (3, 2, 1):
    for chosen in itertools.combinations(places, count):
      if math.prod(free[place] for place in chosen) == size:
        taken = [(place, free[place]) for place in chosen]
        for place in chosen:
          free[place] = 1
        return taken
  taken = []
  for place in sorted(places, key=lambda place: -free[place]):
    extent = math.gcd(size, free[place])
    if extent > 1:
      taken.append((place, extent))
      free[place] //= extent
      size //= extent
  return taken
