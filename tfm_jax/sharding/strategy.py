"""Sharding strategies: tables from logical axes to mesh axes, and nothing else.

A strategy is data. All strategies share the mesh axes `AXES`, of size 1 where unused; the batch is always split over
(`replica`, `data`). The model names its axes (`tfm_jax.models`), the experiment picks a strategy by name: comparing
strategies changes this table alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from tfm_jax.errors import UserError

AXES = ("replica", "data", "model", "context", "stage")
BATCH_AXES = ("replica", "data")


@dataclasses.dataclass(frozen=True)
class Strategy:
  """Where logical axes go, and how devices are dealt out.

  Attributes:
    rules: logical axis -> mesh axes; a logical axis that has no rule is replicated.
    preset: mesh axis -> largest size it takes when the config leaves it at 0, of at most half the devices (-1: as many
      as the model admits). Axes not named here get 1; `data` gets what remains, as far as the model admits it, and
      `replica` the rest.
  """

  rules: tuple[tuple[str, tuple[str, ...]], ...]
  preset: tuple[tuple[str, int], ...] = ()

  def mesh_axes(self, logical: str | None) -> tuple[str, ...]:
    """The mesh axes of one logical axis, () if it is replicated."""
    return dict(self.rules).get(logical, ()) if logical else ()

  @property
  def used_axes(self) -> set[str]:
    """The mesh axes over which something is split; the batch always is."""
    return set(BATCH_AXES).union(*(axes for _, axes in self.rules))


_BATCH = (("batch", BATCH_AXES),)
# Parameters and their optimizer state are cut along `embed`; they are gathered where they are used.
_FSDP = (*_BATCH, ("embed", ("data",)))
# Heads, mlp features and vocabulary are cut, for parameters and activations alike (Megatron-LM).
_TP = tuple((axis, ("model",)) for axis in ("heads", "kv_heads", "mlp", "vocab", "act_heads", "act_mlp", "act_vocab"))

STRATEGIES = {
  "dp": Strategy(_BATCH),
  "fsdp": Strategy(_FSDP),
  "tp": Strategy(_BATCH + _TP, preset=(("model", -1),)),
  "fsdp_tp": Strategy(_FSDP + _TP, preset=(("model", 4),)),
  # The residual stream between the parts of tp is cut too, along its features (GSPMD's 2D layout, Xu et al. 2021).
  "fsdp_tp_stream": Strategy(_FSDP + _TP + (("act_embed", ("model",)),), preset=(("model", 4),)),
  # fsdp within a slice, whose chips are closely joined; between slices (or halves, where there is one) gradients only.
  "hsdp": Strategy(_FSDP, preset=(("replica", 2),)),
}


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
  """The strategy by name, and sizes of mesh axes; 0 means the strategy's preset."""

  strategy: str = "dp"  # a name in STRATEGIES
  replica: int = 0  # copies of everything (across slices)
  data: int = 0  # ways to split the batch (and, under fsdp, the parameters)
  model: int = 0  # ways to split heads, mlp and vocabulary
  context: int = 0  # ways to split a sequence (no strategy does yet)
  stage: int = 0  # pipeline stages (no strategy has any yet)


def find_strategy(name: str) -> Strategy:
  """The strategy of that name; UserError lists the names."""
  if name not in STRATEGIES:
    raise UserError(f"sharding.strategy={name!r} is not one of {', '.join(STRATEGIES)}")
  return STRATEGIES[name]


def mesh_sizes(
  config: ShardingConfig, devices: int, admits: Mapping[str, Sequence[int]], slices: int = 1
) -> dict[str, int]:
  """Sizes of all mesh axes, in the order of `AXES`; their product is `devices`.

  Args:
    config: the strategy and explicit sizes.
    devices: number of devices.
    admits: logical axis -> lengths of that axis in the model; a mesh axis on which it lies must divide them all.
    slices: groups of devices that are joined by a network only; a preset of `replica` takes that many.

  Raises:
    UserError: an explicit size that the model or the device count does not admit, or that the strategy has no use for.
  """
  strategy = find_strategy(config.strategy)
  lengths = {
    axis: sorted({n for name, axes in strategy.rules if axis in axes for n in admits.get(name, ())}) for axis in AXES
  }
  preset = dict(strategy.preset)
  if "replica" in preset and slices > 1:
    preset["replica"] = slices
  explicit = {axis: getattr(config, axis) for axis in AXES if getattr(config, axis) != 0}
  for axis, size in explicit.items():
    if size > 1 and axis not in strategy.used_axes:
      others = [name for name, other in STRATEGIES.items() if axis in other.used_axes]
      raise UserError(
        f"sharding.{axis}={size} would repeat the same work: {config.strategy} splits nothing over {axis}; set it to 0"
        + (f", or sharding.strategy to {', '.join(others)}" if others else "; no strategy splits anything over it yet")
      )
    bad = [n for n in lengths[axis] if n % size] if size > 0 else [size]
    if bad:
      raise UserError(
        f"sharding.{axis}={size} does not divide the model's {bad[0]} "
        f"({config.strategy} splits {', '.join(n for n, a in strategy.rules if axis in a and n in admits)} over {axis})"
      )
  sizes = dict.fromkeys(AXES, 1) | explicit
  rest, remainder = divmod(devices, math.prod(explicit.values()))
  if remainder:
    asked = ", ".join(f"sharding.{axis}={size}" for axis, size in explicit.items())
    raise UserError(f"{asked} does not divide the {devices} devices")
  for axis in ("replica", "model", "context", "stage", "data"):
    if axis in explicit or (axis == "replica" and axis not in preset):
      continue
    most = -1 if axis == "data" else preset.get(axis, 1)
    most = rest if most < 0 else min(most, max(rest // 2, 1))
    sizes[axis] = max(
      n for n in range(1, rest + 1) if rest % n == 0 and n <= most and not any(m % n for m in lengths[axis])
    )
    rest //= sizes[axis]
  if rest > 1 and "replica" in explicit:
    raise UserError(f"the mesh of {config.strategy} leaves {rest} times too many devices: set sharding.replica to 0")
  if "replica" not in explicit:
    sizes["replica"] *= rest
  return sizes
