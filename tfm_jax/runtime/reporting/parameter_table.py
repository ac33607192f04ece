"""The table of parameters that a run logs when it starts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tfm_jax.runtime.reporting.units import human_bytes, human_count

MOST_LINES = 24  # with more parameters than that, those with a common path share a line


@dataclass(frozen=True)
class ParameterRow:
  """One parameter.

  Attributes:
    path: such as "blocks/attn/wq".
    shape: of the whole array.
    axes: logical axes, one per dimension.
    shard: the shape of the part that one device holds.
    bytes: of that part.
  """

  path: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  shard: tuple[int, ...]
  bytes: int


def parameter_table(rows: Iterable[ParameterRow]) -> str:
  """The table as text, of about a screen at most; bytes are those on one device."""
  rows = list(rows)
  cells: list[tuple[str, ...]] = [("parameter", "elements", "shape", "axes", "shard", "bytes")]
  cells += [_line(prefix, group) for prefix, group in _groups(rows).items()]
  cells.append(("total", *_sums(rows)))
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
  rule = "-" * max(map(len, lines))
  return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _groups(rows: Sequence[ParameterRow]) -> dict[str, list[ParameterRow]]:
  """Path -> its parameter; if these are too many, the beginning of a path -> the parameters below it."""
  depth = max((row.path.count("/") for row in rows), default=0) + 1
  while True:
    groups: dict[str, list[ParameterRow]] = {}
    for row in rows:
      groups.setdefault("/".join(row.path.split("/")[:depth]), []).append(row)
    if len(groups) <= MOST_LINES or depth == 1:
      return groups
    depth -= 1


def _line(prefix: str, group: Sequence[ParameterRow]) -> tuple[str, ...]:
  """The cells of one parameter, or the sums of several."""
  if len(group) > 1:
    return f"{prefix}/* ({len(group)})", *_sums(group)
  row = group[0]
  axes = ", ".join(axis or "-" for axis in row.axes)
  elements = human_count(math.prod(row.shape))
  return row.path, elements, _times(row.shape), axes, _times(row.shard), human_bytes(row.bytes)


def _sums(rows: Sequence[ParameterRow]) -> tuple[str, ...]:
  """The cells of several parameters behind their name."""
  elements = human_count(sum(math.prod(row.shape) for row in rows))
  return elements, "", "", "", human_bytes(sum(row.bytes for row in rows))


def _times(shape: tuple[int, ...]) -> str:
  """A shape as "12 x 768"."""
  return " x ".join(map(str, shape)) or "scalar"
