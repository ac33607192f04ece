"""Corpora of the user's own text files and parallel files, plain or .gz, read as a stream.

Text is UTF-8. A byte order mark at the start of a file is dropped, and "\\r\\n" is read as "\\n".
"""

import glob
import gzip
import hashlib
import itertools
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from tfm_jax.cache import recall, remember
from tfm_jax.errors import UserError
from tfm_jax.text.corpus import Corpus, Counts, Document

T = TypeVar("T")

DOCUMENTS = ("block", "line", "file")
ERRORS = ("raise", "replace")

_CHUNK = 1 << 20
_WINDOW = 1 << 12  # bytes around a cut in which white space is looked for
_TICK = 2 * 10**9  # ns: the coarsest clock of a file system
_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
  """One line of a file, with its line end."""

  raw: bytes
  file: Path
  number: int  # from 1


class _Parts(NamedTuple):
  """Which lines are the training text and which are held out, by their place in the bytes of `files`."""

  files: list[Path]
  sizes: list[int]  # bytes, decompressed
  cut: float  # the training text ends at the line end nearest to this byte
  eval_files: list[Path]  # the held-out text if there are any; the cut is then the end
  whole: bool  # lines are never cut; otherwise one is that would leave a part without text

  def lines(self, part: str, counts: Counts) -> Iterator[Line]:
    """The lines of one part; what lies wholly before the part is skipped, not read."""
    if part == "evaluation" and self.eval_files:
      for file in self.eval_files:
        yield from read_lines(file)
      return
    placed = self._placed(part)
    for line, position in placed:
      # A line belongs to the side of the cut that holds its middle: that cuts at the nearest line end.
      held_out = position + len(line.raw) / 2 > self.cut
      if not self.whole and position < self.cut < position + len(line.raw):
        rest = [] if held_out else list(_to_next_text(following for following, _ in placed))
        if (not position) if held_out else not any(following.raw.strip() for following in rest):
          counts["cut_lines"] = 1
          place = _place_inside(line.raw, int(self.cut) - position)
          halves = [line._replace(raw=line.raw[:place]), line._replace(raw=line.raw[place:])]
          yield halves[part == "evaluation"]
        elif held_out == (part == "evaluation"):
          yield line
        if part == "evaluation":
          yield from rest
      elif held_out == (part == "evaluation"):
        yield line
      if held_out and part == "train":
        return

  def _placed(self, part: str) -> Iterator[tuple[Line, int]]:
    """Each line with the byte at which it begins."""
    position = 0
    for file, size in zip(self.files, self.sizes, strict=True):
      if part == "train" or position + size > self.cut:
        begin = position
        for line in read_lines(file):
          yield line, begin
          begin += len(line.raw)
      position += size


def _to_next_text(lines: Iterable[Line]) -> Iterator[Line]:
  """The lines up to the first that is not blank."""
  for line in lines:
    yield line
    if line.raw.strip():
      return


def _place_inside(raw: bytes, place: int) -> int:
  """Where to cut a line with text on both sides: after the white space nearest to `place`, or between characters."""
  first, last = len(raw) - len(raw.lstrip()) + 1, len(raw.rstrip()) - 1
  place = max(min(place, last), first)
  near = range(max(first, place - _WINDOW), min(last, place + _WINDOW) + 1)
  spaces = [i for i in near if raw[i - 1 : i].isspace()]
  if spaces:
    return min(spaces, key=lambda i: abs(i - place))
  while place < len(raw) and raw[place] & 0xC0 == 0x80:  # in the middle of a character
    place += 1
  return place


def text_corpus(
  path: str, eval_path: str = "", eval_fraction: float = 0.1, document: str = "block", errors: str = "raise"
) -> Corpus:
  """Text files, cut into documents.

  Args:
    path: a file, a folder (every file in it), a glob, or several of these with commas between. `~` is
      expanded; the files of a folder or glob come in sorted order.
    eval_path: the same, for the held-out text; without it the last `eval_fraction` of the text (in bytes,
      over all files in order) is held out, cut at the nearest line end; where that leaves nothing on one side,
      within the line, at white space (not if lines are documents).
    eval_fraction: from 0, which holds nothing out, to below 1.
    document: "block" (blank lines separate), "line" or "file" (which has to fit in memory). Line ends inside
      a document are kept.
    errors: what to do with bytes that are not UTF-8: "raise", or "replace" by U+FFFD and count the lines.

  Raises:
    UserError: a missing, unreadable or empty file set; while reading, undecodable text (named by file and
      line), or no text.
  """
  if document not in DOCUMENTS:
    raise UserError(f"data.document={document}: expected one of {', '.join(DOCUMENTS)}")
  parts = _parts("data.path", path, "data.eval_path", eval_path, eval_fraction, errors, whole=document == "line")

  def read(part: str, counts: Counts) -> Iterator[Document]:
    counts["blank"] = kept = 0
    for _, lines in itertools.groupby(parts.lines(part, counts), key=lambda line: line.file):
      for text in _documents(decoded(lines, errors, counts), document):
        if not text or text.isspace():
          counts["blank"] += 1
        else:
          kept += 1
          yield (text,)
    _check_kept(kept, part, path, eval_path)

  description = f"text corpus: {_described(parts, path, eval_path)}, a document is a {document} (data.document)"
  settings = ["text", document, errors]
  fingerprint = content_fingerprint([*settings, parts.cut], [parts.files, parts.eval_files])
  return Corpus("text", description, fingerprint, read, _former_fingerprint(settings, parts, parts.files))


