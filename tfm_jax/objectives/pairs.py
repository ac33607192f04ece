"""Two texts per row, masked: next sentence (Devlin et al. 2019) and sentence order (Lan et al. 2020) beside the masks.

A row is bos, text A, eos, text B, eos, of which A has token type 0 and B type 1. A and B are a piece of one document,
cut after a sentence, or anywhere in a piece that has none. Rows hold one document each, whatever `data.packing` is;
pieces of a single token give blank rows. The other text of a next-sentence row is as long as the true one, so that
lengths tell nothing.
"""

from typing import ClassVar

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.masking import Masking
from tfm_jax.objectives.objective import INT, ROWS, Field, Fields, Objective, along_row, token_fields
from tfm_jax.objectives.plan import DocumentPlan, RowPlan, Rows, Side, Split
from tfm_jax.objectives.words import ENDS_SENTENCE, pieces_of

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
    self._ends = pieces_of(self.vocabulary) & ENDS_SENTENCE > 0

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

  def pieces(self, split: Split) -> DocumentPlan:
    """The pieces of documents that are cut in two."""
    return DocumentPlan(split.sides[0], self.row_tokens, 0, self.vocabulary.pad_id)

  def cut(self, draws: Draws, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The number of tokens of A, int [R]: drawn among the ends of sentences, or else among all, leaving none empty."""
    column = np.arange(tokens.shape[1])
    inner = column < (lengths - 1)[:, None]
    candidates = self._ends[tokens] & inner
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
    half = self._ends[target.tokens[:, : self.row_tokens]]
    begin = np.where(half.any(axis=1), half.argmax(axis=1) + 1, 0)
    elsewhere = shifted(target.tokens, begin)[:, : self.row_tokens]
    b = np.where(other[:, None], elsewhere, shifted(source.tokens, cut))
    return self.pair(draws, source.tokens, cut, b, lengths - cut, other)


class _WithOther:
  """Pieces of documents, each with `width` tokens from a random place in the text outside its document.

  They run on into the following documents, and from the end of the text to its beginning, so that they are as many as
  are asked for.
  """

  def __init__(self, side: Side, pieces: DocumentPlan, width: int):
    self._side, self._pieces, self._width = side, pieces, width
    self.num_rows, self.truncated = pieces.num_rows, pieces.truncated

  def read(self, rows: np.ndarray, draws: Draws) -> tuple[Rows, ...]:
    (own,) = self._pieces.read(rows, draws)
    assert own.first is not None
    offsets, total = self._side.offsets, np.uint64(self._side.offsets[-1])
    begin, end = offsets[own.first], offsets[own.first + 1]
    others = total - (end - begin).astype(np.uint64)
    place = (draws.bits(_PLACE, 1)[:, 0] % np.maximum(others, np.uint64(1))).astype(np.int64)
    place = np.where(place >= begin, place + end - begin, place)
    index = (place[:, None] + np.arange(self._width)) % int(total)
    tokens = self._side.tokens[index].astype(np.int32)
    return own, Rows(tokens, np.ones_like(tokens), np.zeros_like(tokens))


def shifted(tokens: np.ndarray, places: np.ndarray) -> np.ndarray:
  """Each row moved left by as many places; what comes in at the right is arbitrary."""
  column = np.minimum(np.arange(tokens.shape[1]) + places[:, None], tokens.shape[1] - 1)
  return np.take_along_axis(tokens, column, axis=1)
