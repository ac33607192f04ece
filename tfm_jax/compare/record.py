"""What a comparison says of each strategy: the rows of comparison.json."""

import dataclasses
from typing import Any

OK, REFUSED, OUT_OF_MEMORY, COMPILER_CRASH = "ok", "refused", "out_of_memory", "compiler_crash"


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device.

  Parameters, optimizer state and gradients follow from shapes and shardings; `peak` is the compiler's. What it holds
  beyond them is divided into activations (what the compiled program's loops keep for later ones, as the blocks forward
  do for the blocks backward; none are seen where blocks are unrolled) and temporaries (the rest).
  """

  parameters: int
  optimizer: int
  gradients: int
  activations: int
  temporaries: int
  peak: int


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind over the same mesh axes, in one step, loops multiplied out.

  Attributes:
    kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
    axes: mesh axes over which it runs, "data" or "replica,data"; "?" if its groups are those of no set of axes.
    count: executions a step.
    bytes: what one device sends, if it is done around a ring: (n - 1) / n of the whole for an all-gather or a
      reduce-scatter over n devices, twice that for an all-reduce.
  """

  kind: str
  axes: str
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Seconds:
  """A forecast step time and what it is made of; `compute`, `hbm`, and `communication` add up to `total`.

  Attributes:
    compute: operations that the matrix or vector units bound.
    hbm: operations that memory traffic bounds.
    communication: exposed: collectives while nothing else runs.
    hidden: communication behind computation; not part of the total.
  """

  total: float
  compute: float
  hbm: float
  communication: float
  hidden: float


@dataclasses.dataclass(frozen=True)
class Piece:
  """Which part of a parameter a device holds: `start` and `stop` for each axis."""

  device: int
  coordinates: dict[str, int]
  start: tuple[int, ...]
  stop: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where one parameter lies: its shape, logical axes, the mesh axes of each, and the pieces by device."""

  parameter: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  spec: tuple[str, ...]  # mesh axes of each array axis, "" if it is not split
  pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """One strategy. What does not apply, or was not reached, is None.

  Attributes:
    strategy: its name.
    mesh: mesh axis -> size.
    status: ok, refused (the model or the batch cannot be divided so), out_of_memory or compiler_crash.
    reason: one line for every status but ok.
    microbatches: parts of the batch, one after the other.
    compile_seconds: of the step.
    memory_bytes: see `Memory`.
    memory_limit: bytes that a device has; None where nothing says so.
    flops: of the matrix products that one device executes in a step, recomputation included.
    model_flops: the same counted from the gradient's program, without recomputation: what MFU counts.
    collectives: of the compiled program.
    step_seconds, step_seconds_range: median, and smallest and largest, measured.
    tokens_per_second_per_device: measured or forecast; its range is that of the step time.
    loss_difference, grad_norm_difference: to one device in float32; relative, largest over the steps.
    forecast_step_seconds: see `Seconds`.
    fits: whether the program fits the device's memory; `over_bytes` by how much it does not.
    mfu: forecast model FLOPs a second, of the peak.
    bound_by: compute, hbm or communication over an axis: what takes the largest part of the forecast.
    minimum_bytes: mesh axes -> bytes that one device has to send by the analytic minimum.
    calibration_error: largest and median relative error of such forecasts against published runs, as a sentence.
    layout: where the chosen parameter lies.
  """

  strategy: str
  mesh: dict[str, int]
  status: str
  reason: str | None = None
  microbatches: int | None = None
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
  layout: Layout | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Strategies side by side.

  Attributes:
    kind: measured or forecast.
    config: the config file as named.
    devices: number and kind, as "8 x cpu (emulated)" or "256 x TPU v5 lite".
    topology: as asked, "v5e:16x16"; None when measured.
    batch_size, tokens_per_step: of the global batch.
    parameters: of the model.
    remat: the policy of the config.
    notes: sentences that belong beside the figures.
    strategies: the rows, in the order asked for.
    versions: package -> version.
    overrides: keys of the config that the command line replaced, as text.
    command: what made this comparison, to be repeated; empty where it was no command.
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
  strategies: tuple[Row, ...]
  versions: dict[str, str]
  overrides: dict[str, str] = dataclasses.field(default_factory=dict)
  command: str = ""


def to_json(record: Any) -> dict[str, Any]:
  """A dataclass of this file as plain dictionaries and lists."""
  return dataclasses.asdict(record)


def row_from_json(values: dict[str, Any]) -> Row:
  """The inverse of `to_json` for a row."""
  made = dict(values)
  for name, kind in (("memory_bytes", Memory), ("forecast_step_seconds", Seconds)):
    if made.get(name) is not None:
      made[name] = kind(**made[name])
  made["collectives"] = tuple(Collective(**one) for one in made.get("collectives", ()))
  for name in ("step_seconds_range", "tokens_per_second_per_device_range"):
    if made.get(name) is not None:
      made[name] = tuple(made[name])
  if made.get("layout") is not None:
    layout = made["layout"]
    pieces = (Piece(p["device"], p["coordinates"], tuple(p["start"]), tuple(p["stop"])) for p in layout["pieces"])
    shape, axes, spec = (tuple(layout[key]) for key in ("shape", "axes", "spec"))
    made["layout"] = Layout(layout["parameter"], shape, axes, spec, tuple(pieces))
  return Row(**made)
