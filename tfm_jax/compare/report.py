"""The report of a comparison: a table for the terminal, and a folder of JSON, CSV and a page to look at."""

import contextlib
import csv
import io
import itertools
import json
import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfm_jax.compare.columns import (
  NO_REASON,
  STATUS,
  communication_axes,
  explanations,
  figures,
  findings,
  minimum_over,
  summary_columns,
)
from tfm_jax.compare.page import html_page
from tfm_jax.compare.record import OK, Collective, Comparison, to_json
from tfm_jax.errors import UserError
from tfm_jax.training.tracking import human_bytes, human_count

WIDTH = 180  # letters in a line of comparison.json: a piece of a layout fits one
WRAP = 22  # letters in a line of a cell of the terminal's table


def write_report(comparison: Comparison, folder: Path) -> None:
  """Writes comparison.json, comparison.csv and report.html; each takes its name when it is whole.

  The JSON file is the record (numbers that are not finite become null); the CSV file has a row for each strategy,
  flat, with units in the names of its columns (bytes and seconds, of one device and one step); the page needs no
  other file.

  Args:
    comparison: what to report.
    folder: is created if missing; files of these names are replaced.

  Raises:
    UserError: the folder cannot be written to.
  """
  folder = Path(folder)
  # All are made before the first is written: a fault in one leaves the folder as it was.
  texts = {
    "comparison.json": _json(_finite(to_json(comparison))) + "\n",
    "comparison.csv": _csv([figures(comparison, row) for row in comparison.strategies]),
    "report.html": html_page(comparison),
  }
  temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in texts}
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
      temporary[name].write_text(text, encoding="utf-8", newline="")
    for name in texts:
      os.replace(temporary[name], folder / name)
  except OSError as error:
    raise UserError(f"cannot write the report to {folder}: {error.strerror}") from error
  finally:
    for path in temporary.values():
      with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def terminal_table(comparison: Comparison) -> str:
  """The comparison as plain text: the summary, reasons, findings and notes, and the collectives of each strategy."""
  columns = summary_columns(comparison)
  cells = [[column.text(row) for column in columns] for row in comparison.strategies]
  summary = _table([column.title for column in columns], cells, [column.number for column in columns])
  reasons = [
    f"{row.strategy}: {STATUS[row.status]}: {row.reason or NO_REASON}"
    for row in comparison.strategies
    if row.status != OK
  ]
  place = comparison.devices + (f" ({comparison.topology})" if comparison.topology else "")
  title = f"{comparison.config} on {place}: {comparison.kind}, batch {comparison.batch_size} rows"
  tokens, parameters = human_count(comparison.tokens_per_step), human_count(comparison.parameters)
  title += f" ({tokens} tokens), {parameters} parameters, remat {comparison.remat}"
  found = [f"{one.title}: {one.names}, {one.amount} ({one.contrast})." for one in findings(comparison)]
  sentences = [*found, *(f"Note: {note}" for note in comparison.notes), *explanations(comparison)]
  parts = [title, summary, "\n".join(reasons), "\n".join(sentences), _collectives(comparison)]
  return "\n\n".join(part for part in parts if part)


def _collectives(comparison: Comparison) -> str:
  """Collectives by mesh axes and kind; the minimum stands beside the first of the axes that it belongs to."""
  cells = []
  for row in comparison.strategies:
    name, minimum = row.strategy, minimum_over(row)
    for axes in communication_axes(row):
      over, (together, least) = axes, minimum.get(axes, ((), None))
      here = sorted((one for one in row.collectives if one.axes == axes), key=lambda one: -one.bytes)
      for one in here or [Collective("none", axes, 0, 0)]:
        size = "" if least is None else human_bytes(least) + ", together" * (len(together) > 1)
        cells.append([name, over, one.kind, str(one.count), human_bytes(one.bytes), size])
        name, over, least = "", "", None
  titles = ["strategy", "over", "collective", "a step", "sent", "minimum"]
  used = len(titles) if any(row.minimum_bytes for row in comparison.strategies) else len(titles) - 1
  text = [False, False, False, True, True, True]
  return _table(titles[:used], [row[:used] for row in cells], text[:used]) if cells else ""


def _table(titles: Sequence[str], cells: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
  """Aligned columns; numbers to the right; titles have one or two lines, and text goes on below where it is long."""
  split = [("", title) if "\n" not in title else tuple(title.split("\n")) for title in titles]
  head = [list(line) for line in zip(*split, strict=True) if any(line)]
  body = []
  for row in cells:
    wrapped = [[cell] if number else textwrap.wrap(cell, WRAP) for cell, number in zip(row, numbers, strict=True)]
    body += [list(line) for line in itertools.zip_longest(*wrapped, fillvalue="")]
  widths = [max(map(len, column)) for column in zip(*head, *body, strict=True)]

  def line(row: Sequence[str]) -> str:
    made = (
      cell.rjust(width) if number else cell.ljust(width)
      for cell, width, number in zip(row, widths, numbers, strict=True)
    )
    return "  ".join(made).rstrip()

  rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
  return "\n".join([*map(line, head), rule, *map(line, body)])


def _csv(rows: Sequence[dict[str, Any]]) -> str:
  """Comma-separated values; what is unknown is empty."""
  file = io.StringIO()
  writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def _json(value: Any, indent: int = 0, used: int = 0) -> str:
  """JSON in which what fits a line stands on one: a layout on 512 devices is 512 lines, not 10,000."""
  short = json.dumps(value, allow_nan=False)
  if used + len(short) < WIDTH or not isinstance(value, dict | list) or not value:
    return short
  inner = indent + 2
  if isinstance(value, dict):
    keys = {key: f"{json.dumps(key)}: " for key in value}
    lines = [start + _json(value[key], inner, inner + len(start)) for key, start in keys.items()]
  else:
    lines = [_json(one, inner, inner) for one in value]
  space, (left, right) = "\n" + " " * inner, "{}" if isinstance(value, dict) else "[]"
  return left + space + ("," + space).join(lines) + "\n" + " " * indent + right


def _finite(value: Any) -> Any:
  """The value with None for numbers that JSON does not have."""
  if isinstance(value, dict):
    return {key: _finite(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(one) for one in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
