"""The page of a weak-scaling forecast: tokens/s per chip over the number of chips, compiled and extrapolated."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.chart import Line, line_chart
from tfm_jax.runtime.reporting.units import human_count


class Point(Protocol):
  """What the page needs of a forecast."""

  @property
  def strategy(self) -> str: ...
  @property
  def chips(self) -> int: ...
  @property
  def seconds(self) -> float | None: ...
  @property
  def tokens_per_second_per_chip(self) -> float | None: ...
  @property
  def extrapolated(self) -> bool: ...
  @property
  def reason(self) -> str | None: ...


def curve_page(title: str, facts: Mapping[str, str], points: Sequence[Point]) -> str:
  """One HTML file that needs no other: one line per strategy, and all points as a table."""
  extrapolated = any(point.extrapolated for point in points)
  explanation = "The batch grows with the number of chips, so a level line is perfect scaling."
  if extrapolated:
    explanation += " Filled: compiled. Hollow and dashed: extrapolated."
  chart = _chart(points) if any(p.tokens_per_second_per_chip for p in points) else "<p>No strategy fits.</p>"
  rows = [
    [
      point.strategy,
      "extrapolated" if point.extrapolated else point.reason or "compiled",
      f"{point.chips:,}",
      f"{point.seconds:.3f}" if point.seconds else "-",
      human_count(point.tokens_per_second_per_chip) if point.tokens_per_second_per_chip else "-",
    ]
    for point in sorted(points, key=lambda point: (point.strategy, point.chips))
  ]
  columns = ["strategy", "how", "chips", "seconds per step", "tokens/s per chip"]
  intro = "A forecast from programs compiled for slices, or numbers of hosts, of different sizes."
  sections = [
    page.header(title, intro, facts),
    page.section("Tokens/s per chip", explanation, f'<div class="scroll"><div class="wide">{chart}</div></div>'),
    page.section("All points", "", page.table(columns, rows, text_columns=2)),
  ]
  return page.page(title, "\n".join(sections))


def _chart(points: Sequence[Point]) -> str:
  """One line per strategy; its extrapolated part is dashed, and starts at the last compiled point."""
  lines: list[Line] = []
  for number, strategy in enumerate(dict.fromkeys(point.strategy for point in points)):
    own = sorted((p for p in points if p.strategy == strategy), key=lambda p: p.chips)
    compiled = [_place(p) for p in own if p.tokens_per_second_per_chip and not p.extrapolated]
    beyond = [_place(p) for p in own if p.tokens_per_second_per_chip and p.extrapolated]
    lines.append(Line("", [*compiled[-1:], *beyond] if beyond else [], number + 1, "dashed", "hollow"))
    lines.append(Line(strategy, compiled, number + 1, marks="filled"))
  return line_chart(
    "Tokens/s per chip over the number of chips",
    lines,
    x_name="chips",
    x_log=True,
    y_low=0.0,
    x_ticks=sorted({point.chips for point in points if point.tokens_per_second_per_chip}),
    size=(1100, 400),
    x_text="{:,.0f}".format,
  )


def _place(point: Point) -> tuple[float, float]:
  """(chips, tokens/s per chip)."""
  return point.chips, point.tokens_per_second_per_chip or 0.0
