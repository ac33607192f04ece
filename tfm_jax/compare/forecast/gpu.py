"""What operations and collectives cost on a GPU, for `forecast.schedule`.

- Matrix products (cuBLAS): tiles of the output over the cores, in waves. The last wave is not full, and each tile loses
  the time of `DEPTH` numbers of its inner size. Of the tiles that cuBLAS has, and of splits of the inner size, the
  fastest is taken. The best product reaches `Gpu.matrix` of the peak.
- Attention (cuDNN): its products at that rate, and one exponential per pair of query and key that nothing hides. The
  rule gives 432 and 558 TFLOP/s forward on an H100 with heads of 64 and 128 (cuDNN in Shah et al. 2024: about 410 and
  600), and 188 and 220 on an A100 (Dao 2023: about 185 and 215). The backward pass reaches `BACKWARD` of that.
- Other operations: their traffic at `HBM_EFFICIENCY` of the bandwidth (BabelStream reaches 0.86 on an A100, 0.92 on an
  H100), or their arithmetic.
- Every operation also takes `LAUNCH_SECONDS`: what a kernel takes to start and to drain.
- Collectives: rings over NVLink and network, with the latencies of NCCL's own model (its tuning.cc), for the protocol
  and algorithm that is fastest at this size. One at a time: XLA has one stream for them.

Not in the model: the cores that NCCL takes from products beside it, the L2 cache, stragglers, the host.
"""

import collections
import math

import numpy as np

from tfm_jax.compare.compiled.collectives import axes_of, groups_of, payload
from tfm_jax.compare.compiled.hlo import HOST, Computation, Instruction, shape_bytes
from tfm_jax.compare.compiled.products import Attention, Gemm, executed_flops, flops, fused_attention, gemm_of
from tfm_jax.compare.forecast.schedule import Cost, Forecast
from tfm_jax.compare.forecast.traffic import traffic
from tfm_jax.runtime.chips import Gpu
from tfm_jax.sharding.placement import slice_of

# Rows and columns of a tile -> its rate, as a share of that of the largest: smaller ones read more per product.
TILES = {(128, 256): 1.0, (256, 128): 1.0, (128, 128): 0.9, (64, 128): 0.75, (128, 64): 0.75, (64, 64): 0.5}
SPLITS = (1, 2, 4, 8)  # parts of the inner size, each of at least SPLIT_DEPTH
DEPTH, SPLIT_DEPTH = 128, 1024
EXPONENTIALS = 16  # per cycle and core (CUDA C++ Programming Guide, arithmetic instructions)
BACKWARD = 0.7
HBM_EFFICIENCY = 0.85
ARITHMETIC_EFFICIENCY = 0.5
# With CUDA graphs, which XLA uses, NVIDIA measured 3.4 us per kernel of 2.9 us ("Getting Started with CUDA Graphs");
# the shortest kernels take about 2 us themselves.
LAUNCH_SECONDS = 2.5e-6
# Large messages: NCCL's maintainers name 370 of 450 GB/s within a host of H100, and for all-reduces that the switches
# add up 275 GB/s of the array (NVIDIA/nccl-tests issue 212); between hosts up to 96 of 100 GB/s (issue 119).
LINK_EFFICIENCY, SHARP_EFFICIENCY, NETWORK_EFFICIENCY = 370 / 450, 275 / 450, 0.9
# NCCL's protocols: seconds to begin, per step over NVLink, per step over the network; share of the bandwidth.
PROTOCOLS = (
  (6.6e-6, 0.6e-6, 2.7e-6, 0.5),
  (14.0e-6, 1.9e-6, 4.0e-6, 0.92),
  (8.4e-6, 3.4e-6, 14.0e-6, 1.0),
)
SHARP_SECONDS = 25e-6

_SLOW = frozenset(
  [
    "exponential",
    "exponential-minus-one",
    "log",
    "log-plus-one",
    "tanh",
    "erf",
    "power",
    "rsqrt",
    "sqrt",
    "divide",
    "cosine",
    "sine",
  ]
)
_FREE = frozenset(
  [
    "parameter",
    "constant",
    "bitcast",
    "broadcast",
    "reshape",
    "transpose",
    "copy",
    "iota",
    "tuple",
    "get-tuple-element",
    "slice",
    "dynamic-slice",
    "dynamic-update-slice",
    "concatenate",
    "pad",
    "gather",
    "reverse",
  ]
)
_NOTHING = frozenset(
  ["parameter", "constant", "bitcast", "tuple", "get-tuple-element", "partition-id", "replica-id", "after-all"]
)


