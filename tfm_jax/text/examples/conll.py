"""Sentences of tagged words in columns, as of CoNLL-2003: one word per line, blank lines between sentences."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.corpora.files import decoded, read_lines

_DOCUMENT = "-DOCSTART-"


class Sentence(NamedTuple):
  """A sentence: where it begins, its words, and their tags (None if the file has none)."""

  file: Path
  line: int
  words: tuple[str, ...]
  tags: tuple[str, ...] | None


def read_conll(
  files: Sequence[Path],
  word: str = "",
  tag: str = "",
  labelled: bool = True,
  errors: str = "raise",
  counts: Counts | None = None,
) -> list[Sentence]:
  """The sentences of files in columns, which are separated by white space (or by tabs, if a line has any).

  Lines that begin with -DOCSTART- separate documents. Lines before the words of a sentence that begin with "#" are
  comments (as in CoNLL-U), unless they have as many columns as the words.

  Args:
    files: text files, plain or compressed.
    word, tag: numbers of columns, from 1; empty: the first and the last.
    labelled: whether a file with words alone is refused.
    errors: what happens to bytes that are not UTF-8.
    counts: those of `decoded` are added, and `repaired`: tags that `repaired` changed.

  Raises:
    UserError: an unreadable or empty file, or a line without such a column. File and line are named.
  """
  for key, value in (("text", word), ("label", tag)):
    if value and not (value.isdecimal() and int(value) > 0):
      raise UserError(f"task.{key}={value}: columns of words and tags are numbered from 1")
  counts = {} if counts is None else counts
  counts.setdefault("repaired", 0)
  sentences: list[Sentence] = []
  for file in files:
    before = len(sentences)
    sentences += _sentences(file, decoded(read_lines(file), errors, counts), word, tag, labelled, counts)
    if len(sentences) == before:
      raise UserError(f"{file} has no sentences: expected one word per line, and blank lines between sentences")
  return sentences


def _sentences(
  file: Path, lines: Iterator[str], word: str, tag: str, labelled: bool, counts: Counts
) -> Iterator[Sentence]:
  numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
  words_only: bool | None = None
  for blank, group in groupby(numbered, key=lambda line: not line[1] or line[1].startswith(_DOCUMENT)):
    if blank:
      continue
    block = list(group)
    cells = [line.split("\t") if "\t" in line else line.split() for _, line in block]
    comments = 0  # before the words, and of another number of columns: "#" is a word too
    while comments < len(block) and block[comments][1].startswith("#") and len(cells[comments]) != len(cells[-1]):
      comments += 1
    block, cells = block[comments:], cells[comments:]
    if words_only is None:
      words_only = all(len(row) == 1 for row in cells) and not (tag and labelled)
    w, t = int(word or 1) - 1, int(tag or 0) - 1  # -1: the last column
    for (number, _), row in zip(block, cells, strict=True):
      if not words_only and len(row) <= max(w, t, 1):
        raise UserError(
          f"{file}, line {number}: {len(row)} columns, but words are read from column {w + 1} and tags from "
          f"{f'column {t + 1}' if tag else 'the last of several'}: set task.text and task.label"
        )
    if words_only and labelled:
      raise UserError(
        f"{file}, line {block[0][0]}: a word without a tag: expected columns, such as `word POS chunk tag`"
      )
    tags = None
    if not words_only:
      tags = tuple(row[t] for row in cells)
      correct = repaired(tags)
      counts["repaired"] += sum(a != b for a, b in zip(tags, correct, strict=True))
      tags = correct
    yield Sentence(file, block[0][0], tuple(row[w] for row in cells), tags)


def repaired(tags: Sequence[str]) -> tuple[str, ...]:
  """Tags in BIO form: an I- that continues no entity of its type begins one, as conlleval reads it (IOB1 too)."""
  correct, before = [], "O"
  for tag in tags:
    kind, dash, entity = tag.partition("-")
    if kind == "I" and dash and before not in (f"B-{entity}", f"I-{entity}"):
      tag = f"B-{entity}"
    correct.append(tag)
    before = tag
  return tuple(correct)
