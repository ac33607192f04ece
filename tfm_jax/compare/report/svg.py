"""Bar charts as SVG. Widths are percentages: a chart scales with the page while its text keeps its size."""

import dataclasses
import math
from collections.abc import Sequence
from html import escape

from tfm_jax.compare.report.columns import seconds_text
from tfm_jax.runtime.reporting.units import human_bytes

THICK = 20  # pixels: height of a bar
UNITS = {
  "bytes": tuple((1024.0**i, name) for i, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))),
  "seconds": ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s")),
}


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of a bar: its CSS class, which gives the colour, its title and its size."""

  name: str
  title: str
  value: float


@dataclasses.dataclass(frozen=True)
class Bar:
  """One bar of a chart.

  Attributes:
    label, detail: to the left of the bar, the second in small type.
    text, note: to the right of the bar, the second in small type.
    parts: drawn end to end.
    ghost: drawn as an outline after the parts; it does not count in the total.
    whisker: the smallest and the largest value, drawn as a line.
    tick: a value to compare with, drawn as a mark.
    reason: text in place of the bar: why there is none.
    warning: whether text and note are drawn as bad news.
  """

  label: str
  detail: str
  text: str = ""
  note: str = ""
  parts: tuple[Part, ...] = ()
  ghost: Part | None = None
  whisker: tuple[float, float] | None = None
  tick: float | None = None
  reason: str | None = None
  warning: bool = False

  @property
  def end(self) -> float:
    """The largest value drawn."""
    ghost = self.ghost.value if self.ghost else 0.0
    return max(sum(max(p.value, 0.0) for p in self.parts) + ghost, (self.whisker or (0, 0))[1], self.tick or 0.0)


def chart(title: str, bars: Sequence[Bar], unit: str, limit: float | None = None, limit_name: str = "") -> str:
  """Horizontal bars on one scale from zero.

  Args:
    title: for screen readers.
    bars: from top to bottom.
    unit: bytes or seconds.
    limit: a vertical line; left out if it is far beyond all bars, which would shrink them.
    limit_name: the text above this line.
  """
  most = max((bar.end for bar in bars), default=0.0)
  drawn = limit if limit and limit <= 4 * most else None
  ticks = _ticks(max(most, 1.04 * (drawn or 0.0)), unit)
  full = ticks[-1][0]
  rows = [_head(drawn / full, limit_name)] if drawn else []
  rows += [_bar(bar, full, [value for value, _ in ticks], unit, drawn) for bar in bars]
  return f'<div class="chart" role="group" aria-label="{escape(title)}">{"".join(rows)}{_axis(ticks)}</div>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
  """The legend of (CSS class, name) entries, in one line."""
  items = (f'<li><span class="key {name}"></span>{escape(text)}</li>' for name, text in entries)
  return f'<ul class="legend">{"".join(items)}</ul>'


def _bar(bar: Bar, full: float, ticks: Sequence[float], unit: str, limit: float | None) -> str:
  """Label, bar and text: three cells of the chart's grid. A reason takes the place of the last two."""
  label = f'<div class="label"><b>{escape(bar.label)}</b>{_small(bar.detail)}</div>'
  if bar.reason is not None:
    return f'{label}<div class="reason">{escape(bar.reason)}</div>'
  behind = [_line("grid", value / full) for value in ticks]
  if limit:
    behind.insert(0, f'<rect class="beyond" x="{_share(limit / full)}" width="100%" height="100%"/>')
    behind.append(_line("limit", limit / full))
  shapes, left = [], 0.0
  for part in (*bar.parts, *([bar.ghost] if bar.ghost else [])):
    if part.value > 0:
      title = f"<title>{escape(f'{part.title}: {amount(part.value, unit)}')}</title>"
      where = f'x="{_share(left / full)}" width="{_share(part.value / full)}" y="{-THICK / 2:g}" height="{THICK}"'
      shapes.append(f'<rect class="{part.name}" {where}>{title}</rect>')
      left += part.value
  if bar.whisker:
    low, high = (_share(value / full) for value in bar.whisker)
    shapes.append(f'<line class="whisker" x1="{low}" x2="{high}"/>')
    shapes += [_line("whisker", value / full, "-5", "5") for value in bar.whisker]
  if bar.tick is not None:
    shapes.append(_line("tick", bar.tick / full, f"{-THICK / 2 - 4:g}", f"{THICK / 2 + 4:g}"))
  spoken = "; ".join(f"{part.title} {amount(part.value, unit)}" for part in bar.parts) or "nothing"
  # The inner picture starts at half the height of the cell, which is that of the label.
  inner = f'<svg class="bar" y="50%">{"".join(shapes)}</svg>'
  picture = f'<svg role="img" aria-label="{escape(spoken)}">{"".join(behind)}{inner}</svg>'
  text = f'<div class="value{" bad" * bar.warning}">{escape(bar.text)}{_small(bar.note)}</div>'
  return f'{label}<div class="plot">{picture}</div>{text}'


def _small(text: str) -> str:
  """A second line in small type."""
  return f"<small>{escape(text)}</small>" if text else ""


def _share(value: float) -> str:
  """A share of the width as a percentage."""
  return f"{100 * value:.4f}%"


def _line(name: str, at: float, top: str = "0", bottom: str = "100%") -> str:
  """A vertical line at a share of the width."""
  return f'<line class="{name}" x1="{_share(at)}" x2="{_share(at)}" y1="{top}" y2="{bottom}"/>'


def _head(at: float, name: str) -> str:
  """The name of the limit, above its line and on the side that has room."""
  anchor, shift = ("end", -5) if at > 0.5 else ("start", 5)
  text = f'<text class="limit" x="{_share(at)}" dx="{shift}" y="13" text-anchor="{anchor}">{escape(name)}</text>'
  return f'<div></div><div class="plot head"><svg aria-hidden="true">{text}{_line("limit", at)}</svg></div><div></div>'


def _axis(ticks: Sequence[tuple[float, str]]) -> str:
  """The scale below the bars; the texts at its ends may extend beyond the picture."""
  full = ticks[-1][0]
  texts = (f'<text x="{_share(value / full)}" y="14" text-anchor="middle">{name}</text>' for value, name in ticks)
  return f'<div></div><div class="plot scale"><svg aria-hidden="true">{"".join(texts)}</svg></div><div></div>'


def _ticks(most: float, unit: str) -> list[tuple[float, str]]:
  """(value, text) of round values, from zero to the first that is not below `most`."""
  most = most if most > 0 and math.isfinite(most) else 1.0
  size, name = next(((s, n) for s, n in reversed(UNITS[unit]) if most >= s), UNITS[unit][0])
  rough = most / size / 5
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
  count = max(math.ceil(most / size / step - 1e-9), 1)
  return [(i * step * size, f"{i * step:.4g} {name}" if i else "0") for i in range(count + 1)]


def amount(value: float, unit: str) -> str:
  """A value with its unit."""
  return human_bytes(value) if unit == "bytes" else seconds_text(value)
