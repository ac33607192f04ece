"""Sharding strategies: tables from logical axes to mesh axes.

A strategy is data. All strategies share the mesh axes `AXES`, of size 1 where unused; the batch is always split over
(`replica`, `data`). The model declares logical axes (`models.config.PARAM_AXES`); the experiment picks a strategy by
name, or several joined by + (`fsdp+tp`), so strategies are compared by swapping this table.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from tfm_jax.errors import UserError

AXES = ("replica", "data", "model", "context", "stage")
BATCH_AXES = ("replica", "data")
# Logical axes of parameters that are not gathered for use: activations go to the parameters.
STAYING = ("experts", "layers")
# Logical axes of rows and tokens, whose lengths are not the model's; `stream` are tokens between the linears.
UNSIZED = ("batch", "seq", "stream")

Rules = tuple[tuple[str, tuple[str, ...]], ...]

_FORMS = {
  "rules": 'write rules=(*_BATCH, ("mlp", ("model",)))',
  "state": 'write state=(("embed", ("data",)),)',
  "preset": 'write preset=(("model", 4),)',
}


@dataclasses.dataclass(frozen=True)
class Strategy:
  """A table from logical axes to mesh axes, and the default sizes of the mesh axes.

  Attributes:
    rules: logical axis -> mesh axes. A logical axis without a rule is replicated; `batch` has the rule of `_BATCH`.
    preset: mesh axis -> its largest size if the config leaves it at 0 (-1: as many as the model admits); see
      `mesh_sizes`. Of an axis over which only other parts of a composition split, it is a limit for those.
    state: rules that hold for optimizer state in addition (ZeRO, Rajbhandari et al. 2020).
    gradients: whether they hold for the sum of the gradients too.
  """

  rules: Rules
  preset: tuple[tuple[str, int], ...] = ()
  state: Rules = ()
  gradients: bool = False

  def __post_init__(self) -> None:
    """Raises UserError for malformed rules or a malformed preset, and if the batch is not split as it always is."""
    for part, pairs in (("rules", self.rules), ("state", self.state), ("preset", self.preset)):
      if not isinstance(pairs, tuple):
        raise UserError(f"a strategy has {part}={pairs!r}: {_FORMS[part]}")
      for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
          raise UserError(f"a strategy has {part}={pairs!r}, in which {pair!r} is no pair: {_FORMS[part]}")
    for name, axes in (*self.rules, *self.state):
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
    if self.mesh_axes("batch")[:2] != BATCH_AXES:
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
    return set(BATCH_AXES).union(*(axes for _, axes in self.of_state.rules))

  @property
  def of_state(self) -> "Strategy":
    """The strategy by which optimizer state is split."""
    return Strategy(_union((self.rules, self.state)), self.preset) if self.state else self

  @property
  def of_gradients(self) -> "Strategy":
    """The strategy by which the sum of the gradients is split."""
    return self.of_state if self.gradients else self

  def adds_to(self, other: "Strategy") -> bool:
    """Whether it splits parameters, activations, gradients or optimizer state where the other one does not."""
    cuts = lambda of: {(name, axis) for name, axes in of.rules for axis in axes}
    kinds = ((of, of.of_gradients, of.of_state) for of in (self, other))
    return not all(cuts(own) <= cuts(others) for own, others in zip(*kinds, strict=True))


def joined(*parts: Strategy) -> Strategy:
  """The strategy that splits what any of the parts splits: a logical axis over the mesh axes of all, in their order.

  Of the sizes in their presets, the smallest holds.
  """
  preset: dict[str, int] = {}
  for axis, size in itertools.chain(*(part.preset for part in parts)):
    sizes = [n for n in (size, preset.get(axis, -1)) if n > 0]
    preset[axis] = min(sizes, default=-1)
  rules, state = (_union(getattr(part, name) for part in parts) for name in ("rules", "state"))
  return Strategy(rules, tuple(sorted(preset.items())), state, any(part.gradients for part in parts))


def _union(tables: Iterable[Rules]) -> Rules:
  """One table of rules, sorted by logical axis, with the mesh axes of all, each once."""
  merged: dict[str, dict[str, None]] = {}
  for name, axes in itertools.chain(*tables):
    merged.setdefault(name, {}).update(dict.fromkeys(axes))
  return tuple((name, tuple(axes)) for name, axes in sorted(merged.items()))


_BATCH = (("batch", BATCH_AXES),)
# Parameters and their optimizer state are split along `embed` and gathered at use. Beside that, `model` is at most 4.
_FSDP = Strategy((*_BATCH, ("embed", ("data",))), preset=(("model", 4),))
# Attention heads, mlp features and vocabulary are split, in parameters and activations (Megatron-LM).
_SPLIT_BY_TP = ("heads", "kv_heads", "mlp", "vocab", "act_heads", "act_mlp", "act_vocab")
_TP = Strategy((*_BATCH, *((axis, ("model",)) for axis in _SPLIT_BY_TP)), preset=(("model", -1),))
# Each device has experts of its own, to which tokens are sent (GShard, Lepikhin et al. 2020).
_EP = Strategy((*_BATCH, ("experts", ("data",)), ("act_experts", ("data",))))
_ZERO = Strategy(_BATCH, preset=(("model", 4),), state=(("embed", ("data",)),))

# The order of the rows is that of the mesh axes where several parts of a composition split the same logical axis.
STRATEGIES = {
  "dp": Strategy(_BATCH),
  "fsdp": _FSDP,
  "tp": _TP,
  "fsdp_tp": joined(_FSDP, _TP),
  # Also splits the features of the residual stream (GSPMD's 2D sharding, Xu et al. 2021).
  "fsdp_tp_stream": joined(_FSDP, _TP, Strategy((*_BATCH, ("act_embed", ("model",))))),
  "ep": _EP,
  # Non-experts are split as under fsdp.
  "fsdp_ep": joined(_FSDP, _EP),
  # Layers are split, and microbatches flow through them (see `sharding.pipeline`). For all other parts of a model, the
  # stages split the batch, and the tables of embeddings and output layer, which are gathered at use.
  "pp": Strategy((("batch", (*BATCH_AXES, "stage")), ("layers", ("stage",)), ("embed", ("stage",))), (("stage", 4),)),
  # fsdp within a slice. Between slices (with one slice: between its halves) only gradients are exchanged.
  "hsdp": joined(_FSDP, Strategy(_BATCH, preset=(("replica", 2),))),
  # Sequences are split: attention passes keys and values around (ring attention), or exchanges tokens for heads.
  "cp": Strategy((*_BATCH, ("seq", ("context",)), ("stream", ("context",))), preset=(("context", 4),)),
  # Parameters are whole on every device, optimizer state and their average are split (ZeRO, Rajbhandari et al. 2020).
  "zero1": _ZERO,
  # zero1, and the sum of the gradients is split as well.
  "zero2": dataclasses.replace(_ZERO, gradients=True),
  # tp, and between the linears the residual stream is split along the sequence (Korthikanti et al. 2022).
  "tp_sp": joined(_TP, Strategy((*_BATCH, ("stream", ("model",))))),
}
# Pairs of rows that do not go together, although each splits something that the other does not, with the reason.
APART = {
  ("fsdp_tp_stream", "tp_sp"): "both split the residual stream over model, along its features and along the sequence",
  ("pp", "cp"): "the stages of a pipeline cannot pass keys and values around; use fsdp or tp beside either",
}


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
  """The strategy by name, and the sizes of mesh axes; 0: the strategy's preset."""

  strategy: str = "dp"  # which table of STRATEGIES; several joined by +, such as fsdp+tp, cut what each of them cuts
  replica: int = 0  # number of copies of the model, usually one per slice; 0: the preset of the strategy
  data: int = 0  # parts into which the batch is split (fsdp: also parameters; zero1: optimizer state); 0: the preset
  model: int = 0  # parts into which attention heads, mlp and vocabulary are split; 0: the preset
  context: int = 0  # parts into which sequences are split; 0: the preset
  stage: int = 0  # parts into which layers are split, which form a pipeline; 0: the preset
  pipeline: int = 0  # the most microbatches in a pipeline, a multiple of its stages; 0: four times the stages
  rounds: int = 1  # how often microbatches pass through the stages, each of which then has as many parts of the layers
  # how attention reads sequences that are split: ring, ulysses (needs heads that context divides) or auto (the faster)
  attention: str = "auto"


