"""The results of a comparison: the dataclasses behind comparison.json."""

import dataclasses
from typing import Any

OK, REFUSED, OUT_OF_MEMORY, COMPILER_CRASH = "ok", "refused", "out_of_memory", "compiler_crash"


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device.

  `parameters`, `optimizer` and `gradients` follow from shapes and shardings; `peak` is the compiler's figure. The rest
  of the peak is divided into `activations`, which one loop of the compiled program stores for a later one (the blocks'
  forward pass for their backward pass; 0 where the blocks are unrolled), and `temporaries`, what remains.
  """

  parameters: int
  optimizer: int
  gradients: int
  activations: int
  temporaries: int
  peak: int


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind over the same mesh axes, per step and with loops multiplied out.

  Attributes:
    kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
    axes: the mesh axes it runs over, as "data" or "replica,data"; "?" if its groups match no set of axes.
    count: executions per step.
    bytes: what one device sends per step with ring algorithms: (n - 1) / n of the whole array for an all-gather or a
      reduce-scatter over n devices, and twice that for an all-reduce.
  """

  kind: str
  axes: str
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Seconds:
  """A forecast step time and its parts: `compute`, `hbm` and `communication` add up to `total`.

  Attributes:
    compute: operations limited by the matrix or vector units.
    hbm: operations limited by memory traffic.
    communication: exposed communication: collectives during which the core has nothing else to do.
    hidden: communication that overlaps with computation; not part of the total.
  """

  total: float
  compute: float
  hbm: float
  communication: float
  hidden: float


@dataclasses.dataclass(frozen=True)
class Piece:
  """The part of a parameter that one device holds: `start` and `stop` along each array axis."""

  device: int
  coordinates: dict[str, int]
  start: tuple[int, ...]
  stop: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ShardMap:
  """Which device holds which piece of one parameter.

  Attributes:
    parameter: its path, as "blocks/mlp/wi".
    shape: of the whole array.
    axes: the logical name of each array axis; None for one that is never split.
    spec: the mesh axes that split each array axis, as "data" or "replica,data"; "" for one that is not split.
    pieces: one per device, in the order of the mesh.
  """

  parameter: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  spec: tuple[str, ...]
  pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class StrategyResult:
  """The result of one strategy. What does not apply, or was not reached, is None.

  Attributes:
    strategy: its name, as requested.
    mesh: mesh axis -> size.
    status: ok, refused (the model or the batch does not divide over this mesh), out_of_memory or compiler_crash.
    reason: one line that explains every status but ok.
    microbatches: number of parts that the batch is processed in, one after the other.
    bubble: share of a stage's time in a pipeline in which it has no microbatch.
    compile_seconds: time to compile the train step.
    memory_bytes: see `Memory`.
    memory_limit: memory of one device in bytes; None if unknown.
    flops: FLOPs of the matrix products that one device executes per step, recomputation included.
    model_flops: the same, counted from the program of the gradient without recomputation, as MFU is defined.
    collectives: those of the compiled program.
    step_seconds, step_seconds_range: measured: the median, and the smallest and the largest.
    tokens_per_second_per_device: measured or forecast; the range follows from the range of the step time.
    loss_difference, grad_norm_difference: relative to one device in float32; the largest over the compared steps.
    forecast_step_seconds: see `Seconds`.
    fits: whether the step fits the memory of a device; `over_bytes` is what it lacks.
    mfu: forecast model FLOPs per second, as a share of the chip's peak.
    bound_by: the largest part of the forecast: compute, hbm, or communication over some mesh axes.
    minimum_bytes: mesh axes -> the analytic minimum of bytes that one device has to send.
    calibration_error: a sentence with the mean and the largest error of such forecasts against published runs.
    shard_map: where the chosen parameter lies; comparison.json calls it `layout`.
    program_hash: of the compiled program's text.
  """

  strategy: str
  mesh: dict[str, int]
  status: str
  reason: str | None = None
  microbatches: int | None = None
  bubble: float | None = None
  compile_seconds: float | None = None
  memory_bytes: Memory | None = None
  memory_limit: int | None = None
  flops: float | None = None
  model_flops: float | None = None
  collectives: tuple[Collective, ...] = ()
  step_seconds: float | None = None
  step_seconds_range: tuple[float, float] | None = None
  tokens_per_second_per_device: float | None = None
  tokens_per_second_per_device_range: tuple[float, float] | None = None
  loss_difference: float | None = None
  grad_norm_difference: float | None = None
  forecast_step_seconds: Seconds | None = None
  fits: bool | None = None
  over_bytes: int | None = None
  mfu: float | None = None
  bound_by: str | None = None
  minimum_bytes: dict[str, float] | None = None
  calibration_error: str | None = None
  shard_map: ShardMap | None = None
  program_hash: str | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Strategies side by side.

  Attributes:
    kind: measured or forecast.
    config: the name of the config file, as requested.
    devices: number and kind, as "8 x cpu (emulated)" or "256 x TPU v5e".
    topology: as requested, for instance "v5e:16x16"; None when measured.
    batch_size, tokens_per_step: rows and tokens of the global batch.
    parameters: number of parameters of the model.
    remat: the config's rematerialization policy.
    notes: sentences to read with the figures.
    strategies: one result per strategy, in the requested order.
    versions: package -> version.
    overrides: keys of the config that the command line replaced, with their values as text.
    command: the command that repeats this comparison; empty if it was made from Python.
  """

  kind: str
  config: str
  devices: str
  topology: str | None
  batch_size: int
  tokens_per_step: int
  parameters: int
  remat: str
  notes: tuple[str, ...]
  strategies: tuple[StrategyResult, ...]
  versions: dict[str, str]
  overrides: dict[str, str] = dataclasses.field(default_factory=dict)
  command: str = ""


def to_json(value: Comparison | StrategyResult) -> dict[str, Any]:
  """A comparison, or the result of one strategy, as plain dictionaries and lists with the keys of comparison.json."""
  tree = dataclasses.asdict(value)
  for result in tree.get("strategies", [tree]):
    result["layout"] = result.pop("shard_map")
  return tree


def result_from_json(tree: dict[str, Any]) -> StrategyResult:
  """The inverse of `to_json` for the result of one strategy."""
  fields = dict(tree)
  for name, kind in (("memory_bytes", Memory), ("forecast_step_seconds", Seconds)):
    if fields.get(name) is not None:
      fields[name] = kind(**fields[name])
  fields["collectives"] = tuple(Collective(**collective) for collective in fields.get("collectives", ()))
  for name in ("step_seconds_range", "tokens_per_second_per_device_range"):
    if fields.get(name) is not None:
      fields[name] = tuple(fields[name])
  layout = fields.pop("layout", None)
  if layout is not None:
    pieces = (Piece(p["device"], p["coordinates"], tuple(p["start"]), tuple(p["stop"])) for p in layout["pieces"])
    shape, axes, spec = (tuple(layout[key]) for key in ("shape", "axes", "spec"))
    fields["shard_map"] = ShardMap(layout["parameter"], shape, axes, spec, tuple(pieces))
  return StrategyResult(**fields)