class GpuForecast(Forecast[Gpu]):
  """Simulates one step of a program on GPUs, see `Forecast`."""

  # --- transfers beside the core

  def starts(self, i: Instruction) -> str | None:
    if i.op == "async-start":
      return i.name if self._collective(i) else None
    return i.name if i.op.endswith("-start") and i.op != "fusion-start" else None

  def finishes(self, i: Instruction, where: Computation) -> str | None:
    return i.operands[0] if i.op.endswith("-done") and i.operands else None

  def transfer(self, i: Instruction) -> tuple[str | None, str, float]:
    inner = self._collective(i)
    if inner is None:
      size = min((shape_bytes(s) for s in i.shapes if shape_bytes(s) > 64), default=0)
      if any(memory == HOST for _, _, memory in i.shapes):
        to_host = i.shapes[0][2] == HOST
        return "host", f"host {to_host}", size / self.chip.host
      return None, "copy", 2 * size / (self.chip.hbm * HBM_EFFICIENCY)
    groups = groups_of(inner, self.mesh.size)
    axes = axes_of(groups, self.mesh, inner.kind == "collective-permute")
    if groups.shape[1] < 2:
      return axes, "nccl", 0.0
    return axes, "nccl", self._collective_seconds(inner.kind or "", payload(inner), groups)

  def _collective(self, i: Instruction) -> Instruction | None:
    """The collective that an instruction is or calls; None if there is none."""
    if i.kind:
      return i
    name = i.called("calls") or i.called("called_computations")
    inside = self.module.executed(name) if i.op == "async-start" and name in self.module.computations else ()
    return next((c for c, _, _ in inside if c.kind), None)

  def _collective_seconds(self, kind: str, size: int, groups: np.ndarray) -> float:
    devices = self.mesh.devices.flat
    if kind == "collective-permute":
      crosses = any(slice_of(devices[a]) != slice_of(devices[b]) for a, b in groups)
      return collective_seconds(self.chip, kind, size, 2 if crosses else 1, 1)
    members = collections.Counter(slice_of(devices[n]) for n in groups[0])
    return collective_seconds(self.chip, kind, size, len(members), min(members.values()))

  # --- operations on the core

  def operation(self, i: Instruction, where: Computation) -> Cost:
    if i.op in _NOTHING or i.op.endswith("-done"):
      return Cost(0.0, 0.0)
    if attention := fused_attention(i, where):
      return Cost(attention_seconds(self.chip, attention) + LAUNCH_SECONDS, self._traffic(i, where, i.shapes))
    results = i.shapes
    if i.op == "fusion-start":  # ((operands), results, state)
      results = i.shapes[len(i.operands) : -1]
    products = self._products(i, where)
    if products > 0:
      workspaces = tuple(s for s in results if s[0] not in ("s8", "u8"))
      return Cost(products + LAUNCH_SECONDS, self._traffic(i, where, workspaces))
    return Cost(self._arithmetic(i), self._traffic(i, where, results) + LAUNCH_SECONDS)

  def _traffic(self, i: Instruction, where: Computation, results: tuple) -> float:
    return traffic(i, where, self.module, results) / (self.chip.hbm * HBM_EFFICIENCY)

  def _products(self, i: Instruction, where: Computation) -> float:
    """Seconds of the matrix products in an operation, by cuBLAS, cuDNN or in a fusion."""
    if gemm := gemm_of(i, where):
      return gemm_seconds(self.chip, gemm)
    name = i.called("calls")
    if name is None or name not in self.module.computations:
      return flops(i, where) / (self.chip.peak * self.chip.matrix)
    inside = self.module.computations[name]
    gemms = [gemm for inner in inside.instructions if (gemm := gemm_of(inner, inside))]
    if gemms:
      return sum(gemm_seconds(self.chip, gemm) for gemm in gemms)
    return executed_flops(self.module, name) / (self.chip.peak * self.chip.matrix)

  def _arithmetic(self, i: Instruction) -> float:
    """Seconds of what the float units compute in a fusion."""
    called = self.module.computations.get(i.called("calls") or "")
    if called is None:
      return 0.0
    operations = 0.0
    for inner in called.instructions:
      if inner.op in _FREE or not inner.shapes:
        continue
      over = called.by_name.get(inner.operands[0]) if inner.op == "reduce" else inner
      numbers = math.prod(over.shapes[0][1]) if over else 0
      operations += numbers * (8 if inner.op in _SLOW else 1)
    return operations / (self.chip.cores * self.chip.fpus * self.chip.clock * ARITHMETIC_EFFICIENCY)


