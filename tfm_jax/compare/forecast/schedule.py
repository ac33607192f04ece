"""Forecasts the step time of a compiled TPU program by simulating its schedule, operation by operation.

The compiler's text lists operations in scheduled order. An operation on the core takes the longer of two times: that of
its compute units and that of its memory traffic.

- Matrix products: the units need their FLOPs at a stated share of the chip's peak, plus the traffic that cannot overlap
  with them, which makes narrow products slower. (The compiler's own cycle estimates add up everything that is fused
  into a product, and overshoot published step times by a fifth.)
- Other operations: the units need the compiler's estimate of cycles, but never more than the traffic takes.

Asynchronous collectives and copies, also those between a chip and its host, run beside the core; their `-done` waits
for the time that is left.
"""

import dataclasses
import re

import numpy as np
from jax.sharding import Mesh

from tfm_jax.compare.compiled.collectives import axes_of, groups_of, payload, sent, sent_between_slices
from tfm_jax.compare.compiled.hlo import HOST, Computation, Instruction, Module, shape_bytes
from tfm_jax.compare.compiled.products import executed_flops, flops, splash_flops
from tfm_jax.compare.results import Seconds
from tfm_jax.runtime.chips import Tpu
from tfm_jax.sharding.placement import slice_count

# Bytes of a matrix product that it loads or stores while it cannot multiply: its first and last tiles, or everything if
# it fills the on-chip memory only once. From Google's own figures for square products on a tpu7x device: 2,048 wide
# moves 25 MB and reaches 679 TFLOP/s (663 by this rule), 4,096 wide reaches 893 (906). At 1,024 (350; 506) the start of
# the program counts too, which a train step pays only once.
EXPOSED_BYTES = 25e6
# The share of the peak that splash attention reaches: the vector unit computes softmax between two products whose inner
# size (a head of 128) keeps the matrix unit busy only briefly.
SPLASH_EFFICIENCY = 0.5
# The share of the memory bandwidth that streaming operations reach.
HBM_EFFICIENCY = 0.85
# Latency of one hop of a collective between neighbours, and of one collective over the network between slices.
HOP_SECONDS = 1e-6
NETWORK_SECONDS = 1e-4

HOST_LINK = "host"  # stands for the mesh axes of a copy between a chip and its host

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass
class Times:
  """Seconds by what limits them. `axes`: mesh axes -> seconds of exposed communication."""

  compute: float = 0.0
  hbm: float = 0.0
  communication: float = 0.0
  hidden: float = 0.0
  axes: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, other: "Times", times: int = 1) -> None:
    """Adds `times` executions of `other`."""
    for name in ("compute", "hbm", "communication", "hidden"):
      setattr(self, name, getattr(self, name) + times * getattr(other, name))
    for axis, seconds in other.axes.items():
      self.axes[axis] = self.axes.get(axis, 0.0) + times * seconds

  @property
  def total(self) -> float:
    """Seconds that the core is busy or waits; hidden communication is no part of it."""
    return self.compute + self.hbm + self.communication


@dataclasses.dataclass
class _Transfer:
  """A transfer that runs beside the core: when it ends, over which mesh axes (None: a copy), and how long it takes."""

  end: float
  axes: str | None
  seconds: float


