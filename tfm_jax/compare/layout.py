"""A picture of which device holds which piece of a parameter: the parameter, cut, beside the mesh, coloured alike."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from html import escape

from tfm_jax.compare.columns import mesh_text, percent, split_axes
from tfm_jax.compare.record import Layout, Piece, Row

SIDE = 236  # pixels: the width of either picture
MARGIN_LEFT, MARGIN_TOP = 22, 20  # for the names of axes
LETTER, LINE = 6.3, 13  # pixels: width and height of a letter in a piece
TALL = 190  # pixels: the most height of either picture

Key = tuple[tuple[int, int], ...]  # start and stop along each axis shown


@dataclasses.dataclass(frozen=True)
class _View:
  """What the picture of a layout shows: at most two array axes, and of the others the first slice."""

  layout: Layout
  shown: tuple[int, ...]
  behind: tuple[int, ...]  # cut axes that are not shown

  def key(self, piece: Piece) -> Key:
    """What is seen of a piece."""
    return tuple((piece.start[axis], piece.stop[axis]) for axis in self.shown)

  def in_slice(self, piece: Piece) -> bool:
    """Whether the piece is in the slice that is shown."""
    return all(piece.start[axis] == 0 for axis in self.behind)

  def name(self, axis: int) -> str:
    """The logical name of an array axis."""
    return self.layout.axes[axis] or f"axis {axis}"

  def cut_name(self, axis: int) -> str:
    """Name and length of an array axis, and the mesh axes that cut it."""
    over = f" over {self.layout.spec[axis]}" if self.layout.spec[axis] else ""
    return f"{self.name(axis)} {self.layout.shape[axis]}{over}"


def picture(row: Row, rows: Sequence[Row]) -> str:
  """The card of one strategy that has a layout; "" of one that has none.

  The axes drawn are those that the strategy cuts, then those that the others of `rows` cut, then the longest.
  """
  layout = row.layout
  if layout is None:
    return ""
  here = _cut_axes(layout)
  others = [axis for other in rows if other.layout for axis in _cut_axes(other.layout)]
  best = sorted(range(len(layout.shape)), key=lambda i: (i not in here, -others.count(i), -layout.shape[i]))
  shown = tuple(sorted(best[:2]))
  view = _View(layout, shown, tuple(axis for axis in here if axis not in shown))
  colours = _colours(view)
  return (
    f'<figure class="card"><figcaption><b>{escape(row.strategy)}</b> {escape(mesh_text(row))}</figcaption>'
    f'<div class="pair">{_parameter(view, colours)}{_mesh(row, view, colours)}</div>'
    f"<p>{escape(_caption(view))}</p></figure>"
  )


def compress(devices: Iterable[int]) -> str:
  """Numbers as ranges: "0-3, 8-11"; two neighbours stay two numbers; a regular stride is "0, 4, ..., 28"."""
  numbers = sorted(devices)
  runs: list[list[int]] = []
  for number in numbers:
    if runs and number == runs[-1][-1] + 1:
      runs[-1].append(number)
    else:
      runs.append([number])
  steps = {b - a for a, b in itertools.pairwise(numbers)}
  if len(numbers) > 4 and len(steps) == 1 and steps != {1}:
    return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
  texts = (f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
  return ", ".join(texts)


def _cut_axes(layout: Layout) -> list[int]:
  """Array axes along which some device holds less than the whole."""
  return [i for i, n in enumerate(layout.shape) if any(p.stop[i] - p.start[i] < n for p in layout.pieces)]


def _colours(view: _View) -> dict[Key, str]:
  """A colour for each piece: the hue follows the axis with most cuts, the lightness the other one if it is cut."""
  keys = sorted({view.key(piece) for piece in view.layout.pieces})
  cuts = [sorted({key[i] for key in keys}) for i in range(len(view.shown))]
  order = sorted(range(len(cuts)), key=lambda i: -len(cuts[i]))
  made = {}
  for key in keys:
    hue, light = ([cuts[i].index(key[i]) / len(cuts[i]) for i in order] + [0.0, 0.0])[:2]
    made[key] = f"--h:{(210 + 330 * hue) % 360:.0f};--l:{light:.2f}"
  return made


def _parameter(view: _View, colours: dict[Key, str]) -> str:
  """The rectangle, cut; each piece with the devices that hold it, where they can be written."""
  shape = [view.layout.shape[axis] for axis in view.shown]
  high, wide = [1, 1, *shape][-2:]
  height = min(max(SIDE * high / wide, 120), TALL) if len(shape) == 2 else 48
  holders: dict[Key, list[int]] = {}
  for piece in view.layout.pieces:
    if view.in_slice(piece):
      holders.setdefault(view.key(piece), []).append(piece.device)
  drawn = []
  for key, devices in sorted(holders.items()):
    (top, bottom), (left, right) = [(0, 1), (0, 1), *key][-2:]
    x, w = MARGIN_LEFT + SIDE * left / wide, SIDE * (right - left) / wide
    y, h = MARGIN_TOP + height * top / high, height * (bottom - top) / high
    held = compress(devices)
    part = ", ".join(f"{view.name(axis)} {a}-{b - 1}" for axis, (a, b) in zip(view.shown, key, strict=True))
    drawn.append(_box("piece", colours[key], (x, y, w, h), f"{part}: device {held}" if part else f"device {held}"))
    drawn.append(_fitting(held, x, y, w, h))
  names = [view.cut_name(axis) for axis in view.shown] or ["scalar"]
  drawn.append(_across(names[-1]))
  if len(names) == 2:
    drawn.append(_down(names[0], height))
  return _svg(MARGIN_TOP + height, f"{view.layout.parameter} in {len(holders)} pieces", drawn)


def _mesh(row: Row, view: _View, colours: dict[Key, str]) -> str:
  """The devices by mesh coordinates: the longest mesh axis across, in several lines if it is very long."""
  sizes = split_axes(row)
  long = max(sizes, key=lambda axis: sizes[axis], default="")
  rest = [axis for axis in sizes if axis != long]
  across, down = sizes.get(long, 1), math.prod(sizes[axis] for axis in rest)
  lines = [d for d in range(1, across + 1) if across % d == 0 and d >= min(across, 8)]
  line = next((d for d in lines if d >= 0.9 * down * across / d), across)
  bands, gap = across // line, 5 if line < across and down > 1 else 0
  width = min(SIDE / line, 40)
  height = min(width, (TALL - (bands - 1) * gap) / (bands * down))
  numbered = width >= LETTER * len(str(len(view.layout.pieces) - 1)) + 6 and height >= LINE
  drawn = []
  for piece in view.layout.pieces:
    at = piece.coordinates
    index = 0
    for axis in rest:
      index = index * sizes[axis] + at.get(axis, 0)
    band, column = divmod(at.get(long, 0), line)
    x, y = MARGIN_LEFT + column * width, MARGIN_TOP + (band * down + index) * height + band * gap
    place = ", ".join(f"{axis} {at.get(axis, 0)}" for axis in sizes)
    name = "piece" if view.in_slice(piece) else "piece gone"
    drawn.append(_box(name, colours[view.key(piece)], (x, y, width, height), f"device {piece.device}: {place}"))
    if numbered:
      drawn.append(_fitting(str(piece.device), x, y, width, height))
  folded = f", {line} a line" if line < across else ""
  drawn.append(_across(f"{long} {across}{folded}" if long else "one device"))
  total = bands * (down * height + gap) - gap
  if rest:
    drawn.append(_down(" x ".join(f"{axis} {sizes[axis]}" for axis in rest), total))
  return _svg(MARGIN_TOP + total, f"mesh {mesh_text(row)}", drawn)


def _caption(view: _View) -> str:
  """How many pieces and copies there are, what a device holds, and what the picture leaves out."""
  layout = view.layout
  distinct = {(piece.start, piece.stop) for piece in layout.pieces}
  copies = len(layout.pieces) // max(len(distinct), 1)
  if len(distinct) == 1:
    text = "Not cut: every device holds all of it."
  else:
    first = layout.pieces[0]
    held = [b - a for a, b in zip(first.start, first.stop, strict=True)]
    share = percent(math.prod(held) / math.prod(layout.shape))
    text = f"{len(distinct)} pieces, each on {copies} device{'s' * (copies > 1)}: "
    text += f"one holds {' x '.join(map(str, held))}, {share} of it."
  if view.behind:
    names = " and ".join(view.cut_name(axis) for axis in view.behind)
    text += f" Also cut along {names}: the first slice is drawn, the devices of the others are pale."
  return text


def _box(name: str, colour: str, box: tuple[float, float, float, float], title: str) -> str:
  """A coloured rectangle: x, y, width and height in pixels. Lines around small ones would hide them."""
  name += " bare" if min(box[2:]) < 3 else " fine" if min(box[2:]) < 12 else ""
  x, y, w, h = (f"{value:.2f}" for value in box)
  where = f'x="{x}" y="{y}" width="{w}" height="{h}"'
  return f'<rect class="{name}" style="{colour}" {where}><title>{escape(title)}</title></rect>'


def _fitting(text: str, x: float, y: float, w: float, h: float) -> str:
  """Text in the middle of a box, upright or turned; nothing if it does not fit."""
  length = LETTER * len(text) + 6
  if length <= w and h >= LINE:
    turn = ""
  elif length <= h and w >= LINE:
    turn = " rotate(-90)"
  else:
    return ""
  middle = f"translate({x + w / 2:.2f} {y + h / 2:.2f})"
  return f'<text class="held" transform="{middle}{turn}" dy="0.35em" text-anchor="middle">{escape(text)}</text>'


def _across(name: str) -> str:
  """The name of the horizontal axis."""
  return f'<text class="axis" x="{MARGIN_LEFT}" y="13">{escape(name)}</text>'


def _down(name: str, height: float) -> str:
  """The name of the vertical axis."""
  at = f"translate(13 {MARGIN_TOP + height / 2:.1f}) rotate(-90)"
  return f'<text class="axis" transform="{at}" text-anchor="middle">{escape(name)}</text>'


def _svg(height: float, said: str, drawn: Sequence[str]) -> str:
  """A picture of fixed width."""
  size = f'width="{MARGIN_LEFT + SIDE + 2}" height="{height + 2:.0f}"'
  return f'<svg {size} role="img" aria-label="{escape(said)}">{"".join(drawn)}</svg>'
