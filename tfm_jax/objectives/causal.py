"""Causal language modelling: each token from those before it in its document."""

from typing import ClassVar

import numpy as np

from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import ROWS, Fields, Objective, along_row, token_fields
from tfm_jax.objectives.plan import Plan, Rows, Split, stream_plan


class CausalLanguageModel(Objective):
  """A row reads one token more than it takes: the target of its last position."""

  predicts_text: ClassVar[bool] = True

  @property
  def fields(self) -> Fields:
    return {
      **token_fields(self.seq_len, self.vocabulary.size),
      "targets": along_row(self.seq_len, "labels", self.vocabulary.size),
      "weights": along_row(self.seq_len, "weights"),
      "rows": ROWS,
    }

  def plan(self, split: Split, packing: bool) -> Plan:
    return stream_plan(split.sides[0], self.row_tokens, 1, self.vocabulary.pad_id, packing)

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    here, following = source.segment_ids[:, :-1], source.segment_ids[:, 1:]
    return {
      "inputs": np.ascontiguousarray(source.tokens[:, :-1]),
      "targets": np.ascontiguousarray(source.tokens[:, 1:]),
      "weights": ((here == following) & (here > 0)).astype(np.float32),
      "segment_ids": np.ascontiguousarray(here),
      "positions": np.ascontiguousarray(source.positions[:, :-1]),
    }
