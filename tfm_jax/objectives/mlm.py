"""Masked language modelling (Devlin et al. 2019), with new masks in each epoch."""

from typing import ClassVar

import numpy as np

from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.masking import Masking
from tfm_jax.objectives.objective import ROWS, Fields, Objective, token_fields
from tfm_jax.objectives.plan import Rows


class MaskedRows(Objective):
  """Rows with masks, of which the labels are the masked tokens. A subclass sets `masking`."""

  adds_bos: ClassVar[bool] = True
  masking: Masking

  @property
  def fields(self) -> Fields:
    return {**token_fields(self.seq_len, self.vocabulary.size), **self.masking.fields, "rows": ROWS}

  def check(self) -> None:
    self.masking.check(self.config.name)

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    masked = self.masking.apply(draws, source.tokens, source.segment_ids)
    return {**masked, "segment_ids": source.segment_ids, "positions": source.positions}


class MaskedLanguageModel(MaskedRows):
  """Predicts tokens that are hidden: see `Masking`."""

  def setup(self) -> None:
    self.masking = Masking(self.config, self.vocabulary, self.seq_len)
