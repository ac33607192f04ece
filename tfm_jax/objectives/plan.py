"""Row plans: which tokens of a split each row holds, computed by binary search for many rows at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tfm_jax.objectives.draws import Draws


@dataclass(frozen=True)
class Side:
  """One text of each document of a split, as a stream of tokens. Of pairs: all first, or all second texts."""

  tokens: np.ndarray  # [tokens], memory-mapped
  offsets: np.ndarray  # int64 [documents + 1], memory-mapped: where documents begin among the tokens
  byte_offsets: np.ndarray  # int64 [documents + 1], memory-mapped: where they begin among the bytes of UTF-8 text

  @property
  def text_bytes(self) -> int:
    return int(self.byte_offsets[-1])


@dataclass(frozen=True)
class Split:
  """The training or the held-out part of a corpus: one side, or two (source and target)."""

  name: str
  sides: tuple[Side, ...]

  @property
  def documents(self) -> int:
    return len(self.sides[0].offsets) - 1

  @property
  def num_tokens(self) -> int:
    return sum(len(side.tokens) for side in self.sides)

  @property
  def text_bytes(self) -> int:
    return sum(side.text_bytes for side in self.sides)


@dataclass(frozen=True)
class Rows:
  """R rows of raw token ids; the first three arrays are int32 [R, L]."""

  tokens: np.ndarray  # pad_id where segment_ids is 0
  segment_ids: np.ndarray  # 1, 2, .. for the documents in a row, 0 for padding
  positions: np.ndarray  # from 0 in each segment
  first: np.ndarray | None = None  # [R]: the document of segment 1; segments 2, 3, .. are the documents after it
  labels: np.ndarray | None = None  # int32 [R]: a label that the row plan gives each row; -1 in blank rows

  def documents(self) -> np.ndarray:
    """The document of each token, int32 [R, L]; meaningless where segment_ids is 0."""
    assert self.first is not None, "this row plan does not tell which documents its rows hold"
    return (self.first[:, None] + self.segment_ids - 1).astype(np.int32)


class RowPlan(Protocol):
  """Which tokens the rows 0 .. num_rows - 1 of a split hold. Later rows are blank: they hold only padding."""

  num_rows: int
  truncated: int  # texts that are cut because they are longer than their row

  def read(self, rows: np.ndarray, draws: Draws) -> tuple[Rows, ...]:
    """The tokens of these rows, for the objective's `make`: one `Rows`, or two (source and target).

    rows: int64 [R].
    draws: the random numbers that `make` gets too. A row plan that needs some (to pair documents) uses other sites.
    """


def stream_plan(side: Side, stride: int, lookahead: int, pad: int, packing: bool) -> RowPlan:
  """Rows of `stride` tokens of the stream; each also reads the `lookahead` tokens after them."""
  return (PackedPlan if packing else DocumentPlan)(side, stride, lookahead, pad)


class PackedPlan:
  """The stream of documents, cut every `stride` tokens; a document may continue in the next row."""

  truncated = 0

  def __init__(self, side: Side, stride: int, lookahead: int, pad: int):
    self._side, self._stride, self._width, self._pad = side, stride, stride + lookahead, pad
    self.num_rows = max(1, -(-(len(side.tokens) - lookahead) // stride)) if len(side.tokens) else 0

  def read(self, rows: np.ndarray, draws: Draws) -> tuple[Rows, ...]:
    starts = rows * self._stride
    lengths = np.clip(len(self._side.tokens) - starts, 0, self._width) * (rows < self.num_rows)
    return (read_stream(self._side, starts, lengths, self._width, self._pad),)


class DocumentPlan:
  """Each document cut every `stride` tokens, one piece per row."""

  truncated = 0

  def __init__(self, side: Side, stride: int, lookahead: int, pad: int):
    self._side, self._stride, self._width, self._pad = side, stride, stride + lookahead, pad
    sizes = np.diff(side.offsets)
    pieces = np.where(sizes > 0, np.maximum(1, -(-(sizes - lookahead) // stride)), 0)
    self._first_row = np.concatenate([[0], np.cumsum(pieces)])
    self.num_rows = int(self._first_row[-1])

  def read(self, rows: np.ndarray, draws: Draws) -> tuple[Rows, ...]:
    _, starts, rest = self.places(rows)
    return (read_stream(self._side, starts, np.minimum(rest, self._width), self._width, self._pad),)

  def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the document of each row and the row begin in the stream, and how many tokens the document has from there.

    These are 0 for blank rows.
    """
    real = np.minimum(rows, self.num_rows - 1)
    document = np.searchsorted(self._first_row, real, side="right") - 1
    begin, end = self._side.offsets[document], self._side.offsets[document + 1]
    starts = begin + (real - self._first_row[document]) * self._stride
    return begin, starts, (end - starts) * (rows < self.num_rows)


