"""Opens text files, plain or compressed, and refuses files that hold no text: tables, archives, binaries, pipes."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from tfm_jax.errors import UserError

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a file may raise, damaged compression included."""

JSON_LINES = (".jsonl", ".ndjson")
"""Endings of files with one JSON object per line."""

_CHUNK = 1 << 17  # bytes of a .zst file that are decompressed at once
_HEAD = 1 << 16  # bytes at the beginning of a file that show whether it is text
_MOST_UNREADABLE = 0.3  # share of these that text with a few damaged characters stays below
_LARGEST_WINDOW = 1 << 31  # bytes: what `zstd --long=31` needs

_TO_JSON_LINES = "convert it to JSON lines (one object per line, its text under the key data.field)"
_REFUSED_ENDINGS = {
  ".csv": f"is a CSV table: {_TO_JSON_LINES}; a labelled one trains a task, by task.name",
  ".json": "is JSON: if it has one object per line, set data.source=jsonl; otherwise convert it to that form",
  **dict.fromkeys(
    (".parquet", ".arrow", ".feather", ".orc"),
    f"is a table in a binary format: for pre-training set data.source=parquet (or arrow, for a folder of Hugging "
    f"Face's datasets); otherwise {_TO_JSON_LINES}, for instance by pandas' to_json(orient='records', lines=True)",
  ),
}
# How the bytes of a file begin that holds no UTF-8 text.
_SIGNATURES = {
  b"PAR1": _REFUSED_ENDINGS[".parquet"],
  b"PK\x03\x04": "is a zip archive (or a document in one): unpack it",
  b"%PDF": "is a PDF: extract its text first",
  b"\x1f\x8b": "is compressed by gzip: give its name the ending .gz",
  b"BZh": "is compressed by bzip2: give its name the ending .bz2",
  b"\xfd7zXZ\0": "is compressed by xz: give its name the ending .xz",
  b"\x28\xb5\x2f\xfd": "is compressed by zstd: give its name the ending .zst",
  codecs.BOM_UTF16_LE: "is UTF-16: convert it by iconv -f UTF-16 -t UTF-8",
  codecs.BOM_UTF16_BE: "is UTF-16: convert it by iconv -f UTF-16 -t UTF-8",
}
_TAR = (257, b"ustar")  # where a tar archive says what it is


class _ZstdFile(io.RawIOBase):
  """The decompressed bytes of a .zst file of one or several frames; EOFError if it ends within a frame."""

  def __init__(self, file: Path):
    import zstandard  # only who has such files needs it

    self._zstandard = zstandard
    self._file = file.open("rb")
    self._frame = self._new_frame()
    self._begun = False  # bytes of this frame were read
    self._rest = memoryview(b"")  # decompressed and not handed out yet

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed says Buffer
    while not self._rest:
      data = self._file.read(_CHUNK)
      if not data:
        if self._begun:
          raise EOFError("the compressed file ends within a frame")
        return 0
      self._rest = memoryview(self._decompressed(data))
    count = min(len(buffer), len(self._rest))
    buffer[:count] = self._rest[:count]
    self._rest = self._rest[count:]
    return count

  def close(self) -> None:
    self._file.close()
    super().close()

  def _decompressed(self, data: bytes) -> bytes:
    parts = []
    try:
      while data:
        parts.append(self._frame.decompress(data))
        self._begun, data = not self._frame.eof, self._frame.unused_data
        if self._frame.eof:
          self._frame = self._new_frame()
    except self._zstandard.ZstdError as error:
      raise OSError(str(error)) from error
    return b"".join(parts)

  def _new_frame(self):  # type: ignore[no-untyped-def]  # of a package that is imported late
    return self._zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()


_DECOMPRESSORS: dict[str, Callable[[Path], object]] = {
  ".gz": gzip.open,
  ".bz2": bz2.open,
  ".xz": lzma.open,
  ".zst": lambda file: io.BufferedReader(_ZstdFile(file), _CHUNK),
}


def open_file(file: Path) -> BinaryIO:
  """The bytes of a file, decompressed if its ending says that it is compressed (.gz, .bz2, .xz, .zst)."""
  return cast(BinaryIO, _DECOMPRESSORS[file.suffix](file)) if is_compressed(file) else file.open("rb")


def is_compressed(file: Path) -> bool:
  """Whether the file's ending is that of a compressed one."""
  return file.suffix in _DECOMPRESSORS


def ending(file: Path) -> str:
  """The ending of a file's name in lower case, that of its compression aside: ".jsonl" of "a.jsonl.zst"."""
  return (Path(file.stem) if is_compressed(file) else file).suffix.lower()


def check_json_lines(file: Path) -> None:
  """Raises UserError for a file whose ending says that it is a table."""
  if ending(file) in _REFUSED_ENDINGS and ending(file) != ".json":
    raise UserError(f"{file} {_REFUSED_ENDINGS[ending(file)]}")


def check_readable(file: Path, any_ending: bool = False) -> None:
  """Refuses a file that is no text, by its ending or its first bytes.

  Args:
    file: an existing file, compressed or not.
    any_ending: only the first bytes count.

  Raises:
    UserError: a pipe or another special file, a table that no source reads, a binary file, or one that cannot be read.
  """
  if not file.is_file():
    raise UserError(
      f"{file} is a pipe or a device, and a text is read more than once: write it to a file first (cat > text.txt), "
      "and name that file in data.path"
    )
  if not any_ending and ending(file) in _REFUSED_ENDINGS:
    raise UserError(f"{file} {_REFUSED_ENDINGS[ending(file)]}")
  try:
    with open_file(file) as stream:
      head = stream.read(_HEAD)
  except READ_ERRORS as error:
    raise UserError(f"cannot read {file}: {error}") from error
  for signature, advice in _SIGNATURES.items():
    if head.startswith(signature):
      raise UserError(f"{file} {advice}")
  place, signature = _TAR
  if head[place:].startswith(signature):
    raise UserError(f"{file} is a tar archive: unpack it")
  share = _unreadable(head)
  if share > _MOST_UNREADABLE:
    raise UserError(
      f"{file} is not UTF-8 text: {share:.0%} of its beginning is not readable. Leave it out if it is a binary file; "
      "convert it if it is text in another encoding (iconv -f ENCODING -t UTF-8)"
    )


def _unreadable(head: bytes) -> float:
  """The share of the characters of `head` that are control characters, or bytes that are not UTF-8."""
  text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)  # the last character may be incomplete
  wrong = sum(count for code in _CONTROLS if (count := text.count(code)))
  return (wrong + text.count("\ufffd") - head.count("\ufffd".encode())) / max(1, len(text))


_CONTROLS = [chr(code) for code in range(32) if chr(code) not in "\t\n\v\f\r\x1b"]
