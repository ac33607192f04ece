"""The figures of a comparison as text: defined once for the terminal, the page and the CSV file."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from tfm_jax.compare.results import OK, OUT_OF_MEMORY, Comparison, StrategyResult
from tfm_jax.runtime.reporting.units import human_bytes, human_count
from tfm_jax.sharding.strategy import BATCH_AXES

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
STATUS = {"ok": "ok", "refused": "refused", "out_of_memory": "out of memory", "compiler_crash": "compiler crash"}
NONE = "-"  # does not apply, or was not reached
NO_REASON = "no reason is known"


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the summary.

  Attributes:
    title: with a line break where the terminal's table breaks it.
    text: the text of the cell for a strategy.
    number: whether cells are numbers, aligned to the right.
  """

  title: str
  text: Callable[[StrategyResult], str]
  number: bool = True


@dataclasses.dataclass(frozen=True)
class Finding:
  """What a reader looks for first: a title as "Fastest", the strategies, their amount, and the worst for contrast."""

  title: str
  names: str
  amount: str
  contrast: str


def summary_columns(comparison: Comparison) -> tuple[Column, ...]:
  """The columns of the summary, in order."""
  strategy, mesh = Column("strategy", lambda result: result.strategy, False), Column("mesh", mesh_text, False)
  peak = Column("peak\nmemory", lambda result: _maybe(peak_bytes(result), human_bytes))
  tokens = Column("tokens/s\nper device", lambda result: _maybe(result.tokens_per_second_per_device, human_count))
  bubble = Column("bubble", lambda result: _maybe(result.bubble, percent))
  bubbles = (bubble,) if any(result.bubble for result in comparison.strategies) else ()
  sent = Column("sent per\nstep", lambda result: _maybe(sent_bytes(result), human_bytes))
  if comparison.kind == "forecast":
    return (
      strategy,
      mesh,
      Column("fits, or\nover by", _fits),
      peak,
      Column("step\nms", lambda result: _maybe(step_seconds(result), milliseconds)),
      Column("compute / HBM /\ncommunication ms", _parts),
      *bubbles,
      Column("MFU", lambda result: _maybe(result.mfu, percent)),
      tokens,
      sent,
      Column("sent /\nminimum", lambda result: _maybe(over_minimum(result), digits)),
      Column("bound by", lambda result: result.bound_by or NONE, False),
    )
  return (
    strategy,
    mesh,
    Column("step\nms", _measured_step),
    Column("range\nms", _range),
    tokens,
    *bubbles,
    Column("compile\ns", lambda result: _maybe(result.compile_seconds, digits)),
    peak,
    Column("state", lambda result: _maybe(state_bytes(result), human_bytes)),
    sent,
    Column("collec-\ntives", lambda result: _maybe(collective_count(result), str)),
    Column("loss\ndiff.", lambda result: _maybe(result.loss_difference, "{:.1e}".format)),
    Column("gradient\ndiff.", lambda result: _maybe(result.grad_norm_difference, "{:.1e}".format)),
  )


def explanations(comparison: Comparison) -> tuple[str, ...]:
  """A sentence for each figure of the summary that its title does not explain."""
  sent = "Sent per step: what one device sends in collectives, with ring algorithms"
  bubble = "Bubble: the share of a stage's time in which it has no microbatch; it is part of the step time."
  bubbles = (bubble,) if any(result.bubble for result in comparison.strategies) else ()
  if comparison.kind == "forecast":
    return (
      "Communication: the exposed part, during which nothing else runs.",
      "MFU counts model FLOPs, without recomputation.",
      f"{sent}; the minimum is the least that the strategy has to send.",
      *bubbles,
    )
  return (
    "Step: the median; range: the smallest and the largest. State: parameters and optimizer state.",
    f"{sent}.",
    *bubbles,
  )


