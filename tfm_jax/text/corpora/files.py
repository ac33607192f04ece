"""The user's text files: found by name, read line by line, known by their content.

Text is UTF-8. A byte order mark at the start of a file is dropped, and "\\r\\n" is read as "\\n".
"""

import functools
import glob
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tfm_jax.cache import recall, remember
from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.corpora.opening import READ_ERRORS, check_readable, is_compressed, open_file

log = logging.getLogger(__name__)

T = TypeVar("T")

ERRORS = ("raise", "replace")
"""What `data.errors` may be: what happens to bytes that are not UTF-8."""

UNDECODABLE = {"undecodable": "texts not UTF-8, replaced by U+FFFD"}
"""The label of what `decoded_value` counts, see `Corpus.left_out`."""

_CHUNK = 1 << 20
_TICK = 2 * 10**9  # ns: the coarsest clock of a file system
_BOM = b"\xef\xbb\xbf"
_MOST_COMMAS = 8  # commas in one file's name


class Line(NamedTuple):
  """One line of a file, with its line end."""

  raw: bytes
  file: Path
  number: int  # from 1


def check_split(eval_fraction: float, errors: str) -> None:
  """Raises UserError for impossible values of `data.eval_fraction` or `data.errors`."""
  if errors not in ERRORS:
    raise UserError(f"data.errors={errors}: expected one of {', '.join(ERRORS)}")
  if not 0 <= eval_fraction < 1:
    raise UserError(f"data.eval_fraction={eval_fraction}: expected 0 <= fraction < 1")


def find_text_files(path: str, key: str, any_ending: bool = False) -> list[Path]:
  """The files of `expand`, after checking that they hold text.

  any_ending: whether tables such as .csv pass, which a text source refuses.

  Raises:
    UserError: an empty list, an item that names no file, or a file that holds no text.
  """
  if path.strip() == "-":
    raise UserError(f"{key}=-: text is read more than once, so write it to a file first (cat > text.txt)")
  files = expand(path, key)
  for file in files:
    check_readable(file, any_ending)
  return files


def expand(path: str, key: str) -> list[Path]:
  """The files that a comma-separated list of files, folders and globs names, each once.

  A comma may also be part of a name: the longest run of items that names something counts as one.

  Args:
    path: the list. `~` is expanded; the files of a folder or glob come in sorted order, hidden ones left out.
    key: the config key, for messages.

  Raises:
    UserError: an empty list, or an item that names no file.
  """
  items = path.split(",")
  files: list[Path] = []
  while items:
    for count in range(min(len(items), 1 + _MOST_COMMAS), 0, -1):
      item = ",".join(items[:count]).strip()
      matches = _matches(item) if item else []
      if matches:
        break
    else:
      if item:
        raise UserError(
          f"{key}={path}: no such file{f': {item}' if item != path else ''}; looked in {Path.cwd()}; if you did not "
          f"set it, it is the default of this config: name your own with --config.{key}=..."
        )
    files += matches
    items = items[count:]
  if not files:
    raise UserError(f"{key} is empty: name a text file, a folder or a glob")
  return list(dict.fromkeys(files))


def _matches(item: str) -> list[Path]:
  """The files of one name, folder or glob; none if there is no such thing."""
  place = Path(item).expanduser()
  if place.is_dir():
    return sorted(file for file in place.rglob("*") if file.is_file() and not file.name.startswith("."))
  if place.exists():
    return [place]
  return sorted(Path(name) for name in glob.glob(str(place), recursive=True) if Path(name).is_file())


def counted(files: Sequence[Path], noun: str) -> str:
  """ "1 file", "2 files"."""
  return f"{len(files):,} {noun}{'' if len(files) == 1 else 's'}"


def text_size(file: Path) -> int:
  """Bytes of a file's text; those of a compressed file are counted once and remembered. Raises UserError."""
  return _remembered(_size, file) if is_compressed(file) else _size(file)


def line_count(file: Path) -> int:
  """The number of lines of a file, remembered. Raises UserError."""
  return _remembered(_line_count, file)


def _size(file: Path) -> int:
  try:
    with open_file(file) as stream:
      if not is_compressed(file):
        return file.stat().st_size
      return sum(map(len, iter(lambda: stream.read(_CHUNK), b"")))
  except READ_ERRORS as error:
    raise UserError(f"cannot read {file}: {error}") from error


