"""A made-up objective with a plan of its own: pairs of documents that follow each other, or do not. No masks."""

from typing import ClassVar

import numpy as np

from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import FLOAT, INT, ROWS, Field, Fields, Objective, token_fields
from tfm_jax.objectives.plan import RowPlan, Rows, Split, WholePlan

_OTHER, _WHICH = 10, 11  # sites of the draws


class _Pairs:
  """Document n with the one after it, or, half of the time, with any."""

  def __init__(self, documents: RowPlan):
    self._documents, self.truncated = documents, documents.truncated
    self.num_rows = documents.num_rows - 1

  def read(self, rows: np.ndarray, draws: Draws) -> tuple[Rows, ...]:
    other = draws.uniform(_OTHER, 1)[:, 0] < 0.5
    second = np.where(other, draws.integers(_WHICH, 1, self.num_rows + 1)[:, 0], rows + 1)
    real = rows < self.num_rows
    blank = self.num_rows + 1
    (first,) = self._documents.read(np.where(real, rows, blank), draws)
    (following,) = self._documents.read(np.where(real, second, blank), draws)
    labels = np.where(real, second == rows + 1, -1).astype(np.int32)
    return first, Rows(following.tokens, following.segment_ids, following.positions, following.first, labels)


class NextSentence(Objective):
  """Are the two halves of a row a document and the next?"""

  adds_bos: ClassVar[bool] = True

  @property
  def fields(self) -> Fields:
    return {
      **token_fields(2 * self.seq_len, self.vocabulary.size),
      "targets": Field((), INT, "labels", ("batch",), 2),
      "weights": Field((), FLOAT, "weights", ("batch",)),
      "rows": ROWS,
    }

  def plan(self, split: Split, packing: bool) -> RowPlan:
    keep = [np.minimum(np.diff(split.sides[0].offsets), self.seq_len)]
    return _Pairs(WholePlan(split, keep, [self.seq_len], packing=False, pad=self.vocabulary.pad_id))

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    assert target is not None and target.labels is not None
    both = [(a, b) for a, b in ((source.tokens, target.tokens), (source.positions, target.positions))]
    tokens, positions = (np.concatenate(pair, axis=1) for pair in both)
    return {
      "inputs": tokens,
      "segment_ids": np.concatenate([source.segment_ids, 2 * target.segment_ids], axis=1),
      "positions": positions,
      "targets": np.maximum(target.labels, 0),
      "weights": (target.labels >= 0).astype(np.float32),
    }
