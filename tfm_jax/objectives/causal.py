"""Causal language modelling: each token from those before it in its document."""

from typing import ClassVar

import numpy as np

from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import FLOAT, Fields, Objective, Rows, row_fields


class CausalLanguageModel(Objective):
  """A row reads one token more than it takes: the target of its last position."""

  lookahead: ClassVar[int] = 1

  @property
  def fields(self) -> Fields:
    lengths = dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), self.seq_len)
    return row_fields(lengths, weights=((self.seq_len,), FLOAT))

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    here, following = source.segment_ids[:, :-1], source.segment_ids[:, 1:]
    return {
      "inputs": np.ascontiguousarray(source.tokens[:, :-1]),
      "targets": np.ascontiguousarray(source.tokens[:, 1:]),
      "weights": ((here == following) & (here > 0)).astype(np.float32),
      "segment_ids": np.ascontiguousarray(here),
      "positions": np.ascontiguousarray(source.positions[:, :-1]),
    }
