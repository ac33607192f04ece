"""Sharding strategies: tables from logical axes to mesh axes.

A strategy is data. All strategies share the mesh axes `AXES`, of size 1 where unused; the batch is always split over
(`replica`, `data`). The model declares logical axes (`models.config.PARAM_AXES`); the experiment picks a strategy by
name, so strategies are compared by swapping this table.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from tfm_jax.errors import UserError

AXES = ("replica", "data", "model", "context", "stage")
BATCH_AXES = ("replica", "data")
STAYING = ("experts",)  # logical axes of parameters that are not gathered for use: activations go to the parameters
UNSIZED = ("batch", "seq", "stream")  # logical axes of rows and tokens, whose lengths are not the model's

_FORMS = {"rules": 'write rules=(*_BATCH, ("mlp", ("model",)))', "preset": 'write preset=(("model", 4),)'}


@dataclasses.dataclass(frozen=True)
class Strategy:
  """A table from logical axes to mesh axes, and the default sizes of the mesh axes.

  Attributes:
    rules: logical axis -> mesh axes. A logical axis without a rule is replicated; `batch` has the rule of `_BATCH`.
    preset: mesh axis -> its largest size if the config leaves it at 0: at most half of the devices (-1: as many as the
      model admits). Other axes have size 1, except that `data` takes the remaining devices as far as the model
      admits, and `replica` the rest.
  """

  rules: tuple[tuple[str, tuple[str, ...]], ...]
  preset: tuple[tuple[str, int], ...] = ()

  def __post_init__(self) -> None:
    """Raises UserError for malformed rules or a malformed preset, and if the batch is not split as it always is."""
    for part, pairs in (("rules", self.rules), ("preset", self.preset)):
      if not isinstance(pairs, tuple):
        raise UserError(f"a strategy has {part}={pairs!r}: {_FORMS[part]}")
      for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
          raise UserError(f"a strategy has {part}={pairs!r}, in which {pair!r} is no pair: {_FORMS[part]}")
    for name, axes in self.rules:
      if not isinstance(axes, tuple) or not set(axes) <= set(AXES):
        raise UserError(
          f"a strategy's rule maps {name!r} to {axes!r}: write a tuple of mesh axes, of {', '.join(AXES)}"
        )
    for axis, size in self.preset:
      if axis not in AXES:
        raise UserError(f"a strategy's preset is for {axis!r}: write a mesh axis, one of {', '.join(AXES)}")
      if not isinstance(size, int) or size < -1 or size == 0:
        raise UserError(f"a strategy's preset for {axis!r} is {size!r}: write its largest size, or -1 without a limit")
    names = [name for name, _ in self.rules]
    for name in names:
      if names.count(name) > 1:
        raise UserError(f"a strategy has {names.count(name)} rules for {name!r}: write one, with all of its mesh axes")
    if self.mesh_axes("batch") != BATCH_AXES:
      # Otherwise every device would compute the whole batch.
      raise UserError(
        f"the strategy with rules for {', '.join(names) or 'nothing'} does not split the batch over "
        f"{' and '.join(BATCH_AXES)}: begin its rules with *_BATCH"
      )

  def mesh_axes(self, logical: str | None) -> tuple[str, ...]:
    """The mesh axes of a logical axis; () if it is replicated."""
    return dict(self.rules).get(logical, ()) if logical else ()

  @property
  def used_axes(self) -> set[str]:
    """The mesh axes over which anything is split, including the batch."""
    return set(BATCH_AXES).union(*(axes for _, axes in self.rules))


_BATCH = (("batch", BATCH_AXES),)
# Parameters and their optimizer state are split along `embed` and gathered at use.
_FSDP = (*_BATCH, ("embed", ("data",)))
# Attention heads, mlp features and vocabulary are split, in parameters and activations (Megatron-LM).
_TP = tuple((axis, ("model",)) for axis in ("heads", "kv_heads", "mlp", "vocab", "act_heads", "act_mlp", "act_vocab"))

STRATEGIES = {
  "dp": Strategy(_BATCH),
  "fsdp": Strategy(_FSDP),
  "tp": Strategy(_BATCH + _TP, preset=(("model", -1),)),
  "fsdp_tp": Strategy(_FSDP + _TP, preset=(("model", 4),)),
  # Also splits the features of the residual stream (GSPMD's 2D sharding, Xu et al. 2021).
  "fsdp_tp_stream": Strategy(_FSDP + _TP + (("act_embed", ("model",)),), preset=(("model", 4),)),
  # fsdp, and each device has experts of its own, to which tokens are sent (GShard, Lepikhin et al. 2020).
  "fsdp_ep": Strategy((*_FSDP, ("experts", ("data",)), ("act_experts", ("data",)))),
  # fsdp within a slice. Between slices (with one slice: between its halves) only gradients are exchanged.
  "hsdp": Strategy(_FSDP, preset=(("replica", 2),)),
  # Sequences are split: attention passes keys and values around (ring attention), or exchanges tokens for heads.
  "cp": Strategy((*_BATCH, ("seq", ("context",)), ("stream", ("context",))), preset=(("context", 4),)),
}


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
  """The strategy by name, and the sizes of mesh axes; 0: the strategy's preset."""

  strategy: str = "dp"  # which table of STRATEGIES
  replica: int = 0  # number of copies of the model, usually one per slice; 0: the preset of the strategy
  data: int = 0  # parts into which the batch (under fsdp also the parameters) is split; 0: the preset
  model: int = 0  # parts into which attention heads, mlp and vocabulary are split; 0: the preset
  context: int = 0  # parts into which sequences are split; 0: the preset
  stage: int = 0  # number of pipeline stages (no strategy has them yet)
  attention: str = (
    "auto"  # of sequences that are split: ring, ulysses (needs heads that context divides); auto: the faster
  )


def find_strategy(name: str) -> Strategy:
  """The strategy of that name. Raises UserError, which lists the names."""
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
    admits: logical axis -> its lengths in the model, all of which must be divisible by the mesh axis that splits it.
    slices: groups of devices connected only by a network; the size of a preset `replica` axis.

  Raises:
    UserError: an explicit size that does not divide the model or the devices, or that the strategy does not use; a
      rule for a logical axis that does not exist.
  """
  strategy = find_strategy(config.strategy)
  for name, _ in strategy.rules:
    if name not in (*admits, *UNSIZED):
      choices = ", ".join((*UNSIZED, *admits))
      raise UserError(f"the strategy {config.strategy} has a rule for {name!r}, which is no logical axis: {choices}")
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
        f"sharding.{axis}={size} does not divide {bad[0]}, a length of the model that {config.strategy} splits over "
        f"{axis}: one of {', '.join(n for n, a in strategy.rules if axis in a and n in admits)}"
      )
  sizes = dict.fromkeys(AXES, 1) | explicit
  rest, remainder = divmod(devices, math.prod(explicit.values()))
  if remainder:
    requested = ", ".join(f"sharding.{axis}={size}" for axis, size in explicit.items())
    raise UserError(f"{requested} does not divide the {devices} devices")
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