def findings(comparison: Comparison) -> tuple[Finding, ...]:
  """The fastest strategy, the one with the least memory, and the one that sends least.

  Leaves out the times of emulated devices, strategies that do not fit, and figures in which all strategies are equal.
  """
  candidates: list[tuple[str, str, Callable[[StrategyResult], float | None], Callable[[float], str]]] = [
    ("Fastest", "slowest", step_seconds, lambda value: f"{seconds_text(value)} per step"),
    ("Least memory", "most", peak_bytes, lambda value: f"{human_bytes(value)} per device"),
    ("Sends least", "most", sent_bytes, lambda value: f"{human_bytes(value)} per step"),
  ]
  usable = [result for result in comparison.strategies if result.status == OK and not overflows(result)]
  chosen = []
  for best, worst, value, text in candidates[1:] if emulated(comparison) else candidates:
    known = [(size, result.strategy) for result in usable if (size := value(result)) is not None]
    least, most = min(known, default=(0.0, "")), max(known, default=(0.0, ""))
    if least[0] < most[0]:
      names = " and ".join(name for size, name in known if size == least[0])
      chosen.append(Finding(best, names, text(least[0]), f"{worst}: {most[1]}, {text(most[0])}"))
  return tuple(chosen)


def figures(comparison: Comparison, result: StrategyResult) -> dict[str, Any]:
  """All figures of a strategy: column of the CSV file -> value. Units are in the names, and None is unknown.

  The names depend on the comparison alone: they are the same for all of its strategies.
  """
  memory, parts, rates = result.memory_bytes, result.forecast_step_seconds, result.tokens_per_second_per_device_range
  axes = dict.fromkeys(axis for other in comparison.strategies for axis in other.mesh)
  known = sent_bytes(result) is not None
  return {
    "strategy": result.strategy,
    "status": result.status,
    "reason": result.reason,
    "kind": comparison.kind,
    "config": comparison.config,
    "devices": comparison.devices,
    "topology": comparison.topology,
    "batch_rows": comparison.batch_size,
    "tokens_per_step": comparison.tokens_per_step,
    "model_parameters": comparison.parameters,
    **{f"mesh_{axis}": result.mesh.get(axis) for axis in axes},
    "microbatches": result.microbatches,
    "bubble": result.bubble,
    "compile_seconds": result.compile_seconds,
    "parameter_bytes": memory and memory.parameters,
    "optimizer_bytes": memory and memory.optimizer,
    "gradient_bytes": memory and memory.gradients,
    "activation_bytes": memory and memory.activations,
    "temporary_bytes": memory and memory.temporaries,
    "peak_bytes": memory and memory.peak,
    "memory_limit_bytes": result.memory_limit,
    "fits": result.fits,
    "over_bytes": result.over_bytes,
    "flops_per_device": result.flops,
    "model_flops_per_device": result.model_flops,
    "collective_count": collective_count(result),
    "collective_bytes": sent_bytes(result),
    **{
      f"{kind.replace('-', '_')}_bytes": sum(c.bytes for c in result.collectives if c.kind == kind) if known else None
      for kind in (*KINDS, *sorted({c.kind for other in comparison.strategies for c in other.collectives} - set(KINDS)))
    },
    "minimum_bytes": None if result.minimum_bytes is None else sum(result.minimum_bytes.values()),
    "step_seconds": result.step_seconds,
    "step_seconds_smallest": result.step_seconds_range and result.step_seconds_range[0],
    "step_seconds_largest": result.step_seconds_range and result.step_seconds_range[1],
    "forecast_step_seconds": parts and parts.total,
    "forecast_compute_seconds": parts and parts.compute,
    "forecast_hbm_seconds": parts and parts.hbm,
    "forecast_communication_seconds": parts and parts.communication,
    "forecast_hidden_communication_seconds": parts and parts.hidden,
    "tokens_per_second_per_device": result.tokens_per_second_per_device,
    "tokens_per_second_per_device_smallest": rates and min(rates),
    "tokens_per_second_per_device_largest": rates and max(rates),
    "mfu": result.mfu,
    "bound_by": result.bound_by,
    "loss_difference": result.loss_difference,
    "grad_norm_difference": result.grad_norm_difference,
  }


def emulated(comparison: Comparison) -> bool:
  """Whether the devices were emulated, so that their times do not rank the strategies."""
  return comparison.kind == "measured" and "emulated" in comparison.devices


def overflows(result: StrategyResult) -> bool:
  """Whether the step does not fit the memory of a device."""
  return result.status == OUT_OF_MEMORY or result.fits is False


