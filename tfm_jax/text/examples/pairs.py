"""Texts with what is to be written for them: parallel text line by line, tables, JSON lines."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.corpora.files import decoded, read_lines
from tfm_jax.text.corpora.opening import JSON_LINES, ending
from tfm_jax.text.examples.tables import Column, Row, Table, check_text, read_table

BLANK = "pairs with a blank side, left out"
_TABLES = (".tsv", ".csv", *JSON_LINES)


class Pair(NamedTuple):
  """A text and what is to be written for it.

  Attributes:
    file, line: where it stands.
    source: the text that the model reads.
    targets: the references; None: the file has none.
    origin: the example that a task made it from; None: it was read as a pair.
  """

  file: Table
  line: int
  source: str
  targets: tuple[str, ...] | None
  origin: Any = None


def read_pairs(
  files: Sequence[Path],
  targets: Sequence[Path],
  columns: Mapping[str, Column],
  labelled: bool,
  errors: str = "raise",
  counts: Counts | None = None,
) -> list[Pair]:
  """The pairs of text files with `targets`, line n with line n; or of tables and JSON lines; or the lines of a text.

  Args:
    files: what the model reads.
    targets: as many files of as many lines; empty: tables have the targets in a column, and texts have none.
    columns: "text" and "label" of tables. In JSON lines, a text may be a list of sentences, which are joined, and a
      label a list of references.
    labelled: whether each pair needs a target: those with a blank side are left out and counted. Otherwise a blank
      target is none.
    errors: what happens to bytes that are not UTF-8.
    counts: of what was left out or repaired.

  Raises:
    UserError: a mistake in a file, named by its line, or no pair to learn from.
  """
  counts = {} if counts is None else counts
  if targets or ending(files[0]) not in _TABLES:
    if labelled and not targets:
      raise UserError(
        f"{files[0]} has no targets: name the file with line n of the other side in data.target_path, or a table "
        f"(.tsv, .csv, .jsonl)"
      )
    pairs = [*_parallel(files, targets, errors, counts)]
  else:
    pairs = [*map(_of_row, read_table(files, columns, errors, counts))]
  if not labelled:
    return pairs
  whole = [pair for pair in pairs if pair.targets and pair.source.strip()]
  counts[BLANK] = counts.get(BLANK, 0) + len(pairs) - len(whole)
  if not whole:
    raise UserError(f"{files[0]} has no pair of a text and a target to learn from")
  return whole


def _parallel(files: Sequence[Path], targets: Sequence[Path], errors: str, counts: Counts) -> Iterator[Pair]:
  for file, target in itertools.zip_longest(files, targets):
    others: Iterator[str] = decoded(read_lines(target), errors, counts) if target else itertools.repeat("")
    for number, (source, other) in enumerate(zip(decoded(read_lines(file), errors, counts), others, strict=False), 1):
      text = other.removesuffix("\n")
      yield Pair(file, number, source.removesuffix("\n"), (text,) if text.strip() else None)


def _of_row(row: Row) -> Pair:
  place = f"{row.file}, line {row.line}"
  source, targets = _texts(row.values["text"], place, "text"), _texts(row.values["label"], place, "label")
  return Pair(row.file, row.line, " ".join(source), tuple(filter(str.strip, targets)) or None)


def _texts(value: Any, place: str, key: str) -> list[str]:
  """A text or a list of texts, as a list. Raises UserError for anything else."""
  texts = [] if value is None else value if isinstance(value, list) else [value]
  if not all(isinstance(text, str) for text in texts):
    raise UserError(f"{place}: {value!r} is no text and no list of texts: set task.text and task.label")
  return [check_text(text, f"{place}, {key}") for text in texts]
