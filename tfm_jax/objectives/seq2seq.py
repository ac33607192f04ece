"""Sequence to sequence: parallel text (Sutskever et al. 2014), or the continuation of a single text."""

from typing import ClassVar

import numpy as np

from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import (
  Fields,
  Objective,
  encoder_decoder_arrays,
  encoder_decoder_fields,
)
from tfm_jax.objectives.plan import RowPlan, Rows, Split, WholePlan


class SequenceToSequence(Objective):
  """Source -> target of pairs, several per row if packed. Without pairs: the first part of a row -> the rest."""

  sides: ClassVar[int] = 2
  predicts_text: ClassVar[bool] = True
  targets_begin: ClassVar[str] = "bos"

  def setup(self) -> None:
    self.target_len = self.target_len or self.seq_len
    self.row_tokens = self.seq_len + self.target_len

  @property
  def fields(self) -> Fields:
    return encoder_decoder_fields(self.seq_len, self.target_len, self.vocabulary.size)

  def check(self) -> None:
    self.vocabulary.require("eos", "seq2seq")

  def plan(self, split: Split, packing: bool) -> RowPlan:
    if len(split.sides) == 1:
      return super().plan(split, packing)
    widths = (self.seq_len, self.target_len)
    keep = [np.minimum(np.diff(side.offsets), width) for side, width in zip(split.sides, widths, strict=True)]
    return WholePlan(split, keep, widths, packing, self.vocabulary.pad_id)

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    if target is None:
      source, target = self._continuation(source)
    pad = self.vocabulary.pad_id
    first = self.vocabulary.bos_id if self.vocabulary.bos_id >= 0 else pad
    return encoder_decoder_arrays(source, target, first, pad)

  def _continuation(self, rows: Rows) -> tuple[Rows, Rows]:
    """Cuts each row in the proportion of seq_len to target_len; documents in it are concatenated."""
    lengths = (rows.segment_ids > 0).sum(axis=1)
    cuts = (lengths * self.seq_len + self.row_tokens - 1) // self.row_tokens
    source = self._part(rows.tokens, np.zeros_like(cuts), cuts, self.seq_len)
    return source, self._part(rows.tokens, cuts, lengths, self.target_len)

  def _part(self, tokens: np.ndarray, begin: np.ndarray, end: np.ndarray, width: int) -> Rows:
    """Columns begin .. end - 1 of each row, moved to the left edge and padded to `width`."""
    column = np.arange(width)
    valid = column < (end - begin)[:, None]
    index = np.minimum(begin[:, None] + column, tokens.shape[1] - 1)
    moved = np.where(valid, np.take_along_axis(tokens, index, axis=1), np.int32(self.vocabulary.pad_id))
    segment_ids = valid.astype(np.int32)
    return Rows(moved, segment_ids, segment_ids * column.astype(np.int32))
