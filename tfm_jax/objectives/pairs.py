"""Two texts per row, masked: next sentence (Devlin et al. 2019) and sentence order (Lan et al. 2020) beside the masks.

A row is bos, text A, eos, text B, eos, of which A has token type 0 and B type 1. A and B are whole sentences of one
document, so that neither the first nor the last token of a text tells whether it stands where it belongs. Text in which
no sentence ends is cut anywhere. Rows hold one document each, whatever `data.packing` is; pieces of a single token give
blank rows. The other text of a next-sentence row ends with the sentence that fills the row as the true one does, so
that lengths tell little.
"""

from typing import ClassVar

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.masking import Masking
from tfm_jax.objectives.objective import INT, ROWS, Field, Fields, Objective, along_row, token_fields
from tfm_jax.objectives.plan import DocumentPlan, RowPlan, Rows, Side, Split, read_stream, take
from tfm_jax.objectives.words import pieces_of, sentence_ends

_CUT, _OTHER, _PLACE = range(10, 13)  # sites of `Draws`; `Masking` has those below
_SPECIALS = 3  # bos and two eos


class SentencePairs(Objective):
  """What the two objectives share: cutting a piece of text in two, and the row of both parts."""

  begins_with_bos: ClassVar[bool] = True
  adds_eos: ClassVar[bool] = False
  head: ClassVar[str] = "pretraining"
  token_types: ClassVar[int] = 2

  def setup(self) -> None:
    if self.seq_len < _SPECIALS + 2:
      raise UserError(f"data.seq_len={self.seq_len} is too short for two texts: set at least {_SPECIALS + 2}")
    self.row_tokens = self.seq_len - _SPECIALS
    self.masking = Masking(self.config, self.vocabulary, self.seq_len)
    self._kinds = pieces_of(self.vocabulary)

  @property
  def fields(self) -> Fields:
    return {
      **token_fields(self.seq_len, self.vocabulary.size),
      "token_types": along_row(self.seq_len, "types"),
      **self.masking.fields,
      "next_sentence": Field((), INT, "labels", ("batch",), 2),
      "rows": ROWS,
    }

  def check(self) -> None:
    self.masking.check(self.config.name)
    for name in ("bos", "eos"):
      self.vocabulary.require(name, self.config.name)

  def plan(self, split: Split, packing: bool) -> RowPlan:
    return self.pieces(split)

  def pieces(self, split: Split) -> "SentencePlan":
    """The pieces of documents that are cut in two."""
    return SentencePlan(split.sides[0], self.row_tokens, self._kinds, self.vocabulary.pad_id)

  def ends(self, tokens: np.ndarray) -> np.ndarray:
    """Which tokens are the last of a sentence, bool [R, L]."""
    return sentence_ends(self._kinds[tokens])

  def cut(self, draws: Draws, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The number of tokens of A, int [R]: drawn among the ends of sentences, or else among all, leaving none empty."""
    column = np.arange(tokens.shape[1])
    inner = column < (lengths - 1)[:, None]
    candidates = self.ends(tokens) & inner
    candidates = np.where(candidates.any(axis=1, keepdims=True), candidates, inner)
    place, used = draws.choose(_CUT, candidates, np.minimum(candidates.sum(axis=1), 1), 1)
    return np.where(used[:, 0], place[:, 0] + 1, 0)

  def pair(
    self, draws: Draws, a: np.ndarray, a_lengths: np.ndarray, b: np.ndarray, b_lengths: np.ndarray, label: np.ndarray
  ) -> dict[str, np.ndarray]:
    """The arrays of rows of two texts each: the first `lengths` tokens of int32 [R, L]. Rows without text are blank."""
    vocabulary, column = self.vocabulary, np.arange(self.seq_len)
    real, middle = (np.minimum(a_lengths, b_lengths) > 0)[:, None], 1 + a_lengths[:, None]
    end = middle + 1 + b_lengths[:, None]
    in_a, in_b = (column > 0) & (column < middle), (column > middle) & (column < end)
    last = a.shape[1] - 1
    from_a = np.take_along_axis(a, np.clip(column - 1 + 0 * middle, 0, last), axis=1)
    from_b = np.take_along_axis(b, np.clip(column - middle - 1, 0, last), axis=1)
    around = np.where(column == 0, vocabulary.bos_id, vocabulary.eos_id)
    valid = real & (column <= end)
    tokens = np.where(in_a, from_a, np.where(in_b, from_b, around))
    tokens = np.where(valid, tokens, vocabulary.pad_id).astype(np.int32)
    segment_ids = valid.astype(np.int32)
    types = (valid & (column > middle)).astype(np.int32)
    # Neither a word nor an n-gram spans both texts, as special tokens stand between them.
    masked = self.masking.apply(draws, tokens, segment_ids)
    return {
      **masked,
      "segment_ids": segment_ids,
      "positions": segment_ids * column.astype(np.int32),
      "token_types": types,
      "next_sentence": np.where(real[:, 0], label, 0).astype(np.int32),
    }


class SentenceOrder(SentencePairs):
  """Sentence order: half of the rows have B before A (label 1)."""

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    lengths = (source.segment_ids > 0).sum(axis=1)
    cut = self.cut(draws, source.tokens, lengths)
    rest = shifted(source.tokens, cut)
    swapped = draws.uniform(_OTHER, 1)[:, 0] < 0.5
    first, second = np.where(swapped, lengths - cut, cut), np.where(swapped, cut, lengths - cut)
    a, b = (np.where(swapped[:, None] == flag, rest, source.tokens) for flag in (True, False))
    return self.pair(draws, a, first, b, second, swapped)


class NextSentence(SentencePairs):
  """Next sentence: B of half of the rows (label 1) is text from elsewhere, which begins after a sentence if it can."""

  def plan(self, split: Split, packing: bool) -> RowPlan:
    if split.documents < 2:
      raise UserError(
        f"objective.name=nsp takes half of its second texts from another document, and the {split.name} split has "
        f"{split.documents}: set data.document (block, line or file) so that there are several, or objective.name=sop"
      )
    return _WithOther(split.sides[0], self.pieces(split), 2 * self.row_tokens)

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    assert target is not None
    lengths = (source.segment_ids > 0).sum(axis=1)
    cut = self.cut(draws, source.tokens, lengths)
    other = draws.uniform(_OTHER, 1)[:, 0] < 0.5
    rest, most = lengths - cut, self.row_tokens - cut
    # What is true of the true text is true of the other: whether a sentence ends before it, and at its end.
    whole_a, whole_b = (_at(self.ends(source.tokens), last) for last in (cut - 1, lengths - 1))
    begin = np.where(whole_a, _sentence_begin(self.ends(target.tokens), self.row_tokens, most), 0)
    elsewhere = shifted(target.tokens, begin)[:, : self.row_tokens]
    size = np.arange(self.row_tokens) + 1
    fits = self.ends(elsewhere) & (size <= most[:, None])
    room = (target.segment_ids > 0).sum(axis=1) - cut
    misses = np.where(fits, np.abs(size - room[:, None]), size[-1] + room.max())
    b_lengths = np.where(other & whole_b & fits.any(axis=1), misses.argmin(axis=1) + 1, rest)
    b = np.where(other[:, None], elsewhere, shifted(source.tokens, cut))
    return self.pair(draws, source.tokens, cut, b, b_lengths, other)


class SentencePlan:
  """Pieces of documents: from the first sentence that begins in each on, as many whole sentences as a row holds.

  A row may end in the next piece, so that few tokens are left over. Text in which no sentence ends is cut anywhere.
  """

  truncated = 0

  def __init__(self, side: Side, width: int, kinds: np.ndarray, pad: int):
    self._side, self._width, self._kinds, self._pad = side, width, kinds, pad
    self._pieces = DocumentPlan(side, width, 0, pad)
    self.num_rows = self._pieces.num_rows

  def read(self, rows: np.ndarray, draws: Draws) -> tuple[Rows, ...]:
    return (self.read_with_room(rows)[0],)

  def read_with_room(self, rows: np.ndarray) -> tuple[Rows, np.ndarray]:
    """The rows, and how many tokens [R] each would have if the sentence that did not fit had been cut."""
    document, starts, rest = self._pieces.places(rows)
    column = np.arange(2 * self._width)
    kinds = self._kinds[take(self._side, starts[:, None] + column)]
    ends = sentence_ends(np.where(column < rest[:, None], kinds, 0).astype(np.uint8))
    early = ends[:, : self._width]
    first = np.where((starts > document) & early.any(axis=1), early.argmax(axis=1) + 1, 0)
    most = np.minimum(rest - first, self._width)
    fits = ends & (column >= first[:, None]) & (column < (first + most)[:, None])
    lengths = np.where(fits.any(axis=1), len(column) - fits[:, ::-1].argmax(axis=1) - first, most)
    room = np.where(rest - first > self._width, self._width, lengths)
    begin = np.where(lengths > 0, starts + first, starts)  # blank rows stay in their document
    return read_stream(self._side, begin, lengths, self._width, self._pad), room


class _WithOther:
  """Pieces of documents, each with `width` tokens from a random place in the text outside its document.

  These run on into the following documents, and from the end of the text to its beginning, so that they are as many as
  are asked for. As many as the row has room for count as valid.
  """

  def __init__(self, side: Side, pieces: SentencePlan, width: int):
    self._side, self._pieces, self._width = side, pieces, width
    self.num_rows, self.truncated = pieces.num_rows, pieces.truncated

  def read(self, rows: np.ndarray, draws: Draws) -> tuple[Rows, ...]:
    own, room = self._pieces.read_with_room(rows)
    assert own.first is not None
    offsets, total = self._side.offsets, np.uint64(self._side.offsets[-1])
    begin, end = offsets[own.first], offsets[own.first + 1]
    others = total - (end - begin).astype(np.uint64)
    place = (draws.bits(_PLACE, 1)[:, 0] % np.maximum(others, np.uint64(1))).astype(np.int64)
    place = np.where(place >= begin, place + end - begin, place)
    column = np.arange(self._width)
    tokens = self._side.tokens[(place[:, None] + column) % int(total)].astype(np.int32)
    return own, Rows(tokens, (column < room[:, None]).astype(np.int32), np.zeros_like(tokens))


def _sentence_begin(ends: np.ndarray, width: int, most: np.ndarray) -> np.ndarray:
  """Where the first sentence begins that has at most most[r] tokens, among the first `width` places; 0: nowhere."""
  column = np.arange(ends.shape[1])
  following = np.minimum.accumulate(np.where(ends, column, 2 * len(column))[:, ::-1], axis=1)[:, ::-1]
  begins = ends[:, :width] & (following[:, 1 : width + 1] - column[:width] <= most[:, None])
  return np.where(begins.any(axis=1), begins.argmax(axis=1) + 1, 0)


def _at(flags: np.ndarray, places: np.ndarray) -> np.ndarray:
  """The flag at one place of each row, bool [R]; that of the first token for places before it."""
  return np.take_along_axis(flags, np.maximum(places, 0)[:, None], axis=1)[:, 0]


def shifted(tokens: np.ndarray, places: np.ndarray) -> np.ndarray:
  """Each row moved left by as many places; what comes in at the right is arbitrary."""
  column = np.minimum(np.arange(tokens.shape[1]) + places[:, None], tokens.shape[1] - 1)
  return np.take_along_axis(tokens, column, axis=1)
