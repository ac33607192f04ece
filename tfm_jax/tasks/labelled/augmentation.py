"""Augmentation of training rows: tokens or spans that are hidden, neighbours that change places.

All draws are functions of (seed, epoch, row), so that a resumed run repeats them.
"""

import dataclasses

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Vocabulary

_SPAN = 3  # tokens of a hidden span
_TOKENS, _SPANS, _SWAPS = 100, 101, 102  # sites of the draws


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Shares of the ordinary tokens of a row, each in [0, 1); special tokens stay.

  Attributes:
    hide: tokens that become the mask token, or else the unknown one.
    hide_spans: tokens that are hidden in spans of three.
    swap: tokens that change places with the one after them; it moves labels of tokens apart from their words.
    vocabulary: the special ids.
  """

  hide: float
  hide_spans: float
  swap: float
  vocabulary: Vocabulary

  def __post_init__(self) -> None:
    for name, value in (("hide", self.hide), ("hide_spans", self.hide_spans), ("swap", self.swap)):
      if not 0 <= value < 1:
        raise UserError(f"task.{name}={value:g} must lie in [0, 1)")
    for name, value in (("hide", self.hide), ("hide_spans", self.hide_spans)):
      if value and self._instead < 0:
        raise UserError(
          f"task.{name}={value:g} puts the mask token or the unknown one in place of others, and this tokenizer has "
          f"neither: set it to 0"
        )

  @property
  def _instead(self) -> int:
    """The id of hidden tokens; -1: the tokenizer has none for them."""
    return self.vocabulary.mask_id if self.vocabulary.mask_id >= 0 else self.vocabulary.unk_id

  @property
  def active(self) -> bool:
    """Whether it changes anything."""
    return bool(self.hide or self.hide_spans or self.swap)

  def __call__(self, tokens: np.ndarray, draws: Draws) -> np.ndarray:
    """The tokens [R, T] of rows, changed."""
    length = tokens.shape[1]
    ordinary = ~np.isin(tokens, np.array(self.vocabulary.special_ids))
    if self.swap:
      first = (draws.uniform(_SWAPS, length) < self.swap) & ordinary
      first[:, :-1] &= ordinary[:, 1:]
      first[:, -1] = False
      first[:, 1:] &= ~first[:, :-1]  # of a run of swaps, every second one may remain
      row, place = np.nonzero(first)
      tokens = tokens.copy()
      tokens[row, place], tokens[row, place + 1] = tokens[row, place + 1], tokens[row, place]
    hidden = draws.uniform(_TOKENS, length) < self.hide
    starts = draws.uniform(_SPANS, length) < self.hide_spans / _SPAN
    for shift in range(_SPAN):
      hidden[:, shift:] |= starts[:, : length - shift]
    return np.where(hidden & ordinary, np.int32(self._instead), tokens)