def find_strategy(name: str) -> Strategy:
  """The strategy of that name, or the composition of those joined by +, in any order.

  Raises:
    UserError: an unknown name, with a list of the known ones; parts that do not go together.
  """
  parts = name.split("+")
  unknown = [part for part in parts if part not in STRATEGIES]
  if unknown:
    culprit = f": {unknown[0]!r}" if len(parts) > 1 else ""
    raise UserError(
      f"sharding.strategy={name!r}{culprit} is not one of {', '.join(STRATEGIES)}, or several joined by +, as fsdp+tp"
    )
  rows = [row for row in STRATEGIES if row in parts]
  reasons = [f"{row} is there {parts.count(row)} times: write it once" for row in rows if parts.count(row) > 1]
  rows = [row for row in rows if row != "dp"] or rows
  pairs = list(itertools.permutations(rows, 2))
  reasons += [f"{' and '.join(pair)} do not go together: {APART[pair]}" for pair in pairs if pair in APART]
  covered = [pair for pair in pairs if not STRATEGIES[pair[0]].adds_to(STRATEGIES[pair[1]])]
  reasons += [f"{other} splits all that {one} splits: leave {one} out" for one, other in covered]
  if reasons:
    raise UserError(f"sharding.strategy={name!r}: {reasons[0]}")
  return STRATEGIES[rows[0]] if len(rows) == 1 else joined(*(STRATEGIES[row] for row in rows))


