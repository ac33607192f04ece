"""What operations and collectives cost on a TPU, for `forecast.schedule`.

- Matrix products: the units need their FLOPs at a stated share of the chip's peak, plus the traffic that cannot overlap
  with them, which makes narrow products slower. (The compiler's own cycle estimates add up everything that is fused
  into a product, and overshoot published step times by a fifth.)
- Other operations: the units need the compiler's estimate of cycles, but never more than the traffic takes.
- Collectives: rings over the links within a slice, and the network between slices.
"""

import re

import numpy as np
from jax.sharding import Mesh

from tfm_jax.compare.compiled.collectives import axes_of, groups_of, payload, sent, sent_between_slices
from tfm_jax.compare.compiled.hlo import HOST, Computation, Instruction, Module, shape_bytes
from tfm_jax.compare.compiled.products import executed_flops, flops, splash_flops
from tfm_jax.compare.forecast.schedule import Cost, Forecast
from tfm_jax.compare.forecast.traffic import traffic
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


class TpuForecast(Forecast[Tpu]):
  """Simulates one step of a program on a TPU mesh, see `Forecast`."""

  def __init__(self, module: Module, mesh: Mesh, chip: Tpu) -> None:
    super().__init__(module, mesh, chip)
    self._links: dict[str, tuple[float, int, int]] = {}
    self._products: dict[str, float] = {}

  # --- transfers beside the core

  def starts(self, i: Instruction) -> str | None:
    if i.between_slices:
      return i.between_slices[1] if i.op == "send" else None
    begins = i.op.endswith("-start") or (i.op == "fusion" and i.name.startswith("async-collective-start"))
    return i.name if begins else None

  def blocks(self, i: Instruction) -> bool:
    return i.kind is not None or (i.op == "fusion" and "all-reduce-scatter" in (i.called("calls") or ""))

  def transfer(self, i: Instruction) -> tuple[str | None, str, float]:
    axes, seconds = self._communication(i)
    return axes, f"{axes} {self._direction(i)}", seconds

  def _direction(self, i: Instruction) -> int:
    """1 or -1: the direction of a permutation, or of a copy to or from the host, each with its own links; else 0."""
    if i.kind is None and _with_host(i):
      return 1 if i.op.startswith("dynamic-update") or (i.op == "copy-start" and i.shapes[0][2] == HOST) else -1
    if i.kind != "collective-permute":
      return 0
    pairs = groups_of(i, self.mesh.size)  # all but the pair that closes the ring have the same direction
    return 1 if (pairs[:, 1] > pairs[:, 0]).mean() >= 0.5 else -1

  def finishes(self, i: Instruction, where: Computation) -> str | None:
    if i.op == "recv-done" and (received := where.by_name.get(i.operands[0])) and received.between_slices:
      return received.between_slices[1]
    if i.op.endswith("-done"):
      return i.operands[0] if i.operands else None
    if i.op == "fusion" and i.name.startswith("async-collective-done"):
      return "async-collective-start" + i.name.removeprefix("async-collective-done")
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

  def operation(self, i: Instruction, where: Computation) -> Cost:
    if i.op == "custom-call" and "tpu_custom_call" in i.rest:
      return Cost(splash_flops(i, where) / (self.chip.peak * SPLASH_EFFICIENCY), 0.0)
    cycles = _CYCLES.search(i.rest)
    if cycles is None:
      return Cost(0.0, 0.0)
    streamed = traffic(i, where, self.module) / (self.chip.hbm * HBM_EFFICIENCY)
    products = self._product_flops(i, where)
    if products:
      exposed = min(streamed, EXPOSED_BYTES / (self.chip.hbm * HBM_EFFICIENCY))
      return Cost(products / (self.chip.peak * self.chip.matrix), streamed, exposed)
    # Without a product an operation streams: the compiler's estimate is far above the time of its traffic.
    units = int(cycles[1]) / self.chip.clock
    return Cost(min(units, streamed) if streamed > 0 else units, streamed)

  def _product_flops(self, i: Instruction, where: Computation) -> float:
    """FLOPs of the matrix products in an operation; those of a fusion together."""
    name = i.called("calls")
    if name is None or name not in self.module.computations:
      return flops(i, where, self.chip.unit)
    if name not in self._products:
      self._products[name] = executed_flops(self.module, name, self.chip.unit)
    return self._products[name]


def _with_host(i: Instruction) -> bool:
  """Whether an instruction moves data between a chip and its host."""
  return any(memory == HOST for _, _, memory in i.shapes)
