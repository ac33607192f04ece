"""A page with curves: tokens a second and chip over the number of chips, compiled and extrapolated."""

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol

from tfm_jax.compare.style import STYLE
from tfm_jax.training.tracking import human_count

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 1000, 420, 80, 50, 20, 170


class Point(Protocol):
  """What is drawn of a forecast."""

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


def curve_page(title: str, facts: Mapping[str, Any], points: Sequence[Point]) -> str:
  """One HTML file that needs no other: the curves, and all points as a table."""
  shown = [p for p in points if p.tokens_per_second_per_chip]
  rows = "".join(
    f"<tr><td>{escape(p.strategy)}</td><td>{p.chips}</td><td>{f'{p.seconds:.3f}' if p.seconds else '-'}</td>"
    f"<td>{human_count(p.tokens_per_second_per_chip) if p.tokens_per_second_per_chip else '-'}</td>"
    f"<td>{'extrapolated' if p.extrapolated else escape(p.reason) if p.reason else 'compiled'}</td></tr>"
    for p in sorted(points, key=lambda p: (p.strategy, p.chips))
  )
  said = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items())
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    f"<title>{escape(title)}</title><style>{STYLE} .curve {{ width: 100%; height: auto; }} .curve text "
    "{ font-size: 13px; fill: var(--soft); } td { padding: 2px 14px; }</style></head><body><main>"
    f"<h1>{escape(title)}</h1><p>{escape(said)}</p><section><h2>Tokens a second and chip</h2>"
    "<p>The batch grows with the chips, so a level curve is perfect scaling. Filled: compiled by the TPU compiler. "
    f"Hollow and dashed: extrapolated.</p>{_svg(shown) if shown else '<p>No strategy fits.</p>'}</section>"
    "<section><h2>All points</h2><table><tr><th>strategy</th><th>chips</th><th>s a step</th><th>tokens/s a chip</th>"
    f"<th></th></tr>{rows}</table></section></main></body></html>\n"
  )


def _svg(points: Sequence[Point]) -> str:
  chips = sorted({p.chips for p in points})
  top = max(p.tokens_per_second_per_chip or 0.0 for p in points) * 1.1
  low, high = math.log2(chips[0]), max(math.log2(chips[-1]), math.log2(chips[0]) + 1)

  def x(n: float) -> float:
    return LEFT + (math.log2(n) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

  def y(v: float) -> float:
    return HEIGHT - BOTTOM - v / top * (HEIGHT - BOTTOM - TOP)

  drawn = [
    f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="var(--grid)"/>'
    f'<text x="{LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{human_count(v)}</text>'
    for v in (top * k / 5 for k in range(6))
  ]
  drawn += [f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{n}</text>' for n in chips]
  drawn.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">chips</text>')
  heights: list[float] = []
  for k, strategy in enumerate(dict.fromkeys(p.strategy for p in points)):
    mine = sorted((p for p in points if p.strategy == strategy), key=lambda p: p.chips)
    colour = f"var(--c{k % 6 + 1})"
    for a, b in itertools.pairwise(mine):
      dash = ' stroke-dasharray="6 5"' if b.extrapolated else ""
      ends = [(x(p.chips), y(p.tokens_per_second_per_chip or 0.0)) for p in (a, b)]
      drawn.append(
        f'<line x1="{ends[0][0]:.1f}" y1="{ends[0][1]:.1f}" x2="{ends[1][0]:.1f}" y2="{ends[1][1]:.1f}" '
        f'stroke="{colour}" stroke-width="2.5"{dash}/>'
      )
    for p in mine:
      fill = "var(--card)" if p.extrapolated else colour
      place = f'cx="{x(p.chips):.1f}" cy="{y(p.tokens_per_second_per_chip or 0.0):.1f}"'
      drawn.append(f'<circle {place} r="5" fill="{fill}" stroke="{colour}" stroke-width="2.5"/>')
    end = y(mine[-1].tokens_per_second_per_chip or 0.0)
    while any(abs(end - other) < 16 for other in heights):  # names of curves that end together stand below each other
      end += 16
    heights.append(end)
    drawn.append(f'<text x="{x(mine[-1].chips) + 12:.1f}" y="{end + 4:.1f}">{escape(strategy)}</text>')
  return f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(drawn)}</svg>'
