"""Masked language modelling (Devlin et al. 2019), with new masks in each epoch."""

from typing import ClassVar

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import (
  FLOAT,
  INT,
  ROWS,
  Field,
  Fields,
  Objective,
  rate,
  token_fields,
)
from tfm_jax.objectives.plan import Rows

_SELECT, _ACTION, _TOKEN = range(3)  # sites of `Draws`


class MaskedLanguageModel(Objective):
  """Predicts round(mask_rate * n) of a row's n ordinary tokens, at least one. Special tokens are never predicted."""

  adds_bos: ClassVar[bool] = True

  def setup(self) -> None:
    config, vocabulary, seq_len = self.config, self.vocabulary, self.seq_len
    for name in ("mask_rate", "random_rate", "keep_rate"):
      rate(name, getattr(config, name))
    if config.random_rate + config.keep_rate > 1:
      raise UserError("objective.random_rate + objective.keep_rate is above 1: they are shares of the masked tokens")
    self.predictions = int(_count(np.array([seq_len]), config.mask_rate)[0])
    self._special = np.zeros(vocabulary.size, bool)
    self._special[[i for i in vocabulary.special_ids if 0 <= i < vocabulary.size]] = True
    self._ordinary = np.flatnonzero(~self._special).astype(np.int32)

  @property
  def fields(self) -> Fields:
    shape, axes = (self.predictions,), ("batch", None)
    return {
      **token_fields(self.seq_len, self.vocabulary.size),
      "mlm_positions": Field(shape, INT, "places", axes),
      "targets": Field(shape, INT, "labels", axes, self.vocabulary.size),
      "weights": Field(shape, FLOAT, "weights", axes),
      "rows": ROWS,
    }

  def check(self) -> None:
    self.vocabulary.require("mask", "mlm")
    if not len(self._ordinary):
      raise UserError("objective.name=mlm: the vocabulary has only special tokens; raise tokenizer.vocab_size")

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    candidates = (source.segment_ids > 0) & ~self._special[source.tokens]
    counts = _count(candidates.sum(axis=1), self.config.mask_rate)
    positions, used = draws.choose(_SELECT, candidates, counts, self.predictions)
    targets = np.where(used, np.take_along_axis(source.tokens, positions, axis=1), np.int32(0))

    action = draws.uniform(_ACTION, self.predictions)
    random = self._ordinary[draws.integers(_TOKEN, self.predictions, len(self._ordinary))]
    keep, replace = self.config.keep_rate, self.config.keep_rate + self.config.random_rate
    written = np.where(action < keep, targets, np.where(action < replace, random, np.int32(self.vocabulary.mask_id)))
    inputs = source.tokens.copy()
    row, _ = np.nonzero(used)
    inputs[row, positions[used]] = written[used]
    return {
      "inputs": inputs,
      "segment_ids": source.segment_ids,
      "positions": source.positions,
      "mlm_positions": positions,
      "targets": targets,
      "weights": used.astype(np.float32),
    }


def _count(ordinary: np.ndarray, mask_rate: float) -> np.ndarray:
  """The number of predicted tokens in rows with this many ordinary tokens."""
  return np.minimum(np.maximum(np.round(mask_rate * ordinary).astype(np.int64), 1), ordinary)