def mesh_sizes(
  config: ShardingConfig, devices: int, admits: Mapping[str, Sequence[int]], slices: int = 1
) -> dict[str, int]:
  """Sizes of all mesh axes, in the order of `AXES`; their product is `devices`.

  An axis of the preset is as large as preset, devices and model admit, but leaves 2 to each free axis that is chosen
  later (a single axis without a limit does not). `data` is chosen last, and `replica` takes what is left. Other axes
  have size 1.

  Args:
    config: the strategy and explicit sizes.
    devices: number of devices.
    admits: logical axis -> its lengths in the model, all of which must be divisible by the mesh axis that splits it.
    slices: groups of devices connected only by a network; the size of a preset `replica` axis.

  Raises:
    UserError: an explicit size that does not divide the model or the devices, or that the strategy does not use; a
      rule for a logical axis that does not exist.
  """
  strategy = find_strategy(config.strategy).of_state
  for name, _ in strategy.rules:
    if name not in (*admits, *UNSIZED):
      choices = ", ".join((*UNSIZED, *admits))
      raise UserError(f"the strategy {config.strategy} has a rule for {name!r}, which is no logical axis: {choices}")
  cut = [(axes, length) for name, axes in strategy.rules for length in admits.get(name, ())]
  sizes = dict.fromkeys(AXES, 1)

  def indivisible(axis: str, size: int) -> list[int]:
    """The lengths of the model that this size of the axis does not divide, beside the sizes chosen before."""
    sized = sizes | {axis: size}
    return [length for axes, length in cut if axis in axes and length % math.prod(sized[a] for a in axes)]

  preset = {axis: size for axis, size in strategy.preset if axis in strategy.used_axes}
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
    bad = sorted(indivisible(axis, size)) if size > 0 else [size]
    if bad:
      fitting = [n for n in range(1, devices + 1) if devices % n == 0 and not indivisible(axis, n)]
      raise UserError(
        f"sharding.{axis}={size} does not divide {bad[0]}, a length of the model that {config.strategy} splits over "
        f"{axis}: one of {', '.join(n for n, a in strategy.rules if axis in a and n in admits)}; choose one of "
        f"{', '.join(map(str, fitting))}, or another length"
      )
    sizes[axis] = size
  rest, remainder = divmod(devices, math.prod(explicit.values()))
  if remainder:
    requested = ", ".join(f"sharding.{axis}={size}" for axis, size in explicit.items())
    raise UserError(f"{requested} does not divide the {devices} devices")
  order = [axis for axis in ("replica", "model", "context", "stage") if axis in preset] + ["data"]
  free = [axis for axis in order if axis not in explicit]
  for later, axis in zip(reversed(range(len(free))), free, strict=True):
    limit = -1 if axis == "data" else preset[axis]
    most = rest if limit < 0 and len(preset) == 1 else max(rest // 2**later, 1)
    most = min(most, limit) if limit > 0 else most
    sizes[axis] = max(n for n in range(1, most + 1) if rest % n == 0 and not indivisible(axis, n))
    rest //= sizes[axis]
  if rest > 1 and "replica" in explicit:
    raise UserError(f"the mesh of {config.strategy} leaves {rest} times too many devices: set sharding.replica to 0")
  if "replica" not in explicit:
    sizes["replica"] *= rest
  return sizes
