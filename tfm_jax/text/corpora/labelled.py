"""The corpus of labelled texts: tables with one row per line and tabs between the columns, as in GLUE."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import LINE_COUNTS, Corpus, Counts, Document
from tfm_jax.text.corpora.files import check_split, content_fingerprint, counted, decoded, find_text_files, read_lines

# Usual names of the columns in the header of a table, for when the config names none.
_HEADERS = {"text": ("sentence", "text", "sentence1"), "pair": ("sentence2",), "label": ("label",)}


class Columns(NamedTuple):
  """The columns of text, second text and label: a name in the header or a number from 1; empty: guessed."""

  text: str = ""
  pair: str = ""
  label: str = ""


_GUESSED = Columns()


class _Row(NamedTuple):
  """One row of a table."""

  file: Path
  number: int  # of its line, from 1
  texts: Document
  label: str


def table_corpus(
  path: str, eval_path: str = "", eval_fraction: float = 0.1, columns: Columns = _GUESSED, errors: str = "raise"
) -> Corpus:
  """Rows of tables as documents of one text, or two, with a label. The classes are the labels of `path`, sorted.

  Without `eval_path`, rows are held out by a hash of their texts: tables are often sorted, and equal texts stay on the
  same side. Other arguments as in `text_corpus`.

  Raises:
    UserError: a missing, unreadable or empty file set, or a missing column; while reading, undecodable text, a row
      with fewer or more columns than the first line, and a label that is empty or, in `eval_path`, not a class.
  """
  check_split(eval_fraction, errors)
  files = find_text_files(path, "data.path", any_ending=True)
  eval_files = find_text_files(eval_path, "data.eval_path", any_ending=True) if eval_path else []
  classes = _classes(files, columns, errors)
  index = {name: i for i, name in enumerate(classes)}
  sides = len(next(_rows(files, columns, errors, {})).texts)

  def rows(part: str, counts: Counts) -> Iterator[_Row]:
    if part == "evaluation" and eval_files:
      yield from _rows(eval_files, columns, errors, counts)
    else:
      for row in _rows(files, columns, errors, counts):
        if eval_files or _held_out(row.texts, eval_fraction) == (part == "evaluation"):
          yield row

  def read(part: str, counts: Counts) -> Iterator[Document]:
    for row in rows(part, counts):
      if len(row.texts) != sides:
        raise UserError(f"{row.file} has {len(row.texts)} texts per row and {files[0]} has {sides}: set task.pair")
      yield row.texts

  def labels(part: str) -> Iterator[int]:
    for row in rows(part, {}):
      if row.label not in index:
        raise UserError(
          f"{row.file}, line {row.number}: the label {row.label!r} is not a class of {path}, whose classes are "
          f"{_list(classes)}"
        )
      yield index[row.label]

  settings = ["tsv", errors, *columns, "" if eval_files else eval_fraction]
  fingerprint = content_fingerprint(settings, [files, eval_files])
  labels_of_counts = {"blank": "blank rows", **LINE_COUNTS}
  by_hash = f"{eval_fraction:.1%} of the rows, by a hash of their text (data.eval_fraction)"
  return Corpus(
    name="tsv",
    description=f"{path}: {counted(files, 'table')}; documents are rows, classes {_list(classes)}",
    held_out=f"the {counted(eval_files, 'table')} of data.eval_path" if eval_files else by_hash,
    fingerprint=fingerprint,
    read=read,
    sides=sides,
    classes=classes,
    labels=labels,
    # Where rows are held out by a hash, each part reads all rows.
    left_out=labels_of_counts if eval_files else {},
    left_out_of_both={} if eval_files else labels_of_counts,
  )


def table_classes(path: str, columns: Columns = _GUESSED, errors: str = "raise") -> tuple[str, ...]:
  """The classes of `table_corpus`: the labels of these tables in alphabetical order, or by size if all are numbers."""
  return _classes(find_text_files(path, "data.path", any_ending=True), columns, errors)


def _classes(files: Sequence[Path], columns: Columns, errors: str) -> tuple[str, ...]:
  names = {row.label for row in _rows(files, columns, errors, {})}
  if all(map(_is_number, names)):
    return tuple(sorted(names, key=lambda name: (float(name), name)))
  return tuple(sorted(names))


def _rows(files: Sequence[Path], columns: Columns, errors: str, counts: Counts) -> Iterator[_Row]:
  """The rows of all files; blank lines are left out and counted. Raises UserError."""
  counts["blank"] = 0
  for file in files:
    lines = decoded(read_lines(file), errors, counts)
    first = next(lines, "").removesuffix("\n").split("\t")
    places, has_header = _places(file, first, columns)
    empty = True
    for number, cells in enumerate(_cells(first, lines), 1):
      if number == 1 and has_header:
        continue
      if not any(cell.strip() for cell in cells):
        counts["blank"] += 1
        continue
      if len(cells) != len(first):
        raise UserError(f"{file}, line {number}: {len(cells)} columns, where the first line has {len(first)}")
      label = cells[places["label"]].strip()
      if not label:
        raise UserError(f"{file}, line {number}: no label in column {places['label'] + 1}")
      empty = False
      yield _Row(file, number, tuple(cells[places[key]] for key in ("text", "pair") if key in places), label)
    if empty:
      raise UserError(f"{file} has no rows")


def _cells(first: list[str], lines: Iterator[str]) -> Iterator[list[str]]:
  yield first
  for line in lines:
    yield line.removesuffix("\n").split("\t")


def _places(file: Path, first: list[str], columns: Columns) -> tuple[dict[str, int], bool]:
  """The column (from 0) of each key of `Columns`, and whether the first line is a header."""
  header = [cell.strip() for cell in first]
  if not any(header):
    raise UserError(f"{file} is empty, or its first line is: expected a table of text and label")
  places = {}
  has_header = any(cell in header for cell in columns if cell)
  for key, column in columns._asdict().items():
    if column in header and column:
      places[key] = header.index(column)
    elif column.isdecimal() and 1 <= int(column) <= len(header):
      places[key] = int(column) - 1
    elif column:
      raise UserError(f"task.{key}={column}: {file} has no such column; its first line is {_list(header)}")
    elif key != "pair" or not columns.text:  # a config that names the text column also names the pair's
      guess = next((name for name in _HEADERS[key] if name in header), None)
      if guess is not None:
        places[key] = header.index(guess)
        has_header = True
      elif key != "pair":
        raise UserError(
          f"{file} has no column {' or '.join(_HEADERS[key])}: set task.{key} to a column's name or number; its first "
          f"line is {_list(header)}"
        )
  if len(set(places.values())) < len(places):
    raise UserError(f"{file}: task.text, task.pair and task.label name the same column twice")
  return places, has_header or set(_HEADERS["label"]) <= set(header)


def _held_out(texts: Document, fraction: float) -> bool:
  digest = hashlib.sha256("\t".join(texts).encode()).digest()
  return int.from_bytes(digest[:4]) < fraction * 2**32


def _is_number(name: str) -> bool:
  try:
    return math.isfinite(float(name))
  except ValueError:
    return False


def _list(names: Sequence[str]) -> str:
  """The first names, for a message."""
  first = [name if len(name) <= 40 else f"{name[:40]}..." for name in names[:10]]
  return ", ".join(first) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")