class Forecast:
  """Simulates one step of a program on a TPU mesh.

  Args:
    module: the compiled program, with its instructions in scheduled order.
    mesh: the devices that it was compiled for.
    chip: the constants of these devices.
  """

  def __init__(self, module: Module, mesh: Mesh, chip: Tpu) -> None:
    self.module, self.mesh, self.chip = module, mesh, chip
    self._links: dict[str, tuple[float, int, int]] = {}
    self._products: dict[str, float] = {}

  def seconds(self) -> tuple[Seconds, str]:
    """(the forecast, its largest part: "compute", "hbm" or "communication over AXES")."""
    t = self._run(self.module.computations[self.module.entry])
    parts = {"compute": t.compute, "hbm": t.hbm}
    parts |= {f"communication over {axis}": s for axis, s in t.axes.items()}
    return Seconds(t.total, t.compute, t.hbm, t.communication, t.hidden), max(parts, key=lambda k: parts[k])

  def _run(self, where: Computation) -> Times:
    """The times of one execution of a computation."""
    t, now = Times(), 0.0
    transfers: dict[str, _Transfer] = {}
    free: dict[str, float] = {}  # when links (by mesh axes and direction) and the copy engine are free
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
        transfers[i.between_slices[1] if i.between_slices else i.name] = _Transfer(free[links], axes, seconds)
        continue
      transfer = self._finished(i, where, transfers)
      if transfer is not None:
        waited = max(transfer.end - now, 0.0)
        now += waited
        if transfer.axes is None:
          t.hbm += waited
        else:
          self._add_communication(t, transfer.axes, waited, transfer.seconds)
        continue
      if i.kind is not None or (i.op == "fusion" and "all-reduce-scatter" in (i.called("calls") or "")):
        over, seconds = self._communication(i)
        self._add_communication(t, over or "?", seconds, seconds)
        now += seconds
        continue
      compute, hbm, exposed = self._operation(i, where)
      seconds = max(compute + exposed, hbm)
      now += seconds
      if compute >= hbm:
        t.compute += seconds
      else:
        t.hbm += seconds
    return t

  @staticmethod
  def _add_communication(t: Times, axes: str, waited: float, seconds: float) -> None:
    """Adds a transfer of some seconds, of which the core waited for `waited`."""
    t.communication += waited
    t.hidden += max(seconds - waited, 0.0)
    t.axes[axes] = t.axes.get(axes, 0.0) + waited

  # --- transfers beside the core

  @staticmethod
  def _starts(i: Instruction) -> bool:
    """Whether the instruction starts a transfer that runs beside the core."""
    if i.op == "send":
      return i.between_slices is not None
    return i.op.endswith("-start") or (i.op == "fusion" and i.name.startswith("async-collective-start"))

  def _direction(self, i: Instruction) -> int:
    """1 or -1: the direction of a permutation, or of a copy to or from the host, each with its own links; else 0."""
    if i.kind is None and _with_host(i):
      return 1 if i.op.startswith("dynamic-update") or (i.op == "copy-start" and i.shapes[0][2] == HOST) else -1
    if i.kind != "collective-permute":
      return 0
    pairs = groups_of(i, self.mesh.size)  # all but the pair that closes the ring have the same direction
    return 1 if (pairs[:, 1] > pairs[:, 0]).mean() >= 0.5 else -1

  @staticmethod
  def _finished(i: Instruction, where: Computation, transfers: dict[str, _Transfer]) -> _Transfer | None:
    """The transfer for which this instruction waits; None for other instructions."""
    if i.op == "recv-done" and (received := where.by_name.get(i.operands[0])) and received.between_slices:
      return transfers.get(received.between_slices[1])
    if i.op.endswith("-done"):
      return transfers.get(i.operands[0]) if i.operands else None
    if i.op == "fusion" and i.name.startswith("async-collective-done"):
      number = i.name.removeprefix("async-collective-done")
      return transfers.get("async-collective-start" + number)
    return None

  def _communication(self, i: Instruction) -> tuple[str | None, float]:
    """(mesh axes, seconds) of a collective; ("host", ...) of a copy to or from it; (None, ...) of one on the chip."""
    if i.between_slices:
      over, size = sent_between_slices(i, self.mesh)
      return over, size / self.chip.network + NETWORK_SECONDS
    inner = i if i.kind else next((c for c, _, _ in self._inside(i) if c.kind), None)
    if inner is None:
      smallest = min((shape_bytes(s) for s in i.shapes if shape_bytes(s) > 64), default=0)
      return (HOST_LINK, smallest / self.chip.host) if _with_host(i) else (None, smallest / self.chip.hbm)
    groups = groups_of(inner, self.mesh.size)
    axes = axes_of(groups, self.mesh, inner.kind == "collective-permute")
    if groups.shape[1] < 2:
      return axes, 0.0
    seconds = self._collective_seconds(inner, groups, axes)
    # An all-reduce fused with a slice is a reduce-scatter, which sends half.
    return axes, seconds / 2 if inner is not i and inner.kind == "all-reduce" else seconds

  def _inside(self, i: Instruction) -> list[tuple[Instruction, Computation, int]]:
    """The instructions that an instruction calls, as of `Module.executed`."""
    name = i.called("calls") or i.called("called_computations")
    return list(self.module.executed(name)) if name in self.module.computations else []

  def _collective_seconds(self, i: Instruction, groups: np.ndarray, axes: str) -> float:
    """Rings over the links within a slice; between slices every chip sends its share over the network."""
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
    """(links that a collective uses at a time, hops, slices) for a group of devices."""
    key = f"{axes} {len(group)}"
    if key not in self._links:
      devices = [self.mesh.devices.flat[n] for n in group]
      everyone = np.array([d.coords for d in self.mesh.devices.flat])
      slices = slice_count(devices)
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

  # --- operations on the core

  def _operation(self, i: Instruction, where: Computation) -> tuple[float, float, float]:
    """Seconds of one operation: (compute units, memory traffic, the part of it that the units have to wait for)."""
    if i.op == "custom-call" and "tpu_custom_call" in i.rest:
      return splash_flops(i, where) / (self.chip.peak * SPLASH_EFFICIENCY), 0.0, 0.0
    cycles = _CYCLES.search(i.rest)
    if cycles is None:
      return 0.0, 0.0, 0.0
    traffic = self._traffic(i, where) / (self.chip.hbm * HBM_EFFICIENCY)
    products = self._product_flops(i, where)
    if products:
      exposed = min(traffic, EXPOSED_BYTES / (self.chip.hbm * HBM_EFFICIENCY))
      return products / (self.chip.peak * self.chip.matrix), traffic, exposed
    # Without a product an operation streams: the compiler's estimate is far above the time of its traffic.
    units = int(cycles[1]) / self.chip.clock
    return min(units, traffic) if traffic > 0 else units, traffic, 0.0

  def _product_flops(self, i: Instruction, where: Computation) -> float:
    """FLOPs of the matrix products in an operation; those of a fusion together."""
    name = i.called("calls")
    if name is None or name not in self.module.computations:
      return flops(i, where, self.chip.unit)
    if name not in self._products:
      self._products[name] = executed_flops(self.module, name, self.chip.unit)
    return self._products[name]

  def _traffic(self, i: Instruction, where: Computation) -> int:
    """Bytes that an operation reads from and writes to HBM; of arrays that it slices, the slices."""
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
        if updated is not None:  # updated in place: the rest is neither read nor written
          written -= whole - updated
        whole = whole if part is None else min(part, whole)
      read += whole
    return max(read + written, 0)


def _with_host(i: Instruction) -> bool:
  """Whether an instruction moves data between a chip and its host."""
  return any(memory == HOST for _, _, memory in i.shapes)


def _part_read(called: Computation, name: str) -> tuple[int | None, int | None]:
  """(bytes read of a fusion's parameter, None for all of it; bytes updated in place, None if it is not)."""
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
