"""Prefix language modelling (Raffel et al. 2020): the beginning of each document is read in both directions, and the
rest is predicted token by token."""

from typing import ClassVar

import numpy as np

from tfm_jax.objectives.causal import CausalLanguageModel
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Fields, Objective, along_row
from tfm_jax.objectives.plan import Rows

_CUT = 0  # the only use of random numbers


class PrefixLanguageModel(Objective):
  """Of each document in a row, a prefix of 0 to all but one of its tokens; all lengths are equally likely."""

  reads_prefixes: ClassVar[bool] = True
  lookahead: ClassVar[int] = 1

  def setup(self) -> None:
    self._causal = CausalLanguageModel(self.config, self.vocabulary, self.seq_len, self.target_len, self.documents)

  @property
  def fields(self) -> Fields:
    return {**self._causal.fields, "prefix": along_row(self.seq_len, "prefix", 2)}

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    arrays = self._causal.make(draws, source)
    segments = arrays["segment_ids"]
    # A segment's number is that of the column where it begins; a document that goes on from the last row begins at 0.
    begin = np.ones_like(segments, bool)
    begin[:, 1:] = segments[:, 1:] != segments[:, :-1]
    column = np.arange(self.seq_len)
    first = np.maximum.accumulate(np.where(begin, column, 0), axis=1)
    place = column - first
    flat = (np.arange(len(first))[:, None] * self.seq_len + first).ravel()
    lengths = np.bincount(flat, minlength=first.size)[flat].reshape(first.shape)
    share = np.take_along_axis(draws.uniform(_CUT, self.seq_len), first, axis=1)
    cut = np.floor(share * lengths)
    prefix = (place < cut) & (segments > 0)
    known = np.zeros_like(prefix)  # the target is a token of the prefix
    known[:, :-1] = prefix[:, 1:]
    weights = arrays["weights"] * ~(known & (place + 1 < lengths))
    return {**arrays, "weights": weights.astype(np.float32), "prefix": prefix.astype(np.int32)}
