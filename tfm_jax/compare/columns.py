"""The figures of a comparison as text: one definition for the terminal, the page and the CSV file."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from tfm_jax.compare.record import OK, OUT_OF_MEMORY, Comparison, Row
from tfm_jax.sharding.strategy import BATCH_AXES
from tfm_jax.training.tracking import human_bytes, human_count

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
STATUS = {"ok": "ok", "refused": "refused", "out_of_memory": "out of memory", "compiler_crash": "compiler crash"}
NONE = "-"  # what does not apply, or was not reached
NO_REASON = "no reason is known"


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the summary: its title (a line end where it may be broken), the text of a row, and its alignment."""

  title: str
  text: Callable[[Row], str]
  number: bool = True


@dataclasses.dataclass(frozen=True)
class Finding:
  """What a reader looks for first: "Fastest", of which strategies, how much, and the other end of the scale."""

  title: str
  names: str
  amount: str
  contrast: str


def summary_columns(comparison: Comparison) -> tuple[Column, ...]:
  """What the summary shows of each strategy, in this order."""
  strategy, mesh = Column("strategy", lambda row: row.strategy, False), Column("mesh", mesh_text, False)
  peak = Column("peak\nmemory", lambda row: _maybe(peak_bytes(row), human_bytes))
  tokens = Column("tokens/s\na device", lambda row: _maybe(row.tokens_per_second_per_device, human_count))
  sent = Column("sent a\nstep", lambda row: _maybe(sent_bytes(row), human_bytes))
  if comparison.kind == "forecast":
    return (
      strategy,
      mesh,
      Column("fits, or\nover by", _fits),
      peak,
      Column("step\nms", lambda row: _maybe(step_seconds(row), milliseconds)),
      Column("compute / HBM /\ncommunication", _parts),
      Column("MFU", lambda row: _maybe(row.mfu, percent)),
      tokens,
      sent,
      Column("x mini-\nmum", lambda row: _maybe(over_minimum(row), digits)),
      Column("bound by", lambda row: row.bound_by or NONE, False),
    )
  return (
    strategy,
    mesh,
    Column("step\nms", lambda row: _maybe(row.step_seconds, milliseconds) if row.status == OK else STATUS[row.status]),
    Column("range", _range),
    tokens,
    Column("compile\ns", lambda row: _maybe(row.compile_seconds, digits)),
    peak,
    Column("state", lambda row: _maybe(state_bytes(row), human_bytes)),
    sent,
    Column("collec-\ntives", lambda row: _maybe(collective_count(row), str)),
    Column("loss\ndiff.", lambda row: _maybe(row.loss_difference, "{:.1e}".format)),
    Column("gradient\ndiff.", lambda row: _maybe(row.grad_norm_difference, "{:.1e}".format)),
  )


def explanations(comparison: Comparison) -> tuple[str, ...]:
  """A sentence for each figure of the summary that its title does not explain."""
  sent = "Sent a step: what one device sends in collectives, each done around a ring"
  if comparison.kind == "forecast":
    said = list(dict.fromkeys(row.calibration_error for row in comparison.strategies if row.calibration_error))
    return (
      "Communication: the exposed part, while nothing else runs. MFU counts model FLOPs, without recomputation.",
      f"{sent}; x minimum: of the least that the strategy has to send.",
      *(f"Calibration: {one}" for one in said),
    )
  return (
    "State: parameters and optimizer. Step: the median; range: smallest and largest.",
    f"{sent}.",
    "Loss and gradient difference: to one device in float32, relative, the largest over the steps.",
  )


