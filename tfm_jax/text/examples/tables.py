"""Tables of labelled texts: .tsv (tabs, no quotes, as in GLUE), .csv, JSON lines (each also compressed), and TFDS."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.corpora.files import decoded, read_lines
from tfm_jax.text.corpora.opening import JSON_LINES, ending
from tfm_jax.text.corpora.text_files import SURROGATES
from tfm_jax.text.tfds import TfdsSplit

Table = Path | TfdsSplit
"""What `read_table` reads."""

_UNLABELLED = "without a label, left out"  # as it is counted


class Column(NamedTuple):
  """One column that a task reads.

  Attributes:
    setting: of the configuration: a name in the header (a key in JSON lines), or a number from 1; empty: guessed.
    names: usual names, of which the first that the header has is taken if nothing is set.
    required: whether every file must have it. A file without it has None there.
  """

  setting: str = ""
  names: tuple[str, ...] = ()
  required: bool = True


class Row(NamedTuple):
  """One row: where it stands, and its values by the task's names of columns (None: the file has no such column).

  Attributes:
    classes: all names that the column `label` may have, by number, where the data set declares them.
  """

  file: Table
  line: int
  values: dict[str, Any]
  classes: tuple[str, ...] = ()

  @property
  def place(self) -> str:
    """For messages."""
    return place_of(self.file, self.line)


def place_of(table: Table, line: int) -> str:
  """Where a row stands, for messages."""
  return f"{table}, {'example' if isinstance(table, TfdsSplit) else 'line'} {line}"


def only_files(tables: Sequence[Table], task: str) -> list[Path]:
  """The same, for a task that reads files of its own form. Raises UserError for a split of TFDS."""
  files = [table for table in tables if isinstance(table, Path)]
  if len(files) < len(tables):
    raise UserError(f"task.name={task} reads files, and data.source=tfds is not for it: name files by data.path")
  return files


def read_table(
  files: Sequence[Table], columns: Mapping[str, Column], errors: str = "raise", counts: Counts | None = None
) -> list[Row]:
  """The rows of tables. Blank rows are left out and counted as `blank`.

  Values are texts; in JSON lines and TFDS, whatever the objects hold.

  Args:
    files: .jsonl and .ndjson are JSON lines, .csv has commas, quotes and perhaps line ends in cells; anything else has
      tabs between cells, and no quotes. Of a split of TFDS, examples whose required class is unknown are left out, and
      counted as `without a label, left out`.
    columns: name -> where it is found. With a header, settings and usual names are looked up in it; numbers count
      columns. The first row is a header if it has one of the names.
    errors: what happens to bytes that are not UTF-8, see `data.errors`.
    counts: `blank` and those of `decoded` are added.

  Raises:
    UserError: an unreadable or empty file, a missing column, a row with fewer or more cells than the first, a line that
      is no JSON object. File and line are named.
  """
  counts = {} if counts is None else counts
  counts.setdefault("blank", 0)
  rows: list[Row] = []
  for file in files:
    before = len(rows)
    if isinstance(file, TfdsSplit):
      rows.extend(_tfds_rows(file, columns, errors, counts))
    else:
      lines = decoded(read_lines(file), errors, counts)
      read = _json_rows if ending(file) in JSON_LINES else _rows
      rows.extend(read(file, lines, columns, counts))
    if len(rows) == before:
      raise UserError(f"{file} has no rows{' with a label' if isinstance(file, TfdsSplit) else ''}")
  return rows


def _rows(file: Path, lines: Iterator[str], columns: Mapping[str, Column], counts: Counts) -> Iterator[Row]:
  cells = _csv(file, lines) if ending(file) == ".csv" else _tabs(lines)
  number, first = next(cells, (1, []))
  if not any(cell.strip() for cell in first):
    raise UserError(f"{file} is empty, or its first line is: expected a table of {' and '.join(columns)}")
  places, has_header = _places(file, [cell.strip() for cell in first], columns)
  if not has_header:
    yield Row(file, number, _values(first, places, columns))
  for number, row in cells:
    if not any(cell.strip() for cell in row):
      counts["blank"] += 1
    elif len(row) != len(first):
      raise UserError(f"{file}, line {number}: {len(row)} columns, where the first line has {len(first)}")
    else:
      yield Row(file, number, _values(row, places, columns))


def _values(row: Sequence[str], places: Mapping[str, int], columns: Mapping[str, Column]) -> dict[str, Any]:
  return {name: row[places[name]] if name in places else None for name in columns}


def _tabs(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
  for number, line in enumerate(lines, 1):
    yield number, line.removesuffix("\n").split("\t")


def _csv(file: Path, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
  reader = csv.reader(lines, strict=True)
  begin = 1
  try:
    for row in reader:
      yield begin, row
      begin = reader.line_num + 1
  except csv.Error as error:
    raise UserError(
      f"{file}, line {reader.line_num}: not a table with commas ({error}); is a quote not closed?"
    ) from error


def _places(file: Path, header: list[str], columns: Mapping[str, Column]) -> tuple[dict[str, int], bool]:
  """The place (from 0) of each column that the file has, and whether the first row is a header."""
  places: dict[str, int] = {}
  has_header = False
  for name, column in columns.items():
    wanted = column.setting
    if wanted.isdecimal() and 1 <= int(wanted) <= len(header):
      places[name] = int(wanted) - 1
    elif wanted and wanted in header:
      places[name], has_header = header.index(wanted), True
    elif not wanted and (usual := next((usual for usual in column.names if usual in header), None)):
      places[name], has_header = header.index(usual), True
    elif column.required:
      raise UserError(_no_column(str(file), name, column, header))
  if len({*places.values()}) < len(places):
    raise UserError(f"{file}: {' and '.join(f'task.{name}' for name in places)} name the same column twice")
  # Columns by number: a row that names one of them as usual is a header nonetheless.
  return places, has_header or any(header[place] in columns[name].names for name, place in places.items())


def _no_column(place: str, name: str, column: Column, header: Sequence[str]) -> str:
  has = f"it has {listed(header)}"
  if column.setting:
    return f"task.{name}={column.setting}: {place} has no such column; {has}"
  usual = f"{place} has no column {' or '.join(column.names)}"
  return f"{usual}: set task.{name} to a column's name or number; {has}"


def _json_rows(file: Path, lines: Iterator[str], columns: Mapping[str, Column], counts: Counts) -> Iterator[Row]:
  for number, line in enumerate(lines, 1):
    if line.isspace() or not line:
      counts["blank"] += 1
      continue
    values: dict[str, Any] = {}
    found = json_object(file, number, line)
    for name, column in columns.items():
      key = _key(f"{file}, line {number}", name, column, found)
      values[name] = None if key is None else found[key]
    yield Row(file, number, values)


def _key(place: str, name: str, column: Column, keys: Iterable[str]) -> str | None:
  """Which of the keys a column stands for; None if it is not there, and not required. Raises UserError."""
  wanted = [column.setting] if column.setting else column.names
  key = next((key for key in wanted if key in keys), None)
  if key is None and column.required:
    raise UserError(_no_column(place, name, column, list(keys)))
  return key


def _tfds_rows(split: TfdsSplit, columns: Mapping[str, Column], errors: str, counts: Counts) -> Iterator[Row]:
  fields = split.data.fields
  keys = {name: key for name, column in columns.items() if (key := _key(str(split.data), name, column, fields))}
  classes = fields[keys["label"]].classes if "label" in keys else ()
  required = [name for name, column in columns.items() if column.required]
  counts.setdefault(_UNLABELLED, 0)
  for number, example in enumerate(split.examples([*keys.values()], errors, counts), 1):
    values = dict.fromkeys(columns) | dict(zip(keys, example, strict=True))
    if any(values[name] is None for name in required):
      counts[_UNLABELLED] += 1
    else:
      yield Row(split, number, values, classes)


def check_text(text: str, place: str) -> str:
  """The text. Raises UserError for halves of characters, which JSON can spell and UTF-8 cannot."""
  if SURROGATES.search(text):
    raise UserError(f"{place}: half of a character (\\ud800 to \\udfff); mend the file")
  return text


def json_object(file: Path, number: int, line: str) -> dict[str, Any]:
  """The object on a line of JSON lines. Raises UserError naming file and line."""
  try:
    value = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"{file}, line {number}: not a JSON object ({error}); JSON lines have one object per line"
    ) from error
  if not isinstance(value, dict):
    raise UserError(f"{file}, line {number}: not a JSON object; JSON lines have one object per line")
  return value


def listed(names: Sequence[str]) -> str:
  """The first names, for a message."""
  first = [name if len(name) <= 40 else f"{name[:40]}..." for name in names[:10]]
  return ", ".join(first) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")
