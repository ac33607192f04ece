"""The report of a comparison: a table for the terminal, and a folder with JSON, CSV and an HTML page."""

import contextlib
import csv
import io
import itertools
import json
import math
import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tfm_jax.compare.report.columns import (
  NO_REASON,
  STATUS,
  communication_axes,
  explanations,
  figures,
  findings,
  minimum_over,
  summary_columns,
)
from tfm_jax.compare.report.page import html_page
from tfm_jax.compare.results import OK, Collective, Comparison, to_json
from tfm_jax.errors import UserError
from tfm_jax.runtime.reporting.units import human_bytes, human_count

JSON_WIDTH = 180  # characters per line of comparison.json, enough for one piece of a shard map
CELL_WIDTH = 22  # characters per line of a cell of the terminal's table
TEXT_WIDTH = 118  # characters per line of the terminal's sentences


def write_report(comparison: Comparison, folder: Path) -> None:
  """Writes comparison.json, comparison.csv and report.html.

  The JSON file has everything (numbers that are not finite become null). The CSV file has one row per strategy, with
  units in the names of its columns (bytes and seconds, per device and step). The page is self-contained.

  Args:
    comparison: what to report.
    folder: created if missing. Each file of an earlier report is replaced in one step, when the new one is complete.

  Raises:
    UserError: the folder cannot be written to.
  """
  folder = Path(folder)
  # All texts exist before the first file is written: an error in one leaves the folder as it was.
  texts = {
    "comparison.json": _json(_finite(to_json(comparison))) + "\n",
    "comparison.csv": _csv([figures(comparison, result) for result in comparison.strategies]),
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
  """The comparison as plain text: summary, reasons, findings, explanations, notes, and the collectives."""
  columns = summary_columns(comparison)
  cells = [[column.text(result) for column in columns] for result in comparison.strategies]
  summary = _table([column.title for column in columns], cells, [column.number for column in columns])
  reasons = [
    f"{result.strategy}: {STATUS[result.status]}: {result.reason or NO_REASON}"
    for result in comparison.strategies
    if result.status != OK
  ]
  place = comparison.devices + (f" ({comparison.topology})" if comparison.topology else "")
  title = f"{comparison.config} on {place}: {comparison.kind}, batch {comparison.batch_size} rows"
  tokens, parameters = human_count(comparison.tokens_per_step), human_count(comparison.parameters)
  title += f" ({tokens} tokens), {parameters} parameters, remat {comparison.remat}"
  best = [f"{one.title}: {one.names}, {one.amount} ({one.contrast})." for one in findings(comparison)]
  parts = [
    title,
    summary,
    "\n".join(reasons),
    "\n".join(best),
    _wrapped(explanations(comparison)),
    _wrapped(f"Note: {note}" for note in comparison.notes),
    _collectives(comparison),
  ]
  return "\n\n".join(part for part in parts if part)


def _wrapped(sentences: Iterable[str]) -> str:
  """One paragraph per sentence, with the later lines of each indented."""
  return "\n".join(textwrap.fill(one, TEXT_WIDTH, subsequent_indent="  ", break_on_hyphens=False) for one in sentences)


def _collectives(comparison: Comparison) -> str:
  """The collectives by mesh axes and kind; a minimum is shown with the first of the axes that it belongs to."""
  rows = []
  for result in comparison.strategies:
    name, minimum = result.strategy, minimum_over(result)
    for axes in communication_axes(result):
      over, (together, least) = axes, minimum.get(axes, ((), None))
      kinds = sorted((one for one in result.collectives if one.axes == axes), key=lambda one: -one.bytes)
      for one in kinds or [Collective("none", axes, 0, 0)]:
        size = "" if least is None else human_bytes(least) + ", together" * (len(together) > 1)
        rows.append([name, over, one.kind, str(one.count), human_bytes(one.bytes), size])
        name, over, least = "", "", None
  titles = ["strategy", "over", "collective", "per step", "sent", "minimum"]
  columns = len(titles) if any(result.minimum_bytes for result in comparison.strategies) else len(titles) - 1
  numbers = [False, False, False, True, True, True]
  return _table(titles[:columns], [row[:columns] for row in rows], numbers[:columns]) if rows else ""


def _table(titles: Sequence[str], cells: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
  """Aligned columns, numbers to the right. Titles have one or two lines; long text is wrapped within its column."""
  split = [("", title) if "\n" not in title else tuple(title.split("\n")) for title in titles]
  head = [list(line) for line in zip(*split, strict=True) if any(line)]
  body = []
  for row in cells:
    wrapped = [[cell] if number else textwrap.wrap(cell, CELL_WIDTH) for cell, number in zip(row, numbers, strict=True)]
    body += [list(line) for line in itertools.zip_longest(*wrapped, fillvalue="")]
  widths = [max(map(len, column)) for column in zip(*head, *body, strict=True)]

  def line(row: Sequence[str]) -> str:
    columns = zip(row, widths, numbers, strict=True)
    return "  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in columns).rstrip()

  rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
  return "\n".join([*map(line, head), rule, *map(line, body)])


def _csv(rows: Sequence[dict[str, Any]]) -> str:
  """Comma-separated values; None is an empty cell."""
  file = io.StringIO()
  writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def _json(value: Any, indent: int = 0, used: int = 0) -> str:
  """JSON that puts on one line what fits it: a shard map of 512 devices has 512 lines, not 10,000.

  `used`: characters already on the line.
  """
  short = json.dumps(value, allow_nan=False)
  if used + len(short) < JSON_WIDTH or not isinstance(value, dict | list) or not value:
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
  """The value with None in place of NaN and infinity, which JSON does not have."""
  if isinstance(value, dict):
    return {key: _finite(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(one) for one in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