def gemm_seconds(chip: Gpu, gemm: Gemm) -> float:
  """Seconds of a matrix product by cuBLAS, without its launch; float32 is half as fast as bfloat16 (TF32)."""
  per_core = chip.peak * chip.matrix / chip.cores * min(2 / gemm.item, 1.0)
  fastest = math.inf
  for (rows, columns), rate in TILES.items():
    tiles = gemm.batch * -(-gemm.m // rows) * -(-gemm.n // columns)
    for splits in SPLITS:
      if splits > 1 and gemm.k < splits * SPLIT_DEPTH:
        continue
      waves = math.ceil(tiles * splits / chip.cores)
      seconds = waves * 2 * rows * columns * (gemm.k / splits + DEPTH) / (per_core * rate)
      if splits > 1:  # float32 sums of the parts are written and read
        seconds += 2 * splits * 4 * gemm.batch * gemm.m * gemm.n / chip.hbm
      fastest = min(fastest, seconds)
  return fastest


def attention_seconds(chip: Gpu, attention: Attention) -> float:
  """Seconds of a call of cuDNN's attention, without its launch."""
  exponentials = attention.pairs / (EXPONENTIALS * chip.cores * chip.clock)
  seconds = attention.flops / (chip.peak * chip.matrix) + exponentials
  return seconds / (BACKWARD if attention.products > 2 else 1.0)


def collective_seconds(chip: Gpu, kind: str, size: float, nodes: int, members: int) -> float:
  """Seconds of a collective.

  Args:
    chip: the devices.
    kind: as "all-gather".
    size: bytes, as `collectives.payload` has them.
    nodes: groups of devices, joined by NVLink, over which it runs.
    members: devices in each.
  """
  n = nodes * members
  link = chip.link * LINK_EFFICIENCY
  if kind == "collective-permute":
    rate = chip.network * NETWORK_EFFICIENCY if nodes > 1 else link
    return min(begin + (far if nodes > 1 else near) + size / (share * rate) for begin, near, far, share in PROTOCOLS)
  if n < 2:
    return 0.0
  whole = size * (n if kind == "reduce-scatter" else 1)
  if kind == "all-to-all":
    across = whole / n * (n - members) / (chip.network * NETWORK_EFFICIENCY) if nodes > 1 else 0.0
    within = whole / n * (members - 1) / link
    begin, near, far, _ = PROTOCOLS[-1]
    return begin + (members - 1) * near + (nodes - 1) * far + max(across, within)
  rounds = 2 if kind == "all-reduce" else 1
  # Each member of a node sends to the next node over a network card of its own.
  rate = min(link, members * chip.network * NETWORK_EFFICIENCY) if nodes > 1 else link
  moved = rounds * whole * (n - 1) / n
  between = nodes if nodes > 1 else 0
  ring = min(
    begin + rounds * ((n - 1 - between) * near + between * far) + moved / (share * rate)
    for begin, near, far, share in PROTOCOLS
  )
  if kind != "all-reduce":
    return ring
  begin, near, far, share = PROTOCOLS[1]
  tree = begin + 2 * ((members - 1) * near + math.log2(nodes) * far) + moved / (share * rate)
  sharp = SHARP_SECONDS + whole / (chip.link * SHARP_EFFICIENCY) if chip.sharp and nodes == 1 else math.inf
  return min(ring, tree, sharp)
