"""`Paper`: the train step of a configuration on paper, traced once, then estimated under any layout."""

import copy
import dataclasses
import math
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from tfm_jax.compare.compiled.minimum import minimum_bytes
from tfm_jax.compare.forecast.topology import chip_of, is_gpu
from tfm_jax.compare.plan.estimate import Estimate, Step
from tfm_jax.compare.plan.linears import Linear, Placed
from tfm_jax.compare.plan.torus import wires
from tfm_jax.compare.program import build_program
from tfm_jax.models.config import attention_need
from tfm_jax.models.model import Model, admits
from tfm_jax.ops.attention import find_kernel
from tfm_jax.runtime.devices import first_device
from tfm_jax.runtime.trees import flat, partition
from tfm_jax.sharding.placement import Placement
from tfm_jax.sharding.strategy import AXES, ShardingConfig, find_strategy
from tfm_jax.training.compiled.flops import Flops, sequence_lengths
from tfm_jax.training.compiled.memory import bytes_per_device
from tfm_jax.training.config import Config, resolve
from tfm_jax.training.optimization.lora import axes_of

# Weights that share a product with another: queries, keys and values; the two sides of a gated activation.
_BESIDE = {"wk": "wq", "wv": "wq", "wg": "wi"}


@dataclasses.dataclass(frozen=True)
class _OnPaper(Model):
  """A model on a mesh without devices, whose shapes are known already."""

  known: Any = dataclasses.field(compare=False)

  def shapes(self) -> Any:
    return self.known


class Paper:
  """A configuration's train step on paper.

  Raises UserError if the configuration is not valid.
  """

  def __init__(self, config: Config) -> None:
    config = resolve(config)
    model = dataclasses.replace(config.model, attention="auto")  # the kernel of a TPU, which is not here
    self.config = dataclasses.replace(config, model=model, sharding=ShardingConfig("dp"))
    self.program = build_program(self.config, [first_device()])
    self._attention = config.model.attention
    self.lengths = sequence_lengths(model, self.program.fields)
    self.admits = admits(config.family, model, self.program.model.vocab_size)
    self.linears = self._linears()
    self._meshes: dict[tuple[str, tuple[int, ...], int], Placed] = {}
    self._sent: dict[tuple, tuple[dict[str, float], dict[str, float]]] = {}

  @property
  def tokens(self) -> int:
    """Tokens of a step."""
    return self.config.train.batch_size * self.program.row_tokens

  def with_batch(self, rows: int) -> "Paper":
    """The same step with another number of rows; nothing is traced again."""
    other, share = copy.copy(self), rows / self.config.train.batch_size
    other.program = self.program.with_rows(rows)
    other.program.__dict__["flops"] = Flops(*(share * n for n in self.program.flops))
    other.config = other.program.config
    other._meshes, other._sent = {}, {}
    return other

  def estimate(
    self,
    topology: str,
    strategy: str,
    mesh: dict[str, int],
    remat: str,
    microbatches: int,
    scan: bool = True,
    rounds: int = 1,
  ) -> Estimate:
    """The estimate of one layout.

    Args:
      topology: as "v5e:4x4".
      strategy: its name.
      mesh: sizes of all mesh axes.
      remat: none, dots or full.
      microbatches: number of parts of the batch, which must divide the rows of a shard.
      scan: whether the blocks are one loop; otherwise they are unrolled.
      rounds: of a pipeline.
    """
    sizes = tuple(mesh[axis] for axis in AXES)
    placed = self._placed(strategy, sizes, rounds)
    keys, chip = self.lengths[0] if self.lengths else 0, chip_of(topology)
    step = Step(
      placed, self.linears, keys, self._fused("gpu" if is_gpu(topology) else "tpu"), chip, remat, microbatches, scan
    )
    return step.estimate(self._minimum(strategy, sizes, remat, microbatches, rounds), wires(topology, mesh))

  def _fused(self, platform: str) -> bool:
    """Whether the kernel of attention on a platform keeps no weights of it."""
    need = attention_need(self.config.model)._replace(platform=platform, lengths=tuple(self.lengths))
    return find_kernel(self._attention, need).local

  def _linears(self) -> tuple[Linear, ...]:
    """The linears of all blocks."""
    found: dict[str, Linear] = {}
    experts = self.config.model.experts
    places = experts.top_k * experts.capacity if experts.capacity else experts.count
    weights = {path: leaf for path, leaf in flat(self.program.shapes).items() if "blocks/" in path}
    for path, leaf in sorted(weights.items(), key=lambda item: item[0].rpartition("/")[2] in _BESIDE):
      axes = axes_of(path)
      if not axes.is_matrix:
        continue
      folder, _, name = path.rpartition("/")
      first = f"{folder}/{_BESIDE.get(name, name)}"
      if first != path and first in found:
        share = math.prod(leaf.shape) / (found[first].layers * math.prod(found[first].shape))
        found[first] = dataclasses.replace(found[first], outputs=found[first].outputs + share)
        continue
      stacked = int(axes.names[:1] == ("layers",))
      tokens = self.lengths[-1] if path.startswith("decoder") or "text" in path else self.lengths[0]
      found[path] = Linear(
        path,
        leaf.shape[0] if stacked else 1,
        axes.names[stacked:],
        leaf.shape[stacked:],
        axes.inputs,
        1.0,
        tokens,
        places if "experts" in axes.names else 1.0,
      )
    return tuple(found.values())

  def _placed(self, strategy: str, sizes: tuple[int, ...], rounds: int = 1) -> Placed:
    """The program under a strategy, on a mesh without devices; computed once."""
    key = strategy, sizes, rounds
    if key not in self._meshes:
      mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
      base = self.program.model
      placement = Placement(find_strategy(strategy), mesh, rounds=rounds)  # type: ignore[arg-type]
      model = _OnPaper(base.family, base.config, placement, base.vocab_size, base.shapes())
      sharding = dataclasses.replace(ShardingConfig(strategy, rounds=rounds), **dict(zip(AXES, sizes, strict=True)))  # type: ignore[arg-type]
      config = dataclasses.replace(self.config, sharding=sharding)
      program = dataclasses.replace(self.program, config=config, model=model)
      known = {name: getattr(self.program, name) for name in ("shapes", "frozen", "tx", "flops")}
      program.__dict__.update(known)
      state = program.state
      trained = bytes_per_device(partition(state.params, program.frozen)[0])
      params, moments = bytes_per_device(state.params), bytes_per_device(state.opt_state)
      gradients = bytes_per_device(program.gradients)
      self._meshes[key] = Placed(program, bytes_per_device(state), params, trained, gradients, moments)
    return self._meshes[key]

  def _minimum(
    self, strategy: str, sizes: tuple[int, ...], remat: str, microbatches: int, rounds: int = 1
  ) -> dict[str, float]:
    """`minimum_bytes`, which is linear in the number of microbatches."""
    key = strategy, sizes, rounds, remat
    if key not in self._sent:
      program = self._placed(strategy, sizes, rounds).program
      model = dataclasses.replace(program.model, config=dataclasses.replace(program.model.config, remat=remat))
      other = dataclasses.replace(program, model=model)
      other.__dict__.update(program.__dict__ | {"model": model})
      self._sent[key] = minimum_bytes(other, 1), minimum_bytes(other, 2)
    one, two = self._sent[key]
    return {axes: one[axes] + (microbatches - 1) * (two[axes] - one[axes]) for axes in one}