def parallel_corpus(
  path: str,
  target_path: str,
  eval_path: str = "",
  eval_target_path: str = "",
  eval_fraction: float = 0.1,
  errors: str = "raise",
) -> Corpus:
  """Two sides of text files: line n of a source file and line n of its target file belong together.

  Folders, globs and lists pair up in order. A pair with a blank side is skipped and counted. Without
  evaluation paths the last `eval_fraction` of the source text, with its targets, is held out. Arguments
  otherwise as in `text_corpus`.

  Raises:
    UserError: as `text_corpus`, and for different numbers of files or of lines.
  """
  if bool(eval_path) != bool(eval_target_path):
    raise UserError("data.eval_path and data.eval_target_path: give both or neither")
  parts = _parts("data.path", path, "data.eval_path", eval_path, eval_fraction, errors, whole=True)
  pairs = eval_pairs = _pairs(parts.files, expand(target_path, "data.target_path"), "data.path", "data.target_path")
  if eval_path:
    eval_targets = expand(eval_target_path, "data.eval_target_path")
    eval_pairs = _pairs(parts.eval_files, eval_targets, "data.eval_path", "data.eval_target_path")

  def read(part: str, counts: Counts) -> Iterator[Document]:
    counts["blank"] = kept = 0
    target_of = pairs if part == "train" else eval_pairs
    for file, sources in itertools.groupby(parts.lines(part, counts), key=lambda line: line.file):
      first = next(sources)
      whole = itertools.chain([first], sources)  # noqa: B031 (the rest of the group)
      targets = itertools.islice(read_lines(target_of[file]), first.number - 1, None)
      both = decoded(whole, errors, counts), decoded(targets, errors, counts)
      for source, target in zip(*both, strict=False):
        if source.strip() and target.strip():
          kept += 1
          yield source.removesuffix("\n"), target.removesuffix("\n")
        else:
          counts["blank"] += 1
    _check_kept(kept, part, path, eval_path)

  description = f"parallel corpus: {_described(parts, path, eval_path)}, with {target_path}"
  settings, targets = ["parallel", errors], list(pairs.values())
  held_out = [*eval_pairs, *eval_pairs.values()] if eval_path else []
  fingerprint = content_fingerprint([*settings, parts.cut], [parts.files, targets, held_out])
  former = _former_fingerprint(settings, parts, [*pairs, *targets, *eval_pairs.values()])
  return Corpus("parallel", description, fingerprint, read, former, sides=2)


def check_split(eval_fraction: float, errors: str) -> None:
  """Raises UserError for settings that cannot be."""
  if errors not in ERRORS:
    raise UserError(f"data.errors={errors}: expected one of {', '.join(ERRORS)}")
  if not 0 <= eval_fraction < 1:
    raise UserError(f"data.eval_fraction={eval_fraction}: expected 0 <= fraction < 1")


def _check_kept(kept: int, part: str, path: str, eval_path: str) -> None:
  """Raises UserError where a part that has to hold text holds none."""
  if part == "train" and not kept:
    raise UserError(f"data.path={path}: no text to train on")
  if part == "evaluation" and eval_path and not kept:
    raise UserError(f"data.eval_path={eval_path}: no text to evaluate on")


def _parts(
  key: str, path: str, eval_key: str, eval_path: str, eval_fraction: float, errors: str, whole: bool
) -> _Parts:
  """Finds the files and the place of the cut."""
  check_split(eval_fraction, errors)
  files = expand(path, key)
  sizes = [_remembered(_size, file) if file.suffix == ".gz" else _size(file) for file in files]
  if not sum(sizes):
    raise UserError(f"{key}={path}: the corpus is empty")
  eval_files = expand(eval_path, eval_key) if eval_path else []
  cut = sum(sizes) * (1 if eval_files else 1 - eval_fraction)
  return _Parts(files, sizes, cut, eval_files, whole)


def expand(path: str, key: str) -> list[Path]:
  """The files that a comma-separated list of files, folders and globs names, each once."""
  files: list[Path] = []
  for item in filter(None, (part.strip() for part in path.split(","))):
    place = Path(item).expanduser()
    if place.is_dir():
      found = sorted(file for file in place.rglob("*") if file.is_file() and not file.name.startswith("."))
    elif place.exists():
      found = [place]
    else:
      found = sorted(Path(name) for name in glob.glob(str(place), recursive=True) if Path(name).is_file())
    if not found:
      raise UserError(f"{key}={path}: no such file: {item}")
    files += found
  if not files:
    raise UserError(f"{key} is empty: name a text file, a folder or a glob")
  return list(dict.fromkeys(files))


def _pairs(sources: list[Path], targets: list[Path], key: str, target_key: str) -> dict[Path, Path]:
  """Source file -> target file, of equally many lines."""
  if len(sources) != len(targets):
    raise UserError(f"{key} names {len(sources)} files and {target_key} {len(targets)}: they must pair up")
  for source, target in zip(sources, targets, strict=True):
    lines, target_lines = (_remembered(_line_count, file) for file in (source, target))
    if lines != target_lines:
      raise UserError(
        f"{source} has {lines} lines and {target} has {target_lines}: line n of each must belong together"
      )
  return dict(zip(sources, targets, strict=True))


def _open(file: Path) -> BinaryIO:
  return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _size(file: Path) -> int:
  """Bytes of the text: those of a .gz file take a pass over it. Raises UserError where it cannot be read."""
  try:
    if file.suffix != ".gz":
      with file.open("rb"):  # to know now that it can be read
        return file.stat().st_size
    with _open(file) as stream:
      return sum(map(len, iter(lambda: stream.read(_CHUNK), b"")))
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"cannot read {file}: {error}") from error


def _line_count(file: Path) -> int:
  return sum(1 for _ in read_lines(file))


def read_lines(file: Path) -> Iterator[Line]:
  try:
    with _open(file) as stream:
      for number, raw in enumerate(stream, 1):
        yield Line(raw, file, number)
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"cannot read {file}: {error}") from error


def decoded(lines: Iterable[Line], errors: str, counts: Counts) -> Iterator[str]:
  """Lines as text, which end in "\\n" or, at the end of a file, in nothing."""
  for line in lines:
    raw = line.raw.removeprefix(_BOM) if line.number == 1 else line.raw
    try:
      text = raw.decode()
    except UnicodeDecodeError as error:
      if errors == "raise":
        raise UserError(
          f"{line.file}, line {line.number}: not UTF-8 ({error.reason} at its byte {error.start + 1}); "
          "convert the file, or set data.errors=replace"
        ) from error
      text = raw.decode(errors="replace")
      counts["undecodable_lines"] = counts.get("undecodable_lines", 0) + 1
    yield text[:-2] + "\n" if text.endswith("\r\n") else text


def _documents(lines: Iterable[str], document: str) -> Iterator[str]:
  """The documents of the lines of one file."""
  if document == "file":
    yield "".join(lines)
  elif document == "line":
    for line in lines:
      yield line.removesuffix("\n")
  else:
    for blank, block in itertools.groupby(lines, key=lambda line: not line or line.isspace()):
      if not blank:
        yield "".join(block).removesuffix("\n")


def _described(parts: _Parts, path: str, eval_path: str) -> str:
  if eval_path:
    held_out = f"held out {eval_path}"
  elif parts.cut < sum(parts.sizes):
    held_out = f"held out its last {1 - parts.cut / sum(parts.sizes):.1%} (data.eval_fraction)"
  else:
    held_out = "nothing held out"
  return f"{path} ({len(parts.files)} files, {sum(parts.sizes):,} bytes), {held_out}"


def content_fingerprint(settings: Sequence[Any], groups: Sequence[Sequence[Path]]) -> str:
  """sha256 over the settings and what is in the files, wherever they lie."""
  contents = [[_remembered(_content, file) for file in group] for group in groups]
  return hashlib.sha256(json.dumps([settings, contents]).encode()).hexdigest()[:16]


def _content(file: Path) -> str:
  """blake2b of a file's bytes."""
  with file.open("rb") as stream:
    return hashlib.file_digest(stream, hashlib.blake2b).hexdigest()[:32]


def _remembered(fact: Callable[[Path], T], file: Path) -> T:
  """A fact about a file's content, read once and remembered as long as nothing touches the file.

  A change of content always changes the time of the inode (ctime), which nobody can set back as one can set mtime. Of
  a file that changed a moment ago nothing is remembered: a second change might fall within the same tick of the clock.
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
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"cannot read {file}: {error}") from error


def _identity(file: Path) -> tuple[str, int, int, int, int, int]:
  stat = file.stat()
  path = str(file.absolute())
  return path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev


def _former_fingerprint(settings: list[str], parts: _Parts, files: Iterable[Path]) -> str:
  """What the fingerprint was up to version 0.1: over path, size and time of change of every file."""
  every = [*files, *parts.eval_files]
  stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in every]
  return hashlib.sha256(json.dumps([settings, parts.cut, stats]).encode()).hexdigest()[:16]