class WholePlan:
  """Whole documents of one or two sides: one per row, or if packed as many as fit, in order.

  Args:
    split: the documents.
    keep: for each side, the number of tokens that are kept of each text, [documents]; the rest is cut and counted.
    widths: row length of each side.
    packing: whether a row may hold several documents.
    pad: the id that fills rows.
  """

  def __init__(self, split: Split, keep: Sequence[np.ndarray], widths: Sequence[int], packing: bool, pad: int):
    self._sides, self._widths, self._pad = split.sides, widths, pad
    self.truncated = int(
      sum(np.sum(np.diff(side.offsets) > kept) for side, kept in zip(split.sides, keep, strict=True))
    )
    # Offsets in the stream of kept tokens.
    self._offsets = [np.concatenate([[0], np.cumsum(kept)]) for kept in keep]
    self._first_document = self._fill(split.documents) if packing else np.arange(split.documents + 1)
    self.num_rows = len(self._first_document) - 1

  def _fill(self, documents: int) -> np.ndarray:
    """The first document of each row, followed by the number of documents."""
    limits = [
      np.searchsorted(offsets, offsets[:-1] + width, side="right") - 1
      for offsets, width in zip(self._offsets, self._widths, strict=True)
    ]
    following = np.min(limits, axis=0).tolist()
    first = [0]
    while first[-1] < documents:
      first.append(following[first[-1]])
    return np.array(first)

  def read(self, rows: np.ndarray, draws: Draws) -> tuple[Rows, ...]:
    real = np.minimum(rows, self.num_rows - 1)
    begin = self._first_document[real]
    end = np.where(rows < self.num_rows, self._first_document[real + 1], begin)
    out = []
    for side, offsets, width in zip(self._sides, self._offsets, self._widths, strict=True):
      starts, lengths = offsets[begin], offsets[end] - offsets[begin]
      segment_ids, positions = _segments(offsets, starts, lengths, width)
      document = np.maximum(begin[:, None] + segment_ids - 1, 0)
      tokens = take(side, side.offsets[document] + positions)
      tokens[segment_ids == 0] = self._pad
      out.append(Rows(tokens, segment_ids, positions, begin))
    return tuple(out)


def read_stream(side: Side, starts: np.ndarray, lengths: np.ndarray, width: int, pad: int) -> Rows:
  """Rows of consecutive tokens, padded to `width`."""
  segment_ids, positions = _segments(side.offsets, starts, lengths, width)
  if lengths.min() == width:
    tokens = np.lib.stride_tricks.sliding_window_view(side.tokens, width)[starts].astype(np.int32)
  else:
    tokens = take(side, starts[:, None] + np.arange(width))
    tokens[segment_ids == 0] = pad
  return Rows(tokens, segment_ids, positions, np.searchsorted(side.offsets, starts, side="right") - 1)


def take(side: Side, index: np.ndarray) -> np.ndarray:
  """The tokens at these indices, int32; arbitrary where an index is out of range."""
  return side.tokens.take(index, mode="clip").astype(np.int32) if len(side.tokens) else np.zeros(index.shape, np.int32)


def _segments(
  offsets: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Segment ids and positions [R, width] of rows that hold the tokens starts .. starts + lengths - 1 of a stream.

  Each row is computed as a list of pieces: the documents that it overlaps, then its padding (perhaps empty).
  """
  first = np.searchsorted(offsets, starts, side="right")  # the first document that begins inside
  pieces = np.maximum(np.searchsorted(offsets, starts + lengths, side="left") - first, 0) + 2
  row = np.repeat(np.arange(len(starts)), pieces)
  within = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
  boundary = offsets[np.minimum(first[row] + within - 1, len(offsets) - 1)]
  begin = row * width + np.clip(boundary - starts[row], 0, lengths[row])
  size = np.diff(begin, append=len(starts) * width)
  padding = within == pieces[row] - 1
  segment_ids = np.repeat(np.where(padding, 0, within + 1).astype(np.int32), size)
  positions = np.arange(len(starts) * width, dtype=np.int32) - np.repeat(begin.astype(np.int32), size)
  if lengths.min() < width:
    positions *= segment_ids > 0
  return segment_ids.reshape(-1, width), positions.reshape(-1, width)
