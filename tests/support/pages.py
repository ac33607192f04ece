"""README and docs as the tests read them: code blocks, links, and the examples of `docs/extending.md`, ready to use."""

import importlib
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
  """One fenced block: its language, its text, and the line of the page on which the text begins."""

  language: str
  text: str
  line: int


def blocks(page: Path, language: str) -> list[Block]:
  """The blocks of a page that are marked with a language; "" for those without a mark."""
  text = page.read_text(encoding="utf-8")
  every = (Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1) for match in _FENCE.finditer(text))
  return [block for block in every if block.language == language]


def prose(page: Path) -> str:
  """The page without its fenced blocks."""
  return _FENCE.sub("", page.read_text(encoding="utf-8"))


class Entry(NamedTuple):
  """A diff block: what it adds to a table of the package.

  Attributes:
    module: the file, `tfm_jax/objectives/table.py`.
    context: lines that the file has.
    imports: added import lines.
    added: the other added lines.
  """

  module: str
  context: list[str]
  imports: list[str]
  added: list[str]

  @property
  def table(self) -> str:
    """The name of the table."""
    return re.match(r"\w+", self.context[-1])[0]


class Example(NamedTuple):
  """One section of `docs/extending.md`: files of the package by path, table entries, and commands."""

  files: dict[str, str]
  entries: list[Entry]


def examples() -> dict[str, Example]:
  """The examples of `docs/extending.md`, by the last word of their heading: "objective", "family", ..."""
  text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
  found = {}
  for section in re.split(r"^## An? ", text, flags=re.MULTILINE)[1:]:
    name, body = section.split("\n", 1)
    body = re.split(r"^## ", body, flags=re.MULTILINE)[0]
    files, entries = {}, []
    for language, block in _FENCE.findall(body):
      if language == "python":
        path, source = block.split("\n", 1)
        files[path.removeprefix("# ")] = source
      elif language == "diff":
        entries.append(_entry(block))
    found[name] = Example(files, entries)
  return found


def _entry(diff: str) -> Entry:
  first, *lines = diff.splitlines()
  marked = {mark: [line[1:] for line in lines if line.startswith(mark)] for mark in " +"}
  imports = [line for line in marked["+"] if line.startswith("from ")]
  added = [line for line in marked["+"] if line not in imports]
  return Entry(first.removeprefix("--- "), marked[" "], imports, added)


def add_example(monkeypatch: pytest.MonkeyPatch, name: str) -> types.ModuleType | None:
  """Adds an example to the package for the length of a test, as its page says; its file as a module, if it has one."""
  example, module = examples()[name], None
  for path, source in example.files.items():
    module = _module(monkeypatch, path, source)
  for entry in example.entries:
    home = importlib.import_module(entry.module.removesuffix(".py").replace("/", "."))
    names = dict(vars(home))
    exec("\n".join(entry.imports), names)
    table: dict[str, Any] = getattr(home, entry.table)
    for key, value in eval(f"{{{' '.join(entry.added)}}}", names).items():
      monkeypatch.setitem(table, key, value)
  return module


def _module(monkeypatch: pytest.MonkeyPatch, path: str, source: str) -> types.ModuleType:
  """The text of a file as the module that it would be at that path of the package."""
  name = path.removesuffix(".py").replace("/", ".")
  module = types.ModuleType(name)
  module.__file__ = path
  monkeypatch.setitem(sys.modules, name, module)
  exec(compile(source, path, "exec"), vars(module))
  return module


def links(page: Path) -> Iterator[str]:
  """The targets of the page's links and images."""
  return (match[1] for match in re.finditer(r"\]\(([^)\s]+)\)", prose(page)))


def anchors(page: Path) -> set[str]:
  """The anchors of the page's headings, as forges make them."""
  titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
