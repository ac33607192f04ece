"""A forecast of a compiled TPU program's time: its schedule played through, operation by operation.

The compiler's text is in scheduled order. An operation of the core takes the longer of what its units take and what its
traffic with the memory takes. For matrix products the units' time is that of their multiplications at a stated share of
the peak, and of what they cannot load and store meanwhile, which makes narrow ones slower: the compiler's own cycles
count what is fused into a product as if it had to wait, and overshoot published steps by a fifth. For other operations
it is the compiler's cycles, where they are fewer than the traffic's. Collectives and copies in two halves go on
meanwhile; the second half waits for the rest of them.
"""

import dataclasses
import re

import numpy as np
from jax.sharding import Mesh

from tfm_jax.compare.hlo import (
  Computation,
  Instruction,
  Module,
  axes_of,
  groups_of,
  payload,
  sent,
  sent_between_slices,
  shape_bytes,
)
from tfm_jax.compare.products import executed_flops, flops, splash_flops
from tfm_jax.compare.record import Seconds
from tfm_jax.training.chips import Chip

# What a matrix product cannot load or store while it multiplies: its first tiles and its last ones, all of them where
# they fill the fast memory but once. From Google's own products of squares on a tpu7x device: those of 2,048 move 25 MB
# and reach 679 TFLOP/s (by this rule 663), those of 4,096 reach 893 (906). Below, at 1,024 (350; 506), the start of the
# program shows too, which a step pays but once.
EXPOSED_BYTES = 25e6
# The share of the peak that splash attention reaches in its tiles: its softmax keeps the vector unit busy between two
# products whose inner size (a head of 128) fills the matrix unit but shortly.
SPLASH_EFFICIENCY = 0.5
# The share of the memory's bandwidth that streaming operations reach.
HBM_EFFICIENCY = 0.85
# One hop of a collective between neighbours; and the start of one over the network between slices.
HOP_SECONDS = 1e-6
NETWORK_SECONDS = 1e-4

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass
class Times:
  """Seconds by what was waited for; `axes`: exposed communication by mesh axes."""

  compute: float = 0.0
  hbm: float = 0.0
  communication: float = 0.0
  hidden: float = 0.0
  axes: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, other: "Times", times: int = 1) -> None:
    """Adds another's, so many times."""
    for name in ("compute", "hbm", "communication", "hidden"):
      setattr(self, name, getattr(self, name) + times * getattr(other, name))
    for axis, seconds in other.axes.items():
      self.axes[axis] = self.axes.get(axis, 0.0) + times * seconds

  @property
  def total(self) -> float:
    """Of the step."""
    return self.compute + self.hbm + self.communication


@dataclasses.dataclass
class _Flight:
  """Something that goes on beside the core: until when, over which axes (None: a copy), how long it takes."""

  end: float
  axes: str | None
  seconds: float