def findings(comparison: Comparison) -> tuple[Finding, ...]:
  """The fastest, the smallest, and the one that sends least.

  Nothing on times that were measured on emulated devices, nothing on programs that do not fit, and nothing where all
  are equal.
  """
  asked: list[tuple[str, str, Callable[[Row], float | None], Callable[[float], str]]] = [
    ("Fastest", "slowest", step_seconds, lambda value: f"{seconds_text(value)} a step"),
    ("Least memory", "most", peak_bytes, lambda value: f"{human_bytes(value)} a device"),
    ("Sends least", "most", sent_bytes, lambda value: f"{human_bytes(value)} a step"),
  ]
  found = []
  for best, worst, value, text in asked[emulated(comparison) :]:
    usable = [row for row in comparison.strategies if row.status == OK and not overflows(row)]
    known = [(size, row.strategy) for row in usable if (size := value(row)) is not None]
    least, most = min(known, default=(0.0, "")), max(known, default=(0.0, ""))
    if least[0] < most[0]:
      names = " and ".join(name for size, name in known if size == least[0])
      found.append(Finding(best, names, text(least[0]), f"{worst}: {most[1]}, {text(most[0])}"))
  return tuple(found)


def figures(comparison: Comparison, row: Row) -> dict[str, Any]:
  """Everything known of a row, flat: column of the CSV file -> value; units stand in the names, None is unknown.

  The names depend on the comparison alone, so that all its rows have the same.
  """
  memory, parts, rates = row.memory_bytes, row.forecast_step_seconds, row.tokens_per_second_per_device_range
  axes = dict.fromkeys(axis for one in comparison.strategies for axis in one.mesh)
  known = sent_bytes(row) is not None
  return {
    "strategy": row.strategy,
    "status": row.status,
    "reason": row.reason,
    "kind": comparison.kind,
    "config": comparison.config,
    "devices": comparison.devices,
    "topology": comparison.topology,
    "batch_rows": comparison.batch_size,
    "tokens_per_step": comparison.tokens_per_step,
    "model_parameters": comparison.parameters,
    **{f"mesh_{axis}": row.mesh.get(axis) for axis in axes},
    "microbatches": row.microbatches,
    "compile_seconds": row.compile_seconds,
    "parameter_bytes": memory and memory.parameters,
    "optimizer_bytes": memory and memory.optimizer,
    "gradient_bytes": memory and memory.gradients,
    "activation_bytes": memory and memory.activations,
    "temporary_bytes": memory and memory.temporaries,
    "peak_bytes": memory and memory.peak,
    "memory_limit_bytes": row.memory_limit,
    "fits": row.fits,
    "over_bytes": row.over_bytes,
    "flops_per_device": row.flops,
    "model_flops_per_device": row.model_flops,
    "collective_count": collective_count(row),
    "collective_bytes": sent_bytes(row),
    **{
      f"{kind.replace('-', '_')}_bytes": sum(c.bytes for c in row.collectives if c.kind == kind) if known else None
      for kind in (*KINDS, *sorted({c.kind for one in comparison.strategies for c in one.collectives} - set(KINDS)))
    },
    "minimum_bytes": None if row.minimum_bytes is None else sum(row.minimum_bytes.values()),
    "step_seconds": row.step_seconds,
    "step_seconds_smallest": row.step_seconds_range and row.step_seconds_range[0],
    "step_seconds_largest": row.step_seconds_range and row.step_seconds_range[1],
    "forecast_step_seconds": parts and parts.total,
    "forecast_compute_seconds": parts and parts.compute,
    "forecast_hbm_seconds": parts and parts.hbm,
    "forecast_communication_seconds": parts and parts.communication,
    "forecast_hidden_communication_seconds": parts and parts.hidden,
    "tokens_per_second_per_device": row.tokens_per_second_per_device,
    "tokens_per_second_per_device_smallest": rates and min(rates),
    "tokens_per_second_per_device_largest": rates and max(rates),
    "mfu": row.mfu,
    "bound_by": row.bound_by,
    "loss_difference": row.loss_difference,
    "grad_norm_difference": row.grad_norm_difference,
  }


def emulated(comparison: Comparison) -> bool:
  """Whether the times are those of emulated devices, which rank nothing."""
  return comparison.kind == "measured" and "emulated" in comparison.devices


def overflows(row: Row) -> bool:
  """Whether the step does not fit the memory of a device."""
  return row.status == OUT_OF_MEMORY or row.fits is False


def step_seconds(row: Row) -> float | None:
  """Measured or forecast."""
  return row.forecast_step_seconds.total if row.forecast_step_seconds else row.step_seconds


def peak_bytes(row: Row) -> int | None:
  """The largest memory on one device."""
  return row.memory_bytes.peak if row.memory_bytes else None


