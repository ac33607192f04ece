"""BART's denoising (Lewis et al. 2020): the encoder reads a corrupted row, the decoder writes the row as it was.

In this order: sentences change places, the row is rotated, single tokens are deleted, and spans become one mask each
(text infilling). A row is one segment: documents in it are concatenated.
"""

import math
from typing import ClassVar

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import (
  Fields,
  Objective,
  encoder_decoder_arrays,
  encoder_decoder_fields,
  rate,
)
from tfm_jax.objectives.plan import Rows
from tfm_jax.objectives.words import ENDS_SENTENCE, pieces_of, sentence_ends

_SENTENCES, _ORDER, _ROTATED, _FIRST, _DELETED, _LENGTHS, _PLACES, _SHUFFLED = range(8)  # sites of `Draws`
_ROUNDS = 16  # longest span is this many times the mean


class Denoising(Objective):
  """A row is bos, text, eos on both sides; the decoder starts with eos, as BART's does."""

  begins_with_bos: ClassVar[bool] = True
  targets_begin: ClassVar[str] = "eos"

  def setup(self) -> None:
    config = self.config
    for name in ("noise_density", "permute_rate", "rotate_rate", "delete_rate"):
      rate(name, getattr(config, name))
    if config.mean_span <= 0:
      raise UserError(f"objective.mean_span={config.mean_span:g} must be above 0")
    if self.seq_len < 4:
      raise UserError(f"data.seq_len={self.seq_len} is too short for bart: set at least 4")
    self.row_tokens = self.seq_len - 2
    self.target_len = self.target_len or self.seq_len
    if self.target_len < self.seq_len:
      raise UserError(
        f"data.target_len={self.target_len} is below data.seq_len={self.seq_len}: bart writes the whole row again"
      )
    self._kinds = pieces_of(self.vocabulary).copy()
    if self.vocabulary.eos_id >= 0:
      self._kinds[self.vocabulary.eos_id] |= ENDS_SENTENCE
    # The probability of each length of a span, 0, 1, 2, ...: Poisson.
    lengths = np.arange(1, int(_ROUNDS * max(config.mean_span, 1.0)))
    weights = np.cumsum(np.concatenate([[0.0], np.log(config.mean_span) - np.log(lengths)]))
    shares = np.exp(weights - weights.max())
    self._cumulative = np.cumsum(shares / shares.sum())[:-1]

  @property
  def fields(self) -> Fields:
    return encoder_decoder_fields(self.seq_len, self.target_len, self.vocabulary.size)

  def check(self) -> None:
    for name in ("bos", "eos", "mask"):
      self.vocabulary.require(name, "bart")

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    lengths = (source.segment_ids > 0).sum(axis=1)
    last = np.take_along_axis(source.tokens, np.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
    lengths = lengths - ((last == self.vocabulary.eos_id) & (lengths > 0))  # the row's own eos follows
    tokens = self._rotated(draws, self._permuted(draws, source.tokens, lengths), lengths)
    tokens, kept = self._deleted(draws, tokens, lengths)
    noisy, kept = self.infilled(draws, tokens, kept)
    return encoder_decoder_arrays(
      self._wrapped(noisy, np.where(lengths > 0, kept, -2), self.seq_len),
      self._wrapped(source.tokens, np.where(lengths > 0, lengths, -2), self.target_len),
      self.vocabulary.eos_id,
      self.vocabulary.pad_id,
    )

  def _permuted(self, draws: Draws, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`permute_rate` of the sentences of each row change places among themselves."""
    if not self.config.permute_rate:
      return tokens
    width = tokens.shape[1]
    ends = sentence_ends(self._kinds[tokens]) & (np.arange(width) < (lengths - 1)[:, None])
    sentence = np.zeros(tokens.shape, np.int64)
    sentence[:, 1:] = np.cumsum(ends[:, :-1], axis=1)
    count = ends.sum(axis=1) + 1
    moved = np.ceil(self.config.permute_rate * count).astype(np.int64)
    places, used = draws.choose(_SENTENCES, np.arange(width) < count[:, None], moved, max(int(np.max(moved)), 1))
    keys = np.where(used, draws.uniform(_ORDER, used.shape[1]), 2.0)
    shuffled = np.take_along_axis(places, np.argsort(keys, axis=1, kind="stable"), axis=1)
    rank = np.broadcast_to(np.arange(width), tokens.shape).copy()  # the new place of each sentence
    row = np.nonzero(used)[0]
    rank[row, shuffled[used]] = places[used]
    key = np.where(np.arange(width) < lengths[:, None], np.take_along_axis(rank, sentence, axis=1), width)
    return np.take_along_axis(tokens, np.argsort(key, axis=1, kind="stable"), axis=1)

  def _rotated(self, draws: Draws, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`rotate_rate` of the rows begin at any of their tokens, and end with what stood before it."""
    if not self.config.rotate_rate:
      return tokens
    turned = draws.uniform(_ROTATED, 1)[:, 0] < self.config.rotate_rate
    begin = np.where(turned, np.floor(draws.uniform(_FIRST, 1)[:, 0] * lengths).astype(np.int64), 0)
    column = np.arange(tokens.shape[1])
    index = (column + begin[:, None]) % np.maximum(lengths, 1)[:, None]
    return np.take_along_axis(tokens, np.where(column < lengths[:, None], index, column), axis=1)

  def _deleted(self, draws: Draws, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`delete_rate` of the tokens of each row are left out. Returns tokens and lengths."""
    if not self.config.delete_rate:
      return tokens, lengths
    column = np.arange(tokens.shape[1])
    count = np.round(self.config.delete_rate * lengths).astype(np.int64)
    places, used = draws.choose(_DELETED, column < lengths[:, None], count, max(int(np.max(count)), 1))
    gone = np.zeros(tokens.shape, bool)
    gone[np.nonzero(used)[0], places[used]] = True
    order = np.argsort(gone | (column >= lengths[:, None]), axis=1, kind="stable")
    return np.take_along_axis(tokens, order, axis=1), lengths - count

  def infilled(self, draws: Draws, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans become one mask each; a span of no token is a mask between two tokens. Returns tokens and lengths.

    round(noise_density * n) of n tokens are removed, in spans of Poisson lengths of which one is cut to fit. Every
    order of kept tokens and spans is equally likely. Rows never become longer: spans of no token beyond that are left
    out.
    """
    rows, width = tokens.shape
    count = np.round(self.config.noise_density * lengths).astype(np.int64)
    # From settings alone, as a row must not depend on the others; spans of the mean length need half of the slots.
    slots = max(8, math.ceil(2 * self.config.noise_density * width / min(max(self.config.mean_span, 0.1), 1.0)))
    drawn = np.searchsorted(self._cumulative, draws.uniform(_LENGTHS, slots), side="right")
    before = np.cumsum(drawn, axis=1) - drawn
    sizes = np.where(before < count[:, None], np.minimum(drawn, count[:, None] - before), -1)  # -1: not used
    removed = np.maximum(sizes, 0).sum(axis=1)  # below `count` only if the slots end before
    empty, room = sizes == 0, removed - (sizes > 0).sum(axis=1)
    sizes[empty & (np.cumsum(empty, axis=1) > room[:, None])] = -1
    masks = (sizes >= 0).sum(axis=1)
    result = lengths - removed + masks
    column = np.arange(width)
    places, used = draws.choose(_PLACES, column < result[:, None], masks, min(slots, width))
    is_mask = np.zeros((rows, width), bool)
    is_mask[np.nonzero(used)[0], places[used]] = True
    # The sizes of used spans at the masks, in random order: the one that was cut to fit is any of them.
    keys = np.where(sizes < 0, 1.0, draws.uniform(_SHUFFLED, slots))
    in_order = np.take_along_axis(sizes, np.argsort(keys, axis=1, kind="stable"), axis=1)
    skipped = np.zeros((rows, width), np.int64)
    skipped[is_mask] = in_order[np.arange(slots) < masks[:, None]]
    # Each mask stands for its span, so what follows is read `size - 1` tokens further.
    index = column + np.cumsum(np.where(is_mask, skipped - 1, 0), axis=1)
    out = np.where(is_mask, self.vocabulary.mask_id, np.take_along_axis(tokens, np.clip(index, 0, width - 1), axis=1))
    return out.astype(np.int32), result

  def _wrapped(self, tokens: np.ndarray, lengths: np.ndarray, width: int) -> Rows:
    """bos, the first `lengths` tokens, eos and padding; a length of -2 gives padding alone."""
    column = np.arange(width, dtype=np.int32)
    inner = np.take_along_axis(tokens, np.clip(column - 1, 0, tokens.shape[1] - 1)[None].repeat(len(tokens), 0), axis=1)
    end = lengths[:, None] + 1
    text = np.where(column == 0, self.vocabulary.bos_id, np.where(column == end, self.vocabulary.eos_id, inner))
    segment_ids = (column <= end).astype(np.int32)
    return Rows(
      np.where(segment_ids > 0, text, self.vocabulary.pad_id).astype(np.int32), segment_ids, segment_ids * column
    )
