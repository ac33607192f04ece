"""The text of `--help`: the sections of a configuration, and its keys with value, meaning and type."""

import shutil
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from tfm_jax.errors import UserError, nearest_key


class Key(NamedTuple):
  """One key of a configuration.

  Attributes:
    name: with its section, as "optimizer.learning_rate".
    value: as it is written on a command line.
    comment: what it means.
    kind: what it takes: "float", or "one of adamw, adam"; empty if the comment says it.
    changed: whether the value differs from the default.
  """

  name: str
  value: str
  comment: str
  kind: str
  changed: bool = False


class Section(NamedTuple):
  """A section of a configuration, with its name and a one-line summary."""

  name: str
  summary: str
  keys: Sequence[Key]


def overview(usage: str, sections: Sequence[Section]) -> str:
  """The usage of a command, followed by one line per section."""
  width = max(len(section.name) for section in sections)
  return "\n".join(
    [
      usage.rstrip(),
      "",
      "Keys of the configuration, by section:",
      *(_cut(f"  --help={s.name:<{width}}  {len(s.keys):>2}  {s.summary}") for s in sections),
      "",
      "--help=WORD lists the keys of a section, or those with that word in their name or comment; --help=all lists all",
      "keys. With --config=FILE, the values are those of that config.",
    ]
  )


def listing(sections: Sequence[Section], topic: str) -> str:
  """The keys that belong to a topic: "all", a section, a key, or a word in names and comments.

  Raises:
    UserError: there is no such key; the most similar one is named.
  """
  matches = _matching(sections, topic.lower().removeprefix("--").removeprefix("config."))
  if not matches:
    similar = nearest_key(topic, [key.name for s in sections for key in s.keys], [s.name for s in sections])
    hint = f"; did you mean --help={similar}?" if similar else "; --help lists the sections, --help=all all keys"
    raise UserError(f"--help={topic}: no key has that word in its name or comment{hint}")
  column = min(max(len(_assignment(key)) for section in matches for key in section.keys), 44) + 4
  lines: list[str] = []
  for section in matches:
    title = f"{section.name}: {section.summary}" if section.summary else section.name
    lines += [title, *(line for key in section.keys for line in _entry(key, column)), ""]
  if any(key.changed for section in matches for key in section.keys):
    lines += ["* differs from the default of the family"]
  return "\n".join(lines).rstrip()


def _matching(sections: Sequence[Section], topic: str) -> list[Section]:
  """The sections, each with only those keys that belong to the topic."""
  whole = [section for section in sections if topic in ("all", section.name)]
  if whole:
    return whole
  same = [s._replace(keys=[key for key in s.keys if key.name == topic]) for s in sections]
  containing = [
    s._replace(keys=[key for key in s.keys if topic in f"{key.name} {key.comment} {key.kind}".lower()])
    for s in sections
  ]
  return [section for section in same if section.keys] or [section for section in containing if section.keys]


def _entry(key: Key, column: int) -> list[str]:
  """The lines of one key: the assignment, and the comment in a column beside or, if there is no room, below it."""
  text = f"{key.comment} ({key.kind})" if key.kind else key.comment
  comment = textwrap.wrap(text, _width() - column, break_on_hyphens=False) or [""]
  left = ("* " if key.changed else "  ") + _assignment(key)
  if len(left) + 2 > column:
    return [left, *(" " * column + line for line in comment)]
  return [f"{left:<{column}}{comment[0]}", *(" " * column + line for line in comment[1:])]


def _assignment(key: Key) -> str:
  return f"--config.{key.name}={key.value}"


def _cut(line: str) -> str:
  """A line of a table, cut to the width of the page."""
  return line if len(line) <= _width() else f"{line[: _width() - 4].rstrip()} ..."


def _width() -> int:
  """Columns of the page: those of the terminal, within reason."""
  return min(max(shutil.get_terminal_size((120, 24)).columns, 80), 120)
