"""Draws which device holds which piece of a parameter: the parameter beside the mesh, with matching colours."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from html import escape

from tfm_jax.compare.report.columns import mesh_text, percent, split_axes
from tfm_jax.compare.results import Piece, ShardMap, StrategyResult

SIDE = 236  # pixels: the width of both pictures
MARGIN_LEFT, MARGIN_TOP = 22, 20  # for the names of axes
LETTER, LINE = 6.3, 13  # pixels: width of a letter, height of a line
TALL = 190  # pixels: the largest height of both pictures

Key = tuple[tuple[int, int], ...]  # a piece: start and stop along each drawn axis


@dataclasses.dataclass(frozen=True)
class _View:
  """What is drawn of a shard map.

  Attributes:
    map: the shard map.
    drawn: the array axes in the picture, at most two; of the others the first slice is drawn.
    behind: the array axes that are split and not drawn.
  """

  map: ShardMap
  drawn: tuple[int, ...]
  behind: tuple[int, ...]

  def key(self, piece: Piece) -> Key:
    """The drawn part of a piece."""
    return tuple((piece.start[axis], piece.stop[axis]) for axis in self.drawn)

  def in_slice(self, piece: Piece) -> bool:
    """Whether the piece is in the slice that is drawn."""
    return all(piece.start[axis] == 0 for axis in self.behind)

  def name(self, axis: int) -> str:
    """The logical name of an array axis."""
    return self.map.axes[axis] or f"axis {axis}"

  def title(self, axis: int) -> str:
    """Name and length of an array axis, and the mesh axes that split it: "embed 768 over data"."""
    over = f" over {self.map.spec[axis]}" if self.map.spec[axis] else ""
    return f"{self.name(axis)} {self.map.shape[axis]}{over}"


def picture(result: StrategyResult, results: Sequence[StrategyResult]) -> str:
  """The card of one strategy; "" if it has no shard map.

  Draws the axes that the strategy splits; if these are fewer than two, then the axes that the other strategies of
  `results` split, then the longest.
  """
  shard_map = result.shard_map
  if shard_map is None:
    return ""
  split = _split_array_axes(shard_map)
  others = [axis for other in results if other.shard_map for axis in _split_array_axes(other.shard_map)]
  order = sorted(range(len(shard_map.shape)), key=lambda i: (i not in split, -others.count(i), -shard_map.shape[i]))
  drawn = tuple(sorted(order[:2]))
  view = _View(shard_map, drawn, tuple(axis for axis in split if axis not in drawn))
  colours = _colours(view)
  return (
    f'<figure class="card"><figcaption><b>{escape(result.strategy)}</b> {escape(mesh_text(result))}</figcaption>'
    f'<div class="pair">{_parameter(view, colours)}{_mesh(result, view, colours)}</div>'
    f"<p>{escape(_caption(view))}</p></figure>"
  )


def compress(devices: Iterable[int]) -> str:
  """Device numbers as text: "0-3, 8-11" for ranges of three or more, "0, 4, ..., 28" for a regular stride."""
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


def _split_array_axes(shard_map: ShardMap) -> list[int]:
  """The array axes along which some device holds less than the whole."""
  return [i for i, n in enumerate(shard_map.shape) if any(p.stop[i] - p.start[i] < n for p in shard_map.pieces)]


def _colours(view: _View) -> dict[Key, str]:
  """A colour per piece: the hue follows the axis that is split most, the lightness the other one."""
  keys = sorted({view.key(piece) for piece in view.map.pieces})
  starts = [sorted({key[i] for key in keys}) for i in range(len(view.drawn))]
  order = sorted(range(len(starts)), key=lambda i: -len(starts[i]))
  colours = {}
  for key in keys:
    hue, light = ([starts[i].index(key[i]) / len(starts[i]) for i in order] + [0.0, 0.0])[:2]
    colours[key] = f"--h:{(210 + 330 * hue) % 360:.0f};--l:{light:.2f}"
  return colours


def _parameter(view: _View, colours: dict[Key, str]) -> str:
  """The parameter as a rectangle of pieces, each labelled with the devices that hold it where the text fits."""
  shape = [view.map.shape[axis] for axis in view.drawn]
  high, wide = [1, 1, *shape][-2:]
  height = min(max(SIDE * high / wide, 120), TALL) if len(shape) == 2 else 48
  holders: dict[Key, list[int]] = {}
  for piece in view.map.pieces:
    if view.in_slice(piece):
      holders.setdefault(view.key(piece), []).append(piece.device)
  elements = []
  for key, devices in sorted(holders.items()):
    (top, bottom), (left, right) = [(0, 1), (0, 1), *key][-2:]
    x, w = MARGIN_LEFT + SIDE * left / wide, SIDE * (right - left) / wide
    y, h = MARGIN_TOP + height * top / high, height * (bottom - top) / high
    numbers = compress(devices)
    part = ", ".join(f"{view.name(axis)} {a}-{b - 1}" for axis, (a, b) in zip(view.drawn, key, strict=True))
    title = f"{part}: device {numbers}" if part else f"device {numbers}"
    elements.append(_box("piece", colours[key], (x, y, w, h), title))
    elements.append(_fitting(numbers, x, y, w, h))
  names = [view.title(axis) for axis in view.drawn] or ["scalar"]
  elements.append(_across(names[-1]))
  if len(names) == 2:
    elements.append(_down(names[0], height))
  return _svg(MARGIN_TOP + height, f"{view.map.parameter} in {len(holders)} pieces", elements)


def _mesh(result: StrategyResult, view: _View, colours: dict[Key, str]) -> str:
  """The devices by mesh coordinates: the longest mesh axis goes across, folded into lines if it is very long."""
  sizes = split_axes(result)
  long = max(sizes, key=lambda axis: sizes[axis], default="")
  rest = [axis for axis in sizes if axis != long]
  across, down = sizes.get(long, 1), math.prod(sizes[axis] for axis in rest)
  lines = [d for d in range(1, across + 1) if across % d == 0 and d >= min(across, 8)]
  line = next((d for d in lines if d >= 0.9 * down * across / d), across)
  bands, gap = across // line, 5 if line < across and down > 1 else 0
  width = min(SIDE / line, 40)
  height = min(width, (TALL - (bands - 1) * gap) / (bands * down))
  numbered = width >= LETTER * len(str(len(view.map.pieces) - 1)) + 6 and height >= LINE
  elements = []
  for piece in view.map.pieces:
    at = piece.coordinates
    index = 0
    for axis in rest:
      index = index * sizes[axis] + at.get(axis, 0)
    band, column = divmod(at.get(long, 0), line)
    x, y = MARGIN_LEFT + column * width, MARGIN_TOP + (band * down + index) * height + band * gap
    place = ", ".join(f"{axis} {at.get(axis, 0)}" for axis in sizes)
    name = "piece" if view.in_slice(piece) else "piece gone"
    elements.append(_box(name, colours[view.key(piece)], (x, y, width, height), f"device {piece.device}: {place}"))
    if numbered:
      elements.append(_fitting(str(piece.device), x, y, width, height))
  folded = f", {line} per line" if line < across else ""
  elements.append(_across(f"{long} {across}{folded}" if long else "one device"))
  total = bands * (down * height + gap) - gap
  if rest:
    elements.append(_down(" x ".join(f"{axis} {sizes[axis]}" for axis in rest), total))
  return _svg(MARGIN_TOP + total, f"mesh {mesh_text(result)}", elements)


def _caption(view: _View) -> str:
  """Number of pieces and copies, the share of one device, and what the picture leaves out."""
  shard_map = view.map
  distinct = {(piece.start, piece.stop) for piece in shard_map.pieces}
  copies = len(shard_map.pieces) // max(len(distinct), 1)
  if len(distinct) == 1:
    text = "Not split: every device holds the whole parameter."
  else:
    first = shard_map.pieces[0]
    extents = [b - a for a, b in zip(first.start, first.stop, strict=True)]
    share = percent(math.prod(extents) / math.prod(shard_map.shape))
    text = f"{len(distinct)} pieces, each on {copies} device{'s' * (copies > 1)}. "
    text += f"One piece is {' x '.join(map(str, extents))}, {share} of the parameter."
  if view.behind:
    names = " and ".join(view.title(axis) for axis in view.behind)
    text += f" Also split along {names}: the first slice is drawn, and the devices of the others are pale."
  return text


def _box(name: str, colour: str, box: tuple[float, float, float, float], title: str) -> str:
  """A coloured rectangle; `box` is (x, y, width, height) in pixels. Small ones have thinner lines, or none."""
  name += " bare" if min(box[2:]) < 3 else " fine" if min(box[2:]) < 12 else ""
  x, y, w, h = (f"{value:.2f}" for value in box)
  where = f'x="{x}" y="{y}" width="{w}" height="{h}"'
  return f'<rect class="{name}" style="{colour}" {where}><title>{escape(title)}</title></rect>'


def _fitting(text: str, x: float, y: float, w: float, h: float) -> str:
  """Text in the middle of a box, horizontal or vertical; nothing if it does not fit."""
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


def _svg(height: float, label: str, elements: Sequence[str]) -> str:
  """A picture of fixed width; `label` is what a screen reader says."""
  size = f'width="{MARGIN_LEFT + SIDE + 2}" height="{height + 2:.0f}"'
  return f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(elements)}</svg>'