def _line_count(file: Path) -> int:
  return sum(1 for _ in read_lines(file))


def read_lines(file: Path) -> Iterator[Line]:
  """The lines of a file. Raises UserError if it cannot be read."""
  try:
    with open_file(file) as stream:
      for number, raw in enumerate(stream, 1):
        yield Line(raw, file, number)
  except READ_ERRORS as error:
    raise UserError(f"cannot read {file}: {error}") from error


def decoded(lines: Iterable[Line], errors: str, counts: Counts) -> Iterator[str]:
  """Lines as text, which end in "\\n" or, at the end of a file, in nothing.

  Lines that are not UTF-8 are an error or, with errors="replace", counted; so are lines with NUL characters, which are
  kept. The first of either kind is named in a warning.
  """
  for line in lines:
    raw = line.raw.removeprefix(_BOM) if line.number == 1 else line.raw
    try:
      text = raw.decode()
    except UnicodeDecodeError as error:
      place = f"{error.reason} at its byte {error.start + 1}"
      if errors == "raise":
        raise UserError(
          f"{line.file}, line {line.number}: not UTF-8 ({place}); convert the file, or set data.errors=replace"
        ) from error
      text = raw.decode(errors="replace")
      _count(counts, "undecodable_lines", line, f"not UTF-8 ({place}), replaced by U+FFFD as data.errors=replace says")
    if "\0" in text:
      _count(counts, "nul_lines", line, "NUL characters, which are kept: is the file damaged?")
    yield text[:-2] + "\n" if text.endswith("\r\n") else text


def decoded_value(value: bytes, place: str, errors: str, counts: Counts) -> str:
  """The text of a value of a table, which is at `place`. Raises UserError unless it is UTF-8 or replaced."""
  try:
    return value.decode()
  except UnicodeDecodeError as error:
    if errors == "raise":
      reason = f"{error.reason} at byte {error.start + 1}"
      raise UserError(f"{place}: not UTF-8 ({reason}); set data.errors=replace") from error
    counts["undecodable"] = counts.get("undecodable", 0) + 1
    return value.decode(errors="replace")


def _count(counts: Counts, name: str, line: Line, remark: str) -> None:
  """Counts a line that is not as it should be; the first one is named in a warning."""
  if name not in counts:
    _warn_once(f"{line.file}, line {line.number}: {remark} (only the first such line is named)")
  counts[name] = counts.get(name, 0) + 1


@functools.cache
def _warn_once(message: str) -> None:
  """A warning that is not repeated when the same text is read again."""
  log.warning("%s", message)


def content_fingerprint(settings: Sequence[Any], groups: Sequence[Sequence[Path]]) -> str:
  """sha256 over the settings and the content of the files, wherever they lie."""
  contents = [[_remembered(_content, file) for file in group] for group in groups]
  return hashlib.sha256(json.dumps([settings, contents]).encode()).hexdigest()[:16]


def former_fingerprint(settings: list[str], cut: float, files: Iterable[Path]) -> str:
  """What the fingerprint was up to version 0.1: over path, size and time of change of every file."""
  stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
  return hashlib.sha256(json.dumps([settings, cut, stats]).encode()).hexdigest()[:16]


def _content(file: Path) -> str:
  """blake2b of a file's bytes."""
  with file.open("rb") as stream:
    return hashlib.file_digest(stream, hashlib.blake2b).hexdigest()[:32]


def _remembered(fact: Callable[[Path], T], file: Path) -> T:
  """A fact about a file's content, computed once and remembered until the file changes.

  A change of content always changes the time of the inode (ctime), which cannot be set back as mtime can. Nothing is
  remembered of a file that changed a moment ago: a second change might fall within the same tick of the clock.
  """
  try:
    key = [fact.__name__, *_identity(file)]
    known: T | None = recall("files", key)
    if known is not None:
      return known
    begin, (_, _, changed, inode_changed, *_) = time.time_ns(), _identity(file)
    value = fact(file)
    if key[1:] == [*_identity(file)] and begin - max(changed, inode_changed) > _TICK:
      remember("files", key, value)
    return value
  except READ_ERRORS as error:
    raise UserError(f"cannot read {file}: {error}") from error


def _identity(file: Path) -> tuple[str, int, int, int, int, int]:
  stat = file.stat()
  path = str(file.absolute())
  return path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev
