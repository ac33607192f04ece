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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from tfm_jax.cache import recall, remember
from tfm_jax.errors import UserError
from tfm_jax.text.corpus import Corpus, Counts, Document

DOCUMENTS = ("block", "line", "file")
ERRORS = ("raise", "replace")

_CHUNK = 1 << 20
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

  def lines(self, part: str) -> Iterator[Line]:
    """The lines of one part; what lies wholly before the part is skipped, not read."""
    if part == "evaluation" and self.eval_files:
      for file in self.eval_files:
        yield from read_lines(file)
      return
    start = 0
    for file, size in zip(self.files, self.sizes, strict=True):
      if part == "train" or start + size > self.cut:
        position = start
        for line in read_lines(file):
          # A line belongs to the side of the cut that holds its middle: that cuts at the nearest line end.
          held_out = position + len(line.raw) / 2 > self.cut
          position += len(line.raw)
          if held_out == (part == "evaluation"):
            yield line
          elif held_out:
            return
      start += size


def text_corpus(
  path: str, eval_path: str = "", eval_fraction: float = 0.1, document: str = "block", errors: str = "raise"
) -> Corpus:
  """Text files, cut into documents.

  Args:
    path: a file, a folder (every file in it), a glob, or several of these with commas between. `~` is
      expanded; the files of a folder or glob come in sorted order.
    eval_path: the same, for the held-out text; without it the last `eval_fraction` of the text (in bytes,
      over all files in order) is held out, cut at the nearest line end.
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
  parts = _parts("data.path", path, "data.eval_path", eval_path, eval_fraction, errors)

  def read(part: str, counts: Counts) -> Iterator[Document]:
    counts["blank"] = kept = 0
    for _, lines in itertools.groupby(parts.lines(part), key=lambda line: line.file):
      for text in _documents(decoded(lines, errors, counts), document):
        if not text or text.isspace():
          counts["blank"] += 1
        else:
          kept += 1
          yield (text,)
    if part == "train" and not kept:
      raise UserError(f"data.path={path}: no text to train on")

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
  parts = _parts("data.path", path, "data.eval_path", eval_path, eval_fraction, errors)
  pairs = eval_pairs = _pairs(parts.files, expand(target_path, "data.target_path"), "data.path", "data.target_path")
  if eval_path:
    eval_targets = expand(eval_target_path, "data.eval_target_path")
    eval_pairs = _pairs(parts.eval_files, eval_targets, "data.eval_path", "data.eval_target_path")

  def read(part: str, counts: Counts) -> Iterator[Document]:
    counts["blank"] = kept = 0
    target_of = pairs if part == "train" else eval_pairs
    for file, sources in itertools.groupby(parts.lines(part), key=lambda line: line.file):
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
    if part == "train" and not kept:
      raise UserError(f"data.path={path}: no text to train on")

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


def _parts(key: str, path: str, eval_key: str, eval_path: str, eval_fraction: float, errors: str) -> _Parts:
  """Finds the files and the place of the cut."""
  check_split(eval_fraction, errors)
  files = expand(path, key)
  sizes = [_size(file) for file in files]
  if not sum(sizes):
    raise UserError(f"{key}={path}: the corpus is empty")
  eval_files = expand(eval_path, eval_key) if eval_path else []
  cut = sum(sizes) * (1 if eval_files else 1 - eval_fraction)
  return _Parts(files, sizes, cut, eval_files)


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
    lines, target_lines = (sum(1 for _ in read_lines(file)) for file in (source, target))
    if lines != target_lines:
      raise UserError(
        f"{source} has {lines} lines and {target} has {target_lines}: line n of each must belong together"
      )
  return dict(zip(sources, targets, strict=True))


def _open(file: Path) -> BinaryIO:
  return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _size(file: Path) -> int:
  """Bytes of the text: those of a .gz file take a pass over it."""
  try:
    if file.suffix != ".gz":
      with file.open("rb"):  # to know now that it can be read
        return file.stat().st_size
    with _open(file) as stream:
      return sum(map(len, iter(lambda: stream.read(_CHUNK), b"")))
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"cannot read {file}: {error}") from error


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
  contents = [[_content(file) for file in group] for group in groups]
  return hashlib.sha256(json.dumps([settings, contents]).encode()).hexdigest()[:16]


def _content(file: Path) -> str:
  """blake2b of a file's bytes, read once and remembered as long as nothing touches the file.

  A change of content always changes the time of the inode (ctime), which nobody can set back as one can set mtime. A
  file that changed a moment ago is not remembered: a second change might fall within the same tick of the clock.
  """
  try:
    key = _identity(file)
    known = recall("contents", key)
    if isinstance(known, str):
      return known
    begin = time.time_ns()
    with file.open("rb") as stream:
      digest = hashlib.file_digest(stream, hashlib.blake2b).hexdigest()[:32]
    if key == _identity(file) and begin - max(key[2:4]) > _TICK:
      remember("contents", key, digest)
    return digest
  except OSError as error:
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
