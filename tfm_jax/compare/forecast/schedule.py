"""Forecasts the step time of a compiled program by simulating its schedule, operation by operation.

The compiler's text lists operations in scheduled order. An operation on the core takes the longer of two times: that of
its compute units and that of its memory traffic. Asynchronous collectives and copies run beside the core; their `-done`
waits for the time that is left. What operations and collectives cost is a chip's: `forecast.tpu`, `forecast.gpu`.
"""

import dataclasses
from typing import Generic, NamedTuple, TypeVar

from jax.sharding import Mesh

from tfm_jax.compare.compiled.hlo import Computation, Instruction, Module
from tfm_jax.compare.results import Seconds
from tfm_jax.runtime.chips import Chip

AnyChip = TypeVar("AnyChip", bound=Chip)


@dataclasses.dataclass
class Times:
  """Seconds by what limits them. `axes`: mesh axes -> seconds of exposed communication."""

  compute: float = 0.0
  hbm: float = 0.0
  communication: float = 0.0
  hidden: float = 0.0
  axes: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, other: "Times", times: int = 1) -> None:
    """Adds `times` executions of `other`."""
    for name in ("compute", "hbm", "communication", "hidden"):
      setattr(self, name, getattr(self, name) + times * getattr(other, name))
    for axis, seconds in other.axes.items():
      self.axes[axis] = self.axes.get(axis, 0.0) + times * seconds

  @property
  def total(self) -> float:
    """Seconds that the core is busy or waits; hidden communication is no part of it."""
    return self.compute + self.hbm + self.communication


class Cost(NamedTuple):
  """Seconds of one operation: its units, its memory traffic, and the part of that which the units have to wait for."""

  units: float
  traffic: float
  exposed: float = 0.0


@dataclasses.dataclass
class _Transfer:
  """A transfer that runs beside the core: when it ends, over which mesh axes (None: a copy), and how long it takes."""

  end: float
  axes: str | None
  seconds: float


class Forecast(Generic[AnyChip]):
  """Simulates one step of a program on a mesh.

  Args:
    module: the compiled program, with its instructions in scheduled order.
    mesh: the devices that it was compiled for.
    chip: the constants of these devices.
  """

  def __init__(self, module: Module, mesh: Mesh, chip: AnyChip) -> None:
    self.module, self.mesh, self.chip = module, mesh, chip

  # --- what a kind of chip tells

  def starts(self, i: Instruction) -> str | None:
    """The name of the transfer beside the core that the instruction starts; None if it starts none."""
    raise NotImplementedError

  def finishes(self, i: Instruction, where: Computation) -> str | None:
    """The name of the transfer for which the instruction waits, which need not exist; None for other instructions."""
    raise NotImplementedError

  def blocks(self, i: Instruction) -> bool:
    """Whether the core waits for the whole of this collective."""
    return i.kind is not None

  def transfer(self, i: Instruction) -> tuple[str | None, str, float]:
    """(mesh axes, or None for a copy; what it occupies alone; seconds) of a collective or an asynchronous copy."""
    raise NotImplementedError

  def operation(self, i: Instruction, where: Computation) -> Cost:
    """The cost of an operation on the core."""
    raise NotImplementedError

  # --- the simulation

  def seconds(self) -> tuple[Seconds, str]:
    """(the forecast, its largest part: "compute", "hbm" or "communication over AXES")."""
    t = self._run(self.module.computations[self.module.entry])
    parts = {"compute": t.compute, "hbm": t.hbm}
    parts |= {f"communication over {axis}": s for axis, s in t.axes.items()}
    return Seconds(t.total, t.compute, t.hbm, t.communication, t.hidden), max(parts, key=lambda k: parts[k])

  def _run(self, where: Computation) -> Times:
    """The times of one execution of a computation."""
    t, now = Times(), 0.0
    transfers: dict[str, _Transfer] = {}
    free: dict[str, float] = {}  # when links and copy engines are free
    for i in where.instructions:
      if i.op == "while":
        body = self._run(self.module.computations[i.called("body") or ""])
        trips = self.module.trips(i, where)
        t.add(body, trips)
        now += body.total * trips
      elif (name := self.starts(i)) is not None:
        axes, links, seconds = self.transfer(i)
        free[links] = max(now, free.get(links, 0.0)) + seconds
        transfers[name] = _Transfer(free[links], axes, seconds)
      elif (transfer := transfers.get(self.finishes(i, where) or "")) is not None:
        waited = max(transfer.end - now, 0.0)
        now += waited
        if transfer.axes is None:
          t.hbm += waited
        else:
          self._add_communication(t, transfer.axes, waited, transfer.seconds)
      elif self.blocks(i):
        over, _, seconds = self.transfer(i)
        self._add_communication(t, over or "?", seconds, seconds)
        now += seconds
      else:
        cost = self.operation(i, where)
        seconds = max(cost.units + cost.exposed, cost.traffic)
        now += seconds
        if cost.units >= cost.traffic:
          t.compute += seconds
        else:
          t.hbm += seconds
    return t

  @staticmethod
  def _add_communication(t: Times, axes: str, waited: float, seconds: float) -> None:
    """Adds a transfer of some seconds, of which the core waited for `waited`."""
    t.communication += waited
    t.hidden += max(seconds - waited, 0.0)
    t.axes[axes] = t.axes.get(axes, 0.0) + waited
