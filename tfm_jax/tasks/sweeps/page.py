"""sweep.html: the table, parallel coordinates, the score along each key, and the curves of all points."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.chart import Line, line_chart
from tfm_jax.tasks.sweeps import results
from tfm_jax.tasks.sweeps.runs import FINISHED, Metric, Point
from tfm_jax.tasks.sweeps.space import Space, short_keys, value_text

_STYLE = """<style>
.curve .points { stroke: none; }
.curve .thread { fill: none; stroke-linejoin: round; }
.curve .faint { opacity: 0.45; }
.card .curve { overflow: visible; }
.curve .axis { stroke: var(--soft); stroke-width: 1; }
.curve .name { font-weight: 600; fill: var(--ink); }
section > .command { max-width: none; color: var(--ink); }
.command { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--page); border: 1px solid var(--line);
  border-radius: 6px; padding: 10px 12px; font: 0.84rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; margin: 0; }
tr.best td { font-weight: 600; }
</style>
"""
_LOG_RATIO = 10.0  # of the largest to the smallest value, from which an axis is logarithmic
_MOST_TICKS = 8


def sweep_page(config: str, space: Space, points: Sequence[Point], metric: Metric, active: bool = False) -> str:
  """The page. While the sweep is active, it loads itself again every minute."""
  keys = list(space.dimensions)
  top = results.best(points, metric)
  scored = [point for point in results.ranked(points, metric) if point.mean(metric) is not None]
  runs = [run for point in points for run in point.runs]
  facts = {
    "sweep": f"{space.kind}, {len(points)} points" + (f", {len(points[0].runs)} seeds" if _seeds(points) > 1 else ""),
    "runs": f"{sum(run.status == FINISHED for run in runs)} of {len(runs)} finished",
    "ranked by": f"{metric.name} of the {metric.evaluation} evaluation",
    f"best {metric.name}": results.score_text(top, metric) if top else "",
    "best point": top.text if top else "",
  }
  title = f"Sweep of {config}"
  intro = f"{'Larger' if metric.larger_is_better else 'Smaller'} is better."
  intro += " ± is the standard deviation over seeds." if _seeds(points) > 1 else ""
  parts = [page.header(title, intro, facts)]
  if top:
    parts.append(
      page.section(
        "Best configuration", "", f'<p class="command">{escape(results.command(config, top, lines=True))}</p>'
      )
    )
  if len(scored) > 1:
    axes = [_Scale(key, name, scored, space) for key, name in short_keys(keys).items()]
    said = "A line is a point: its value of each key, and its score. The stronger, the better; the best in amber."
    parts.append(page.section("Parallel coordinates", said, _wide(_coordinates(axes, scored, metric))))
    cards = "".join(
      f'<div class="card"><h2>{escape(axis.name)}</h2>{_marginal(axis, scored, metric)}</div>' for axis in axes
    )
    said = "Each circle is a point, the best in amber; the line is the mean of points with the same value."
    parts.append(page.section(f"{metric.name} along each key", said, f'<div class="cards">{cards}</div>'))
  if any(len(run.records) > 1 for run in runs):
    said = "Held-out, one line per run; the best point is strong."
    parts.append(page.section(f"{metric.name} during training", said, _wide(_curves(points, top, metric))))
  columns, rows = results.cells(points, metric, keys)
  parts.append(page.section("All points", "", page.table(columns, rows, text_columns=2)))
  failed = results.failures(points)
  if failed:
    table = page.table(["run", "error"], [list(pair) for pair in failed], text_columns=2)
    parts.append(page.section("Failed", "Each has a log.txt. The same command runs them again.", table))
  head = '<meta http-equiv="refresh" content="60">\n' if active else ""
  return page.page(title, "\n".join(parts), head + _STYLE)


class _Scale:
  """Where the values of a key lie between 0 and 1: numbers in proportion, or by their logarithm; anything else evenly.

  The logarithm is that of a range "log", or of a list whose values differ by a factor of ten or more.

  Args:
    key, name: the key, and its short name.
    points: those that are shown.
    space: the sweep.
  """

  def __init__(self, key: str, name: str, points: Sequence[Point], space: Space) -> None:
    self.key, self.name, dimension = key, name, space.dimensions[key]
    values = [point.values[key] for point in points if key in point.values]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)]
    self.numeric = len(numbers) == len(values) and len(values) > 0
    wide = self.numeric and min(numbers) > 0 and max(numbers) >= _LOG_RATIO * min(numbers)
    self.log = dimension.kind == "log" or (dimension.kind == "choice" and wide)
    order = {value_text(value): i for i, value in enumerate(dimension.values)} if dimension.kind == "choice" else {}
    texts = sorted({value_text(value) for value in values}, key=lambda text: order.get(text, 0))
    self.distinct: list[Any] = sorted(set(numbers)) if self.numeric else texts

  def value(self, point: Point) -> float | None:
    """The number that an axis has for a point; None: the point does not set the key."""
    if self.key not in point.values:
      return None
    value = point.values[self.key]
    return float(value) if self.numeric else float(self.distinct.index(value_text(value)))

  def text(self, value: float) -> str:
    """What stands at a number of the axis."""
    if self.numeric:
      return f"{value:g}"
    return self.distinct[round(value)] if 0 <= round(value) < len(self.distinct) else ""

  def ticks(self) -> list[float]:
    """The numbers that are named: all values if they are few."""
    every = self.distinct if self.numeric else [float(i) for i in range(len(self.distinct))]
    return every if len(every) <= _MOST_TICKS else [every[0], every[-1]]

  def share(self, value: float) -> float:
    """Place of a number between the smallest (0) and the largest (1)."""
    return _share(
      value, [float(v) for v in self.distinct] if self.numeric else [0.0, len(self.distinct) - 1.0], self.log
    )


def _share(value: float, every: Sequence[float], log: bool = False) -> float:
  low, high = min(every), max(every)
  if low == high:
    return 0.5
  of: Callable[[float], float] = math.log if log else float
  return (of(value) - of(low)) / (of(high) - of(low))


def _coordinates(axes: Sequence[_Scale], scored: Sequence[Point], metric: Metric) -> str:
  """One vertical axis per key and one for the score; a line per point, the best last and on top."""
  width, height, top, bottom, side = 1100, 360, 44, 16, 70
  place = lambda share: height - bottom - share * (height - bottom - top)
  columns = [side + i * (width - 2 * side) / len(axes) for i in range(len(axes) + 1)]
  means = [point.mean(metric) or 0.0 for point in scored]
  drawn = []
  for order in reversed(range(len(scored))):
    point, mean = scored[order], means[order]
    places = [
      (x, place(axis.share(value)))
      for x, axis in zip(columns, axes, strict=False)
      if (value := axis.value(point)) is not None
    ]
    places.append((columns[-1], place(_share(mean, means))))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    strength = 100 * (1 - order / len(scored)) ** 2
    colour = "var(--c4)" if order == 0 else f"color-mix(in srgb, var(--c1) {18 + 0.8 * strength:.0f}%, var(--card))"
    says = f"{point.text}: {metric.name} {results.score_text(point, metric)}"
    drawn.append(
      f'<polyline class="thread" points="{path}" style="stroke: {colour}; stroke-width: {3.5 if order == 0 else 1.6}">'
      f"<title>{escape(says)}</title></polyline>"
    )
  for x, axis in zip(columns, axes, strict=False):
    drawn.append(_axis(x, axis.name, top, height - bottom))
    drawn += [_tick(x, place(axis.share(value)), axis.text(value)) for value in axis.ticks()]
  drawn.append(_axis(columns[-1], metric.name, top, height - bottom))
  drawn += [
    _tick(columns[-1], place(_share(value, means)), results.number(value)) for value in {min(means), max(means)}
  ]
  picture = f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="parallel coordinates">'
  return f"{picture}{''.join(drawn)}</svg>"


def _axis(x: float, name: str, top: float, bottom: float) -> str:
  line = f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
  return f'{line}<text class="name" x="{x:.1f}" y="{top - 18}" text-anchor="middle">{escape(name)}</text>'


def _tick(x: float, y: float, text: str) -> str:
  """A value beside an axis, readable on top of lines."""
  halo = "paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round"
  shown = _shortened(text, 18)
  return f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" style="{halo}">{escape(shown)}</text>'


def _shortened(text: str, length: int) -> str:
  return text if len(text) <= length else f"{text[: length - 1]}…"


def _marginal(axis: _Scale, scored: Sequence[Point], metric: Metric) -> str:
  """The scores of all points along one key, and the mean of points with the same value."""
  groups: dict[float, list[float]] = {}
  for point in scored:
    value = axis.value(point)
    if value is not None:
      groups.setdefault(value, []).append(point.mean(metric) or 0.0)
  places = sorted(groups)
  if not places:
    return "<p>Nothing to draw yet.</p>"
  dots = [(x, y) for x in places for y in groups[x]]
  lines = [Line("", dots, 1, form="points", marks="hollow")]
  if len(dots) > len(places) > 1:
    lines.insert(0, Line("", [(x, sum(groups[x]) / len(groups[x])) for x in places], 4))
  first = scored[0]
  at = axis.value(first)
  if at is not None:
    lines.append(Line("", [(at, first.mean(metric) or 0.0)], 4, form="points", marks="filled"))
  return line_chart(
    f"{metric.name} along {axis.name}",
    lines,
    x_name=axis.name,
    x_log=axis.log,
    x_ticks=None if axis.numeric and len(axis.distinct) > _MOST_TICKS else axis.ticks(),
    x_text=lambda value: _shortened(axis.text(value), 12),
    text=results.number,
  )


def _curves(points: Sequence[Point], top: Point | None, metric: Metric) -> str:
  """The score over steps: all runs faint, those of the best point strong."""
  lines = []
  for point in points:
    for run in point.runs:
      curve = _curve(run.records, metric)
      if curve and point is not top:
        lines.append(Line("", curve, 1, form="faint"))
  for run in top.runs if top else ():
    lines.append(Line("", _curve(run.records, metric), 4, marks="filled"))
  return line_chart(f"{metric.name} during training", lines, size=(1100, 320), text=results.number)


def _curve(records: Sequence[Mapping[str, Any]], metric: Metric) -> list[tuple[float, float]]:
  found = [metric.of([record]) for record in records]
  return [(float(step), value) for step, value in filter(None, found)]


def _seeds(points: Sequence[Point]) -> int:
  return max((len(point.runs) for point in points), default=1)


def _wide(body: str) -> str:
  return f'<div class="scroll"><div class="wide">{body}</div></div>'
