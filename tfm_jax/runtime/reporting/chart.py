"""Line charts as SVG, for pages that need no other file and run no script."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from tfm_jax.runtime.reporting.units import human_count

COLOURS = 6  # the page's style names them --c1 to --c6
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 10, 40  # margins around the plot
LETTER = 7  # width of a letter beside the axes
HOVERED = 80  # most points of a line that show their value under the mouse

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a chart.

  Attributes:
    name: for the legend; empty: the line is not in it.
    points: (x, y), by ascending x. What is not finite is left out.
    colour: 1 to `COLOURS`; 0: that of the axes.
    form: solid, dashed, faint (thin and pale: raw values behind a smoothed line), or points (not joined; many of
      them: small and pale).
    marks: of the points: none, filled or hollow circles.
    ranges: (low, high) of each point, drawn as a vertical line; none if empty.
    depth: of lines in an order, such as layers: from 0, the first, to 1, the last, which have a gradient of colours in
      place of `colour`; of many, some are in the legend.
    labels: short texts beside the points; none if empty.
  """

  name: str
  points: Sequence[Point]
  colour: int = 1
  form: str = "solid"
  marks: str = "none"
  ranges: Sequence[Point] = ()
  depth: float | None = None
  labels: Sequence[str] = ()

  @property
  def stroke(self) -> str:
    """The colour, as CSS."""
    if self.depth is not None:
      return f"color-mix(in oklch, var(--c4) {100 * self.depth:.1f}%, var(--c1))"
    return f"var(--c{(self.colour - 1) % COLOURS + 1})" if self.colour else "var(--soft)"