def state_bytes(row: Row) -> int | None:
  """Parameters and optimizer on one device."""
  return row.memory_bytes.parameters + row.memory_bytes.optimizer if row.memory_bytes else None


def sent_bytes(row: Row) -> int | None:
  """What one device sends in a step; None where no program was compiled."""
  if row.status != OK and not row.collectives:
    return None
  return sum(c.bytes for c in row.collectives)


def collective_count(row: Row) -> int | None:
  """Executions a step; None where no program was compiled."""
  return None if sent_bytes(row) is None else sum(c.count for c in row.collectives)


def over_minimum(row: Row) -> float | None:
  """Bytes sent, of the analytic minimum."""
  sent, least = sent_bytes(row), sum((row.minimum_bytes or {}).values())
  return sent / least if sent is not None and least else None


def communication_axes(row: Row) -> list[str]:
  """The sets of mesh axes over which it sends, or has to, in the order of the mesh; "?" is last."""
  found = {one.axes for one in row.collectives} | {axes for axes, least in (row.minimum_bytes or {}).items() if least}
  order = list(row.mesh)
  places = {axes: [order.index(axis) if axis in order else len(order) for axis in axes.split(",")] for axes in found}
  return sorted(found, key=lambda axes: (places[axes], axes))


def minimum_over(row: Row) -> dict[str, tuple[tuple[str, ...], float]]:
  """The analytic minimum by sets of mesh axes: the first of some sets -> (all of them, their minimum together).

  A sum over replica and data may be made over both at once, or over one after the other: only together do the sets of
  axes that split the batch have a minimum.
  """
  minimum, sets = row.minimum_bytes or {}, communication_axes(row)
  batch = tuple(axes for axes in sets if set(axes.split(",")) <= set(BATCH_AXES))
  groups = [batch, *((axes,) for axes in sets if axes not in batch)]
  known = [(group, [minimum[axes] for axes in group if axes in minimum]) for group in groups]
  return {group[0]: (group, sum(parts)) for group, parts in known if parts}


def split_axes(row: Row) -> dict[str, int]:
  """The mesh axes of more than one device."""
  return {axis: size for axis, size in row.mesh.items() if size > 1}


def mesh_text(row: Row) -> str:
  """The mesh in a word or two."""
  return " ".join(f"{axis}={size}" for axis, size in split_axes(row).items()) or ("1 device" if row.mesh else NONE)


def _maybe(value: Any, text: Callable[[Any], str]) -> str:
  """The text of a value that may be unknown."""
  return NONE if value is None else text(value)


def _fits(row: Row) -> str:
  """Whether it fits, by how much not, or why nothing is known."""
  if overflows(row):
    return f"+{human_bytes(row.over_bytes)}" if row.over_bytes else "no"
  if row.status != OK:
    return STATUS[row.status]
  return NONE if row.fits is None else "yes"


def _parts(row: Row) -> str:
  """The parts of a forecast step, in milliseconds."""
  parts = row.forecast_step_seconds
  return " / ".join(milliseconds(s) for s in (parts.compute, parts.hbm, parts.communication)) if parts else NONE


def _range(row: Row) -> str:
  """The range of the step time, in milliseconds."""
  return "-".join(map(milliseconds, row.step_seconds_range)) if row.step_seconds_range else NONE


def milliseconds(seconds: float) -> str:
  """Seconds as a number of milliseconds, in three digits."""
  return digits(seconds * 1000)


def digits(value: float) -> str:
  """A number in three significant digits, never with an exponent unless it is tiny."""
  if not math.isfinite(value) or abs(value) >= 100:
    return f"{value:.0f}"
  return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def percent(share: float) -> str:
  """A share as a percentage."""
  return f"{100 * share:.3g}%"


def seconds_text(seconds: float) -> str:
  """A short duration with its unit: 850 µs, 41.2 ms, 1.23 s."""
  for size, unit in ((1.0, "s"), (1e-3, "ms")):
    if seconds >= size:
      return f"{digits(seconds / size)} {unit}"
  return f"{digits(seconds * 1e6)} µs"
