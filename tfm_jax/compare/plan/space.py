"""The space that a plan searches: strategies, meshes, remat, microbatches, whether the blocks are a loop, and how often
microbatches pass through the stages of a pipeline."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from tfm_jax.compare.forecast.topology import is_gpu
from tfm_jax.compare.plan.torus import device_count, slices_of
from tfm_jax.compare.program import with_strategy
from tfm_jax.errors import UserError
from tfm_jax.sharding.strategy import AXES, BATCH_AXES, find_strategy, mesh_sizes
from tfm_jax.training.config import Config

# The strategies that a plan considers unless --strategies names others. `data` takes what the other axes leave.
SEARCHED = ("dp", "zero2", "fsdp", "hsdp", "tp", "fsdp_tp", "fsdp+tp_sp", "fsdp_tp_stream", "fsdp+cp", "pp", "tp+pp")
WITH_EXPERTS = ("fsdp_ep",)  # also considered if the model has experts
REMATS = ("none", "dots", "full")  # not offload: what stays on the device then is beyond an estimate
# Up to this depth blocks are also considered without a loop: deeper ones take too long to compile.
UNROLLED = 16
ROUNDS = (1, 2, 4)  # of a pipeline


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One way to run the train step.

  Attributes:
    topology: as "v5e:4x4".
    strategy: its name.
    mesh: sizes of all mesh axes, in their order.
    remat, microbatches, scan: keys of the config.
    rounds: of a pipeline.
  """

  topology: str
  strategy: str
  mesh: tuple[int, ...]
  remat: str
  microbatches: int
  scan: bool = True
  rounds: int = 1

  @property
  def sizes(self) -> dict[str, int]:
    """Mesh axis -> size."""
    return dict(zip(AXES, self.mesh, strict=True))

  @property
  def split(self) -> dict[str, int]:
    """The mesh axes with more than one device."""
    return {axis: n for axis, n in self.sizes.items() if n > 1}

  @property
  def name(self) -> str:
    """The strategy with its mesh, as `compare` takes it."""
    rounds = {"rounds": self.rounds} if self.rounds > 1 else {}
    return ":".join([self.strategy, *(f"{key}={n}" for key, n in (self.split | rounds).items())])

  @property
  def text(self) -> str:
    """For people."""
    parts = f"{self.microbatches} microbatch{'es' * (self.microbatches > 1)}"
    return f"{self.topology} {self.name}, remat {self.remat}, {parts}{'' if self.scan else ', unrolled'}"

  def of(self, config: Config) -> Config:
    """The config that runs this candidate."""
    config = with_strategy(config, self.name)
    model = dataclasses.replace(config.model, remat=self.remat, scan=self.scan)
    return dataclasses.replace(
      config, model=model, train=dataclasses.replace(config.train, microbatches=self.microbatches)
    )

  def overrides(self, config: Config) -> dict[str, str]:
    """The keys of the config that this candidate sets, as text for a command line."""
    own = config.sharding
    axes = {axis: n for axis, n in self.sizes.items() if n > 1 or getattr(own, axis) not in (0, n)}
    keys = {"sharding.strategy": self.strategy} | {f"sharding.{axis}": str(n) for axis, n in axes.items()}
    keys |= {"sharding.rounds": str(self.rounds)} if self.rounds != own.rounds else {}
    keys |= {"model.remat": self.remat, "train.microbatches": str(self.microbatches)}
    return keys | ({} if self.scan == config.model.scan else {"model.scan": str(self.scan).lower()})


def sized_axes(strategy: str) -> tuple[str, ...]:
  """The mesh axes of a strategy whose sizes are searched: all it uses but `data`; `replica` only if it has a preset."""
  table = find_strategy(strategy)
  used = [axis for axis in AXES if axis in table.used_axes and axis not in BATCH_AXES]
  return ("replica", *used) if "replica" in dict(table.preset) else tuple(used)


def meshes(
  config: Config, strategy: str, topology: str, admits: Mapping[str, Sequence[int]]
) -> tuple[list[tuple[int, ...]], str]:
  """(the meshes of a strategy that the model and the batch admit, why there are none).

  `strategy` is written as for `compare`: sizes after its name hold, the others are searched.
  """
  own = with_strategy(config, strategy).sharding if ":" in strategy else None
  name, devices = strategy.split(":")[0], device_count(topology)
  fixed = {axis: getattr(own, axis) for axis in AXES if own and getattr(own, axis)}
  free = [axis for axis in sized_axes(name) if axis not in fixed]
  divisors = [n for n in range(2, devices + 1) if devices % n == 0]
  found, reason = [], ""
  for sizes in itertools.product(divisors, repeat=len(free)):
    written = ":".join([name, *(f"{axis}={n}" for axis, n in {**fixed, **dict(zip(free, sizes, strict=True))}.items())])
    try:
      mesh = mesh_sizes(with_strategy(config, written).sharding, devices, admits, slices_of(topology))
    except UserError as error:
      reason = reason or str(error)
      continue
    if is_gpu(topology) and (devices // slices_of(topology)) % mesh["model"]:
      reason = reason or f"model={mesh['model']} does not divide the GPUs of a host of {topology}"
      continue
    splitting = find_strategy(name).mesh_axes("batch")
    shards = math.prod(mesh[axis] for axis in splitting)
    if config.train.batch_size % shards:
      reason = (
        f"train.batch_size={config.train.batch_size} does not divide into the {shards} parts of "
        f"{' x '.join(splitting)} on {topology}: choose a multiple of {shards}"
      )
      continue
    halves = 2 * mesh["context"]  # of causal attention each device has two parts
    long = [n for n in (config.data.seq_len, config.data.target_len) if mesh["context"] > 1 and n % halves]
    if long:
      reason = reason or f"rows of {long[0]} tokens do not divide into {halves} parts"
      continue
    if "replica" in free and mesh["data"] == 1:
      continue  # whole copies alone: that is dp
    found.append(tuple(mesh[axis] for axis in AXES))
  return list(dict.fromkeys(found)), reason


def variants(
  config: Config, topology: str, strategy: str, mesh: tuple[int, ...], admits: Mapping[str, Sequence[int]]
) -> Iterator[Candidate]:
  """The candidates of one mesh: every remat and number of microbatches, with loops over blocks and without, in every
  number of rounds. In several rounds remat `none` is `dots`."""
  sizes = dict(zip(AXES, mesh, strict=True))
  rows = config.train.batch_size // math.prod(sizes[axis] for axis in find_strategy(strategy).mesh_axes("batch"))
  depth = config.model.num_layers
  scans = (True, False) if depth <= UNROLLED and config.model.scan else (config.model.scan,)
  choices = ROUNDS if sizes["stage"] > 1 else ROUNDS[:1]
  rounds = [n for n in choices if not any(layers % (sizes["stage"] * n) for layers in admits["layers"])]
  for remat, count, scan, n in itertools.product(REMATS, range(1, rows + 1), scans, rounds):
    if rows % count == 0 and (n == 1 or remat != "none"):
      yield Candidate(topology, strategy.split(":")[0], mesh, remat, count, scan, n)


def strategies_for(config: Config, names: Sequence[str] = ()) -> tuple[str, ...]:
  """The strategies to search: the given ones, which must exist, or those of `SEARCHED`. Raises UserError."""
  for name in names:
    find_strategy(name.split(":")[0])
    with_strategy(config, name)
  return tuple(names) or SEARCHED + (WITH_EXPERTS if config.model.experts.count else ())
