"""How far a layout scales, by estimate alone: the same batch, or the same rows per chip, on other slices."""

import dataclasses
import math
from collections.abc import Sequence

from tfm_jax.compare.forecast.topology import chip_count, chip_of, is_gpu, parse_topology
from tfm_jax.compare.plan.paper import Paper
from tfm_jax.compare.plan.search import Corrections
from tfm_jax.compare.plan.space import Candidate
from tfm_jax.compare.plan.torus import device_count, slices_of
from tfm_jax.errors import UserError
from tfm_jax.sharding.strategy import find_strategy, mesh_sizes
from tfm_jax.training.config import Config

# Shapes of slices by number of dimensions, from small to large.
SLICES = {
  1: ("1", "2", "4", "8", "16", "32", "64", "128"),  # hosts of GPUs
  2: ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
  3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
}


@dataclasses.dataclass(frozen=True)
class ScalingPoint:
  """The estimate of a layout on one slice.

  Attributes:
    kind: strong (the batch of the config) or weak (the rows per chip of the row that is scaled).
    topology, chips, batch_size: of the slice and of the whole step.
    microbatches: the fewest that fit.
    seconds: of a step, by estimate.
    tokens_per_second_per_chip: by estimate.
    communication: share of the step that is exposed communication.
    bound_by: the largest part.
  """

  kind: str
  topology: str
  chips: int
  batch_size: int
  microbatches: int
  seconds: float
  tokens_per_second_per_chip: float
  communication: float
  bound_by: str


def scaling(config: Config, paper: Paper, one: Candidate, corrections: Corrections) -> list[ScalingPoint]:
  """The estimates of a candidate's layout on other slices of the same chip; slices that it cannot use are left out.

  `data` takes the chips that are more or fewer; all other axes keep their size. Seconds and memory are corrected by the
  compiled programs of the strategy.
  """
  generation, shape, _ = parse_topology(one.topology)
  points = []
  per_chip = config.train.batch_size / chip_count(one.topology)
  for kind in ("strong", "weak"):
    for slice_shape in SLICES[len(shape.split("x"))]:
      topology = f"{slice_shape}*{generation}:{shape}" if is_gpu(one.topology) else f"{generation}:{slice_shape}"
      chips = chip_count(topology)
      batch = config.train.batch_size if kind == "strong" else round(per_chip * chips)
      if kind == "weak" and batch != per_chip * chips:
        continue
      point = _point(paper.with_batch(batch), kind, topology, chips, batch, one, corrections)
      points += [point] if point else []
  return points


def _point(
  paper: Paper, kind: str, topology: str, chips: int, batch: int, one: Candidate, corrections: Corrections
) -> ScalingPoint | None:
  """One estimate, with the fewest microbatches that fit; None if the slice does not serve."""
  kept = {axis: n for axis, n in one.split.items() if axis != "data"}
  sharding = dataclasses.replace(paper.config.sharding, strategy=one.strategy, **kept)  # type: ignore[arg-type]
  try:
    mesh = mesh_sizes(sharding, device_count(topology), paper.admits, slices_of(topology))
  except UserError:
    return None
  shards = math.prod(mesh[axis] for axis in find_strategy(one.strategy).mesh_axes("batch"))
  if not batch or batch % shards:
    return None
  rows = batch // shards
  for count in (n for n in range(1, rows + 1) if rows % n == 0):
    estimate = paper.estimate(topology, one.strategy, mesh, one.remat, count, one.scan, one.rounds)
    if estimate.memory * corrections.memory(one) <= chip_of(topology).memory:
      seconds = estimate.seconds * corrections.seconds(one)
      rate = batch * paper.program.row_tokens / seconds / chips
      share = estimate.communication / estimate.seconds
      return ScalingPoint(kind, topology, chips, batch, count, seconds, rate, share, estimate.bound_by)
  return None


def limit_of(points: Sequence[ScalingPoint], kind: str) -> str:
  """Where communication begins to bind, in words."""
  own = [point for point in points if point.kind == kind]
  bound = next((point for point in own if point.bound_by.startswith("communication")), None)
  if not own:
    return f"{kind} scaling: no slice of this chip serves"
  if bound is None:
    return f"{kind} scaling: communication does not bind up to {own[-1].chips} chips"
  return f"{kind} scaling: {bound.bound_by} binds from {bound.chips} chips on"
