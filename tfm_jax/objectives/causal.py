"""Causal language modelling: predicts each token from the tokens before it in its document."""

from typing import ClassVar

import numpy as np

from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import ROWS, Fields, Objective, along_row, token_fields
from tfm_jax.objectives.plan import Rows


class CausalLanguageModel(Objective):
  """A row reads one token more than its `seq_len`: the target of its last position."""

  predicts_text: ClassVar[bool] = True
  lookahead: ClassVar[int] = 1

  @property
  def fields(self) -> Fields:
    return {
      **token_fields(self.seq_len, self.vocabulary.size),
      "targets": along_row(self.seq_len, "labels", self.vocabulary.size),
      "weights": along_row(self.seq_len, "weights"),
      "rows": ROWS,
    }

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    segment_ids, next_segment_ids = source.segment_ids[:, :-1], source.segment_ids[:, 1:]
    return {
      "inputs": np.ascontiguousarray(source.tokens[:, :-1]),
      "targets": np.ascontiguousarray(source.tokens[:, 1:]),
      "weights": ((segment_ids == next_segment_ids) & (segment_ids > 0)).astype(np.float32),
      "segment_ids": np.ascontiguousarray(segment_ids),
      "positions": np.ascontiguousarray(source.positions[:, :-1]),
    }