def step_seconds(result: StrategyResult) -> float | None:
  """The step time, measured or forecast."""
  return result.forecast_step_seconds.total if result.forecast_step_seconds else result.step_seconds


def peak_bytes(result: StrategyResult) -> int | None:
  """The peak memory of one device."""
  return result.memory_bytes.peak if result.memory_bytes else None


def state_bytes(result: StrategyResult) -> int | None:
  """Parameters and optimizer state on one device."""
  return result.memory_bytes.parameters + result.memory_bytes.optimizer if result.memory_bytes else None


def sent_bytes(result: StrategyResult) -> int | None:
  """Bytes that one device sends per step; None if no program was compiled."""
  if result.status != OK and not result.collectives:
    return None
  return sum(c.bytes for c in result.collectives)


def collective_count(result: StrategyResult) -> int | None:
  """Collectives per step; None if no program was compiled."""
  return None if sent_bytes(result) is None else sum(c.count for c in result.collectives)


def over_minimum(result: StrategyResult) -> float | None:
  """Bytes sent, divided by the analytic minimum."""
  sent, least = sent_bytes(result), sum((result.minimum_bytes or {}).values())
  return sent / least if sent is not None and least else None


def communication_axes(result: StrategyResult) -> list[str]:
  """The sets of mesh axes over which a strategy sends, or has to send, in the order of the mesh; "?" comes last."""
  minimum = {axes for axes, least in (result.minimum_bytes or {}).items() if least}
  order = list(result.mesh)

  def place(axes: str) -> tuple[list[int], str]:
    return [order.index(axis) if axis in order else len(order) for axis in axes.split(",")], axes

  return sorted({collective.axes for collective in result.collectives} | minimum, key=place)


def minimum_over(result: StrategyResult) -> dict[str, tuple[tuple[str, ...], float]]:
  """The analytic minimum by groups of sets of mesh axes: first set of a group -> (the whole group, its minimum).

  A reduction over replica and data may run over both at once, or over one after the other. So the sets of axes that
  split the batch have one minimum together; every other set is a group of its own.
  """
  minimum, sets = result.minimum_bytes or {}, communication_axes(result)
  batch = tuple(axes for axes in sets if set(axes.split(",")) <= set(BATCH_AXES))
  groups = [batch, *((axes,) for axes in sets if axes not in batch)]
  known = [(group, [minimum[axes] for axes in group if axes in minimum]) for group in groups]
  return {group[0]: (group, sum(parts)) for group, parts in known if parts}


def split_axes(result: StrategyResult) -> dict[str, int]:
  """The mesh axes with more than one device, and their sizes."""
  return {axis: size for axis, size in result.mesh.items() if size > 1}


def mesh_text(result: StrategyResult) -> str:
  """The mesh as text: "data=4 model=2"."""
  sizes = " ".join(f"{axis}={size}" for axis, size in split_axes(result).items())
  return sizes or ("1 device" if result.mesh else NONE)


def _maybe(value: Any, text: Callable[[Any], str]) -> str:
  """The text of a value; "-" if it is None."""
  return NONE if value is None else text(value)


def _fits(result: StrategyResult) -> str:
  """Whether the step fits, by how much it does not, or the status."""
  if overflows(result):
    return f"+{human_bytes(result.over_bytes)}" if result.over_bytes else "no"
  if result.status != OK:
    return STATUS[result.status]
  return NONE if result.fits is None else "yes"


def _measured_step(result: StrategyResult) -> str:
  """The median step time in milliseconds, or the status."""
  return _maybe(result.step_seconds, milliseconds) if result.status == OK else STATUS[result.status]


def _parts(result: StrategyResult) -> str:
  """The parts of a forecast step, in milliseconds."""
  parts = result.forecast_step_seconds
  return " / ".join(milliseconds(s) for s in (parts.compute, parts.hbm, parts.communication)) if parts else NONE


def _range(result: StrategyResult) -> str:
  """The smallest and the largest step time, in milliseconds."""
  return "-".join(map(milliseconds, result.step_seconds_range)) if result.step_seconds_range else NONE


def milliseconds(seconds: float) -> str:
  """Seconds as a number of milliseconds, without the unit."""
  return digits(seconds * 1000)


def digits(value: float) -> str:
  """A number in three significant digits; with an exponent only if it is tiny."""
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
