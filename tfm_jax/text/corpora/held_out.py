"""Which lines of text files, or which texts, are trained on, and which are held out."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.corpora.files import Line, check_split, counted, find_text_files, read_lines, text_size

_WINDOW = 1 << 12  # bytes around a cut in which white space is looked for


class LineSplit(NamedTuple):
  """The training lines and the held-out lines of `files`, by their place in the bytes of the text."""

  files: list[Path]
  sizes: list[int]  # bytes, decompressed
  cut: float  # the training text ends at the line end nearest to this byte
  eval_files: list[Path]  # the held-out text if there are any; the cut is then the end
  whole: frozenset[Path]  # files whose lines are never cut; others are cut where one part would have no text otherwise

  @property
  def held_out(self) -> str:
    """For the log: what is held out, and by which setting."""
    if self.eval_files:
      return f"the {counted(self.eval_files, 'file')} of data.eval_path"
    share = 1 - self.cut / sum(self.sizes)
    return f"the last {share:.1%} of the text (data.eval_fraction)" if share > 0 else "nothing"

  def lines(self, part: str, counts: Counts) -> Iterator[Line]:
    """The lines of "train" or "evaluation"; files that lie wholly before the part are not read."""
    if part == "evaluation" and self.eval_files:
      for file in self.eval_files:
        yield from read_lines(file)
      return
    placed = self._placed(part)
    for line, position in placed:
      # A line belongs to the side of the cut that holds its middle: that cuts at the nearest line end.
      held_out = position + len(line.raw) / 2 > self.cut
      if line.file not in self.whole and position < self.cut < position + len(line.raw):
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
    """Each line with the byte of the text at which it begins."""
    position = 0
    for file, size in zip(self.files, self.sizes, strict=True):
      if part == "train" or position + size > self.cut:
        begin = position
        for line in read_lines(file):
          yield line, begin
          begin += len(line.raw)
      position += size


def split_lines(path: str, eval_path: str, eval_fraction: float, errors: str, any_ending: bool = False) -> LineSplit:
  """Finds the files and the place of the cut; lines of all files may be cut. Arguments as in `text_corpus`.

  Raises:
    UserError: an impossible setting, a missing or unreadable file, or no text at all.
  """
  check_split(eval_fraction, errors)
  files = find_text_files(path, "data.path", any_ending)
  sizes = [text_size(file) for file in files]
  if not sum(sizes):
    raise UserError(f"data.path={path}: the corpus is empty")
  eval_files = find_text_files(eval_path, "data.eval_path", any_ending) if eval_path else []
  cut = sum(sizes) * (1 if eval_files else 1 - eval_fraction)
  return LineSplit(files, sizes, cut, eval_files, frozenset())


def is_held_out(text: str, fraction: float) -> bool:
  """Whether a text is held out: by its hash, so that equal texts stay together."""
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) < fraction * 2**32


def check_documents(documents: int, part: str, path: str, eval_path: str) -> None:
  """Raises UserError if there are no documents in a part that must have some."""
  if part == "train" and not documents:
    raise UserError(f"data.path={path}: no text to train on")
  if part == "evaluation" and eval_path and not documents:
    raise UserError(f"data.eval_path={eval_path}: no text to evaluate on")


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