class Forecast:
  """The time of a program on a mesh of described TPUs.

  Args:
    module: the compiled program, its text in scheduled order.
    mesh: of the devices that it was compiled for.
    chip: their constants.
  """

  def __init__(self, module: Module, mesh: Mesh, chip: Chip) -> None:
    self.module, self.mesh, self.chip = module, mesh, chip
    self._links: dict[str, tuple[float, int, int]] = {}
    self._products: dict[str, float] = {}

  def seconds(self) -> tuple[Seconds, str]:
    """(the forecast, what binds it: "compute", "hbm" or "communication over AXES")."""
    t = self._run(self.module.computations[self.module.entry])
    parts = {"compute": t.compute, "hbm": t.hbm}
    parts |= {f"communication over {axis}": s for axis, s in t.axes.items()}
    return Seconds(t.total, t.compute, t.hbm, t.communication, t.hidden), max(parts, key=lambda k: parts[k])

  def _run(self, where: Computation) -> Times:
    """One execution of a computation whose instructions are in scheduled order."""
    t, now = Times(), 0.0
    flights: dict[str, _Flight] = {}
    free: dict[str, float] = {}  # links, by mesh axes and direction, and the copies' engine: until when they are taken
    for i in where.instructions:
      if i.op == "while":
        body = self._run(self.module.computations[i.called("body") or ""])
        trips = self.module.trips(i, where)
        t.add(body, trips)
        now += body.total * trips
        continue
      if self._starts(i):
        axes, seconds = self._communication(i)
        links = f"{axes} {self._direction(i)}"
        free[links] = max(now, free.get(links, 0.0)) + seconds
        flights[i.between_slices[1] if i.between_slices else i.name] = _Flight(free[links], axes, seconds)
        continue
      flight = self._landing(i, where, flights)
      if flight is not None:
        waited = max(flight.end - now, 0.0)
        now += waited
        if flight.axes is None:
          t.hbm += waited
        else:
          self._communicated(t, flight.axes, waited, flight.seconds)
        continue
      if i.kind is not None or (i.op == "fusion" and "all-reduce-scatter" in (i.called("calls") or "")):
        over, seconds = self._communication(i)
        self._communicated(t, over or "?", seconds, seconds)
        now += seconds
        continue
      compute, hbm, filling = self._operation(i, where)
      taken = max(compute + filling, hbm)
      now += taken
      if compute >= hbm:
        t.compute += taken
      else:
        t.hbm += taken
    return t

  @staticmethod
  def _communicated(t: Times, axes: str, waited: float, seconds: float) -> None:
    t.communication += waited
    t.hidden += max(seconds - waited, 0.0)
    t.axes[axes] = t.axes.get(axes, 0.0) + waited

  # --- what goes on beside the core

  @staticmethod
  def _starts(i: Instruction) -> bool:
    """Whether it is the first half of something that goes on beside the core."""
    if i.op == "send":
      return i.between_slices is not None
    return i.op.endswith("-start") or (i.op == "fusion" and i.name.startswith("async-collective-start"))

  def _direction(self, i: Instruction) -> int:
    """Which way round a permutation sends: the two ways have links of their own. 0 for what uses both."""
    if i.kind != "collective-permute":
      return 0
    pairs = groups_of(i, self.mesh.size)  # all but the one that closes the ring go the same way
    return 1 if (pairs[:, 1] > pairs[:, 0]).mean() >= 0.5 else -1

  @staticmethod
  def _landing(i: Instruction, where: Computation, flights: dict[str, _Flight]) -> _Flight | None:
    """The flight whose second half this is."""
    if i.op == "recv-done" and (received := where.by_name.get(i.operands[0])) and received.between_slices:
      return flights.get(received.between_slices[1])
    if i.op.endswith("-done"):
      return flights.get(i.operands[0]) if i.operands else None
    if i.op == "fusion" and i.name.startswith("async-collective-done"):
      number = i.name.removeprefix("async-collective-done")
      return flights.get("async-collective-start" + number)
    return None

  def _communication(self, i: Instruction) -> tuple[str | None, float]:
    """(mesh axes, seconds) of a collective; (None, seconds) of a copy between memories."""
    if i.between_slices:
      over, size = sent_between_slices(i, self.mesh)
      return over, size / self.chip.network + NETWORK_SECONDS
    inner = i if i.kind else next((c for c, _, _ in self._inside(i) if c.kind), None)
    if inner is None:
      smallest = min((shape_bytes(s) for s in i.shapes if shape_bytes(s) > 64), default=0)
      return None, smallest / self.chip.hbm
    groups = groups_of(inner, self.mesh.size)
    axes = axes_of(groups, self.mesh, inner.kind == "collective-permute")
    if groups.shape[1] < 2:
      return axes, 0.0
    seconds = self._collective_seconds(inner, groups, axes)
    # A fusion of an all-reduce and a slice is a reduce-scatter, half of it; the two apart are what they say.
    return axes, seconds / 2 if inner is not i and inner.kind == "all-reduce" else seconds

  def _inside(self, i: Instruction) -> list[tuple[Instruction, Computation, int]]:
    name = i.called("calls") or i.called("called_computations")
    return list(self.module.executed(name)) if name in self.module.computations else []

  def _collective_seconds(self, i: Instruction, groups: np.ndarray, axes: str) -> float:
    """Around rings of the slice's links; between slices each chip of a slice brings its share over the network."""
    kind, size = i.kind or "", payload(i)
    if kind == "collective-permute":
      return size / self.chip.link + HOP_SECONDS
    links, hops, slices = self._links_of(groups[0], axes)
    within = groups.shape[1] // slices
    seconds = sent(kind, size, within) / (links * self.chip.link) + hops * HOP_SECONDS if within > 1 else 0.0
    if slices > 1:
      share = size / (within if kind != "reduce-scatter" else 1)
      seconds += sent(kind, int(share), slices) / self.chip.network + NETWORK_SECONDS
    return seconds

  def _links_of(self, group: np.ndarray, axes: str) -> tuple[float, int, int]:
    """(links that carry a collective at a time, hops, slices) of a group of devices."""
    key = f"{axes} {len(group)}"
    if key not in self._links:
      devices = [self.mesh.devices.flat[n] for n in group]
      everyone = np.array([d.coords for d in self.mesh.devices.flat])
      slices = len({getattr(d, "slice_index", None) or 0 for d in devices})
      coordinates = np.array([d.coords for d in devices])
      links, hops = 0.0, 0
      for axis in range(coordinates.shape[1]):
        extent, whole = len(set(coordinates[:, axis])), len(set(everyone[:, axis]))
        if extent > 1:
          closed = extent == whole and extent >= self.chip.ring and extent % self.chip.ring == 0
          links += 2.0 if closed else 1.0
          hops += extent // 2 if closed else extent - 1
      self._links[key] = (max(links, 1.0), max(hops, 1), slices)
    return self._links[key]

  # --- what the core does

  def _operation(self, i: Instruction, where: Computation) -> tuple[float, float, float]:
    """(seconds of the units, of memory traffic beside them, of traffic for which the units wait) of one operation."""
    if i.op == "custom-call" and "tpu_custom_call" in i.rest:
      return splash_flops(i, where) / (self.chip.peak * SPLASH_EFFICIENCY), 0.0, 0.0
    cycles = _CYCLES.search(i.rest)
    if cycles is None:
      return 0.0, 0.0, 0.0
    traffic = self._traffic(i, where) / (self.chip.hbm * HBM_EFFICIENCY)
    products = self._product_flops(i, where)
    if products:
      filling = min(traffic, EXPOSED_BYTES / (self.chip.hbm * HBM_EFFICIENCY))
      return products / (self.chip.peak * self.chip.matrix), traffic, filling
    # What the compiler says of operations without a product lies far above what their traffic takes: they stream.
    units = int(cycles[1]) / self.chip.clock
    return min(units, traffic) if traffic > 0 else units, traffic, 0.0

  def _product_flops(self, i: Instruction, where: Computation) -> float:
    """Of the products in an operation, those of a fusion together."""
    name = i.called("calls")
    if name is None or name not in self.module.computations:
      return flops(i, where, self.chip.unit)
    if name not in self._products:
      self._products[name] = executed_flops(self.module, name, self.chip.unit)
    return self._products[name]

  def _traffic(self, i: Instruction, where: Computation) -> int:
    """Bytes that an operation reads from and writes to the memory: parts of arrays where it slices them."""
    called = self.module.computations.get(i.called("calls") or "")
    written = sum(shape_bytes(s) for s in i.shapes if not s[2])
    read = 0
    parameters = {int(p.arguments): p for p in called.instructions if p.op == "parameter"} if called else {}
    for n, name in enumerate(i.operands):
      operand = where.by_name.get(name)
      if operand is None or any(s[2] for s in operand.shapes):
        continue
      whole = operand.bytes
      if called is not None and n in parameters:
        part, updated = _part_read(called, parameters[n].name)
        if updated is not None:  # written in place: neither read nor written whole
          written -= whole - updated
        whole = whole if part is None else min(part, whole)
      read += whole
    return max(read + written, 0)


def _part_read(called: Computation, name: str) -> tuple[int | None, int | None]:
  """(bytes read of a fusion's parameter if only slices of it are, None if all of it; bytes of an update in place)."""
  names, read = {name}, 0
  for i in called.instructions:
    if not names.intersection(i.operands):
      continue
    if i.op == "bitcast":
      names.add(i.name)
    elif i.op == "dynamic-slice":
      read += i.bytes
    elif i.op == "dynamic-update-slice" and i.operands[0] in names:
      update = called.by_name.get(i.operands[1])
      return 0, update.bytes if update else 0
    else:
      return None, None
  return read, None
