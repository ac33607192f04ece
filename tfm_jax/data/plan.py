"""Plans of rows: which tokens of the token file a row holds, found by binary search for many rows at once."""

from typing import Protocol

import numpy as np

from tfm_jax.data.token_file import Side, Split
from tfm_jax.objectives.objective import Objective, Rows


class Plan(Protocol):
  """Rows 0 .. num_rows - 1 of a split. Rows beyond are blank: padding alone."""

  num_rows: int

  def read(self, rows: np.ndarray) -> tuple[Rows, ...]:
    """The sides (one, or source and target) of rows [R], int64."""


def make_plan(split: Split, objective: Objective, packing: bool) -> Plan:
  """The plan for an objective; documents of two sides go in pairs."""
  pad = objective.vocabulary.pad_id
  if len(split.sides) == 2:
    return PairPlan(split.sides, (objective.seq_len, objective.target_len), packing, pad)
  stream = PackedPlan if packing else DocumentPlan
  return stream(split.sides[0], objective.row_tokens, objective.lookahead, pad)


class PackedPlan:
  """The stream of documents, cut every `stride` tokens; documents continue in the next row."""

  def __init__(self, side: Side, stride: int, lookahead: int, pad: int):
    self._side, self._stride, self._width, self._pad = side, stride, stride + lookahead, pad
    self.num_rows = max(1, -(-(len(side.tokens) - lookahead) // stride)) if len(side.tokens) else 0

  def read(self, rows: np.ndarray) -> tuple[Rows, ...]:
    starts = rows * self._stride
    lengths = np.clip(len(self._side.tokens) - starts, 0, self._width) * (rows < self.num_rows)
    return (_read_stream(self._side, starts, lengths, self._width, self._pad),)


class DocumentPlan:
  """Each document cut every `stride` tokens, one piece to a row."""

  def __init__(self, side: Side, stride: int, lookahead: int, pad: int):
    self._side, self._stride, self._width, self._pad = side, stride, stride + lookahead, pad
    sizes = np.diff(side.offsets)
    pieces = np.where(sizes > 0, np.maximum(1, -(-(sizes - lookahead) // stride)), 0)
    self._first_row = np.concatenate([[0], np.cumsum(pieces)])
    self.num_rows = int(self._first_row[-1])

  def read(self, rows: np.ndarray) -> tuple[Rows, ...]:
    real = np.minimum(rows, self.num_rows - 1)
    document = np.searchsorted(self._first_row, real, side="right") - 1
    starts = self._side.offsets[document] + (real - self._first_row[document]) * self._stride
    lengths = np.minimum(self._side.offsets[document + 1] - starts, self._width) * (rows < self.num_rows)
    return (_read_stream(self._side, starts, lengths, self._width, self._pad),)


class PairPlan:
  """Whole pairs; packed: as many as fit, in their order. A side too long for its row is cut, and counted."""

  def __init__(self, sides: tuple[Side, ...], widths: tuple[int, int], packing: bool, pad: int):
    self._sides, self._widths, self._pad = sides, widths, pad
    sizes = [np.diff(side.offsets) for side in sides]
    self.truncated = int(sum(np.sum(size > width) for size, width in zip(sizes, widths, strict=True)))
    # the stream that there would be without what is cut
    self._offsets = [
      np.concatenate([[0], np.cumsum(np.minimum(size, width))]) for size, width in zip(sizes, widths, strict=True)
    ]
    pairs = len(sizes[0])
    self._first_pair = self._fill(pairs) if packing else np.arange(pairs + 1)
    self.num_rows = len(self._first_pair) - 1

  def _fill(self, pairs: int) -> np.ndarray:
    """The first pair of each row, and the number of pairs at the end."""
    limits = [
      np.searchsorted(offsets, offsets[:-1] + width, side="right") - 1
      for offsets, width in zip(self._offsets, self._widths, strict=True)
    ]
    following = np.minimum(*limits).tolist()
    first = [0]
    while first[-1] < pairs:
      first.append(following[first[-1]])
    return np.array(first)

  def read(self, rows: np.ndarray) -> tuple[Rows, ...]:
    real = np.minimum(rows, self.num_rows - 1)
    begin = self._first_pair[real]
    end = np.where(rows < self.num_rows, self._first_pair[real + 1], begin)
    out = []
    for side, offsets, width in zip(self._sides, self._offsets, self._widths, strict=True):
      starts, lengths = offsets[begin], offsets[end] - offsets[begin]
      segment_ids, positions = _segments(offsets, starts, lengths, width)
      document = np.maximum(begin[:, None] + segment_ids - 1, 0)
      tokens = side.tokens.take(side.offsets[document] + positions, mode="clip").astype(np.int32)
      tokens[segment_ids == 0] = self._pad
      out.append(Rows(tokens, segment_ids, positions))
    return tuple(out)


def _read_stream(side: Side, starts: np.ndarray, lengths: np.ndarray, width: int, pad: int) -> Rows:
  """Rows of consecutive tokens."""
  segment_ids, positions = _segments(side.offsets, starts, lengths, width)
  if lengths.min() == width:
    tokens = np.lib.stride_tricks.sliding_window_view(side.tokens, width)[starts].astype(np.int32)
  else:
    tokens = side.tokens.take(starts[:, None] + np.arange(width), mode="clip").astype(np.int32)
    tokens[segment_ids == 0] = pad
  return Rows(tokens, segment_ids, positions)


def _segments(
  offsets: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Segment ids and positions [R, width] of the rows starts .. starts + lengths of a stream of documents.

  Each row is a list of pieces: the documents that it meets, then its padding (perhaps empty).
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