def line_chart(
  title: str,
  lines: Sequence[Line],
  *,
  x_name: str = "step",
  x_log: bool = False,
  y_log: bool = False,
  y_low: float | None = None,
  y_high: float | None = None,
  x_ticks: Sequence[float] | None = None,
  size: tuple[int, int] = (540, 250),
  x_text: Callable[[float], str] = human_count,
  text: Callable[[float], str] = human_count,
) -> str:
  """A legend, if several lines have a name, and a picture of lines over a common axis.

  Args:
    title: what a screen reader says.
    lines: drawn in their order; those without points are left out.
    x_name: stands below the axis.
    x_log, y_log: logarithmic axes, on which only positive values are drawn.
    y_low, y_high: ends of the vertical axis; None: those of the points. Lines are cut off there.
    x_ticks: values named on the horizontal axis; None: round ones.
    size: width and height; the picture follows the width of the page.
    x_text, text: how a value of the horizontal and of the vertical axis is written.
  """
  lines = [_drawable(line, x_log, y_log) for line in lines]
  lines = [line for line in lines if line.points]
  if not lines:
    return "<p>Nothing to draw yet.</p>"
  (width, height), every = size, [point for line in lines for point in line.points]
  every += [(x, y) for line in lines for (x, _), ends in zip(line.points, line.ranges, strict=False) for y in ends]
  x_axis = _Axis([x for x, _ in every], x_log, LEFT, width - RIGHT)
  ends = [end for end in (y_low, y_high) if end is not None]
  inside = [y for _, y in every if (y_low is None or y >= y_low) and (y_high is None or y <= y_high)]
  y_axis = _Axis([*inside, *ends], y_log, height - BOTTOM, TOP, rounded=True)
  drawn = [
    f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y_axis(y):.1f}" y2="{y_axis(y):.1f}"/>'
    f'<text x="{LEFT - 7}" y="{y_axis(y) + 4:.1f}" text-anchor="end">{escape(text(y))}</text>'
    for y in y_axis.ticks(height // 45)
  ]
  for x in x_axis.ticks(width // 90) if x_ticks is None else x_ticks:
    half = LETTER * len(x_text(x)) / 2
    # Below its place, but neither under the values of the vertical axis nor beyond the picture.
    middle = min(max(x_axis(x), LEFT - LETTER + half), width - half)
    drawn.append(f'<text x="{middle:.1f}" y="{height - BOTTOM + 17}" text-anchor="middle">{escape(x_text(x))}</text>')
  drawn.append(f'<text x="{(LEFT + width - RIGHT) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_name)}</text>')
  pieces = "".join(_drawn(line, x_axis, y_axis, x_name, text) for line in lines)
  # A picture inside the picture cuts off what is beyond the vertical axis.
  view = f'x="0" y="{TOP - 6}" width="{width}" height="{height - BOTTOM - TOP + 12}"'
  box = f'viewBox="0 {TOP - 6} {width} {height - BOTTOM - TOP + 12}"'
  drawn.append(f'<svg class="lines" {view} {box}>{pieces}</svg>')
  drawn += _labels(lines, x_axis, y_axis, width)
  picture = f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
  return f"{_legend(lines)}{picture}{''.join(drawn)}</svg>"


class _Axis:
  """A scale from values to places.

  Args:
    values: what must lie on it.
    log: whether equal distances are equal ratios.
    start, end: places of its ends.
    rounded: whether it ends at round values.
  """

  def __init__(self, values: Iterable[float], log: bool, start: float, end: float, rounded: bool = False) -> None:
    values = list(values)
    self.low, self.high, self.log = min(values), max(values), log
    if self.high - self.low <= 1e-9 * abs(self.high):  # a single value stands in the middle
      margin = abs(self.low) * 0.1 or 1.0
      self.low, self.high = self.low - margin, self.high + margin
    if rounded and not log:
      step = _round_step((self.high - self.low) / 5)
      self.low, self.high = math.floor(self.low / step + 1e-6) * step, math.ceil(self.high / step - 1e-6) * step
    self._start, self._end = start, end

  def __call__(self, value: float) -> float:
    """The place of a value."""
    of = math.log if self.log else float
    share = (of(value) - of(self.low)) / (of(self.high) - of(self.low))
    return self._start + share * (self._end - self._start)

  def ticks(self, count: int) -> list[float]:
    """Round values, about `count` of them."""
    if not self.log:
      step = _round_step((self.high - self.low) / max(count, 1))
      first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
      return [step * n for n in range(first, last + 1)]
    powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
    for factors in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
      ticks = [f * 10.0**power for power, f in itertools.product(powers, factors)]
      ticks = [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]
      if len(ticks) <= 1.5 * count:
        break
    return ticks[:: max(len(ticks) // max(count, 1), 1)] if len(ticks) > 1 else [self.low, self.high]


def _round_step(rough: float) -> float:
  """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `rough`."""
  power = 10.0 ** math.floor(math.log10(rough))
  return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def _drawable(line: Line, x_log: bool, y_log: bool) -> Line:
  """The line with only those points that have a place on the axes."""
  inside = [math.isfinite(y) and (x > 0 or not x_log) and (y > 0 or not y_log) for x, y in line.points]
  points, ranges = (list(itertools.compress(values, inside)) for values in (line.points, line.ranges))
  labels = list(itertools.compress(line.labels, inside))
  return dataclasses.replace(line, points=points, ranges=ranges, labels=labels)


def _labels(lines: Sequence[Line], x_axis: _Axis, y_axis: _Axis, width: int) -> list[str]:
  """The labels of points, each beside its point, or where there is room above or below the labels so far."""
  drawn: list[str] = []
  taken: list[tuple[float, float, float]] = []  # left, right and bottom of each label
  for line in lines:
    for (x, y), label in zip(line.points, line.labels, strict=False):
      size = LETTER * len(label)
      left = x_axis(x) + 8 if x_axis(x) + 8 + size < width else x_axis(x) - 8 - size
      free = (y_axis(y) + 4 + shift for n in range(len(taken) + 1) for shift in (13 * n, -13 * n))
      top = next(top for top in free if all(abs(top - t) >= 12 or left + size < b or e < left for b, e, t in taken))
      taken.append((left, left + size, top))
      drawn.append(f'<text class="label" x="{left:.1f}" y="{top:.1f}">{escape(label)}</text>')
  return drawn


def _drawn(line: Line, x_axis: _Axis, y_axis: _Axis, x_name: str, text: Callable[[float], str]) -> str:
  """A line, its marks, and places that show their value under the mouse."""
  places = [(f"{x_axis(x):.1f}", f"{y_axis(y):.1f}") for x, y in line.points]
  if line.form == "points" and line.marks == "none":
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in places)
    return f'<g fill="{line.stroke}" opacity="0.4">{dots}</g>'
  path = " ".join(f"{x},{y}" for x, y in places)
  out = "" if line.form == "points" else f'<polyline class="{line.form}" points="{path}" stroke="{line.stroke}"/>'
  for (x, _), ends in zip(places, line.ranges, strict=False):
    low, high = (f"{y_axis(y):.1f}" for y in ends)
    out += f'<path d="M{x} {low}V{high}" stroke="{line.stroke}" stroke-width="1.5" fill="none"/>'
  if line.form == "faint":
    return out
  fill = {"none": "transparent", "hollow": "var(--card)", "filled": line.stroke}[line.marks]
  border = f' stroke="{line.stroke}" stroke-width="2"' if line.marks != "none" else ""
  every = 1 if line.marks != "none" else max(len(places) // HOVERED, 1)
  radius = 4 if line.marks != "none" else 7
  for (x, y), point in list(zip(places, line.points, strict=True))[::-1][::every]:  # the last one always
    says = f"{line.name + ', ' if line.name else ''}{x_name} {point[0]:,g}: {text(point[1])}"
    out += f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{fill}"{border}><title>{escape(says)}</title></circle>'
  return out


def _legend(lines: Sequence[Line]) -> str:
  """The names of the lines, where there are several."""
  ordered = [line for line in lines if line.depth is not None]
  kept = {round(i * (len(ordered) - 1) / (COLOURS - 1)) for i in range(COLOURS)}
  hidden = {line.name for i, line in enumerate(ordered) if i not in kept}
  named = {line.name: line for line in lines if line.name and line.name not in hidden}
  if len(named) < 2:
    return ""
  items = (
    f'<li><span class="key" style="background: {line.stroke}"></span>{escape(name)}</li>'
    for name, line in named.items()
  )
  return f'<ul class="legend">{"".join(items)}</ul>'
