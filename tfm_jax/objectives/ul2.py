"""UL2's mixture of denoisers (Tay et al. 2022): short spans, long or many spans, or the end of the row.

Each row is corrupted by one of them, which a mode token in front of the encoder's input names.
The mode tokens are the last three sentinels of the tokenizer. A row is one segment: documents in it are concatenated.
"""

from typing import NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Fields, Objective, encoder_decoder_arrays, encoder_decoder_fields
from tfm_jax.objectives.plan import Rows
from tfm_jax.objectives.span_corruption import corrupt, noise_counts, noise_mask

_DENOISER, _END, _SHIFT = range(10, 13)  # sites of `Draws`; those of span corruption are below

R, S, X = range(3)  # modes: regular, sequential, extreme


class Denoiser(NamedTuple):
  """One of the ways to corrupt a row: its mode, the share of tokens that is removed, and the mean length of a span."""

  mode: int
  density: float
  mean_span: float


DENOISERS = (
  Denoiser(R, 0.15, 3.0),
  Denoiser(R, 0.15, 8.0),
  Denoiser(X, 0.5, 3.0),
  Denoiser(X, 0.5, 8.0),
  Denoiser(X, 0.15, 64.0),
  Denoiser(X, 0.5, 64.0),
  Denoiser(S, 0.25, 0.0),  # the end of the row, of any length up to half of it: a quarter in the mean
)
"""All are equally likely, as in the paper's final mixture."""


class MixtureOfDenoisers(Objective):
  """Takes as many tokens per row as fit under every denoiser.

  Attributes:
    runs: most runs of removed tokens of a row, or of kept ones: each becomes a sentinel.
  """

  def setup(self) -> None:
    seq_len, target_len = self.seq_len, self.target_len
    lengths = np.arange(4, 2 * seq_len + 4)
    fits = np.ones(len(lengths), bool)
    targets = np.zeros(len(lengths), np.int64)
    for denoiser in DENOISERS:
      noise, spans, kept_runs = _most(denoiser, lengths)
      # The encoder also reads a mode token and eos. The end of a row may be as short as one token.
      kept = lengths - (1 if denoiser.mode == S else noise)
      fits &= (kept + spans + 2 <= seq_len) & ((target_len == 0) | (noise + kept_runs + 1 <= target_len))
      targets = np.maximum(targets, noise + kept_runs + 1)
    if not fits.any():
      raise UserError(f"data.seq_len={seq_len} with data.target_len={target_len} is too short for ul2")
    longest = int(np.flatnonzero(fits)[-1])
    self.row_tokens, self.target_len = int(lengths[longest]), target_len or int(targets[longest])
    self.runs = max(int(np.max(_most(denoiser, lengths[longest : longest + 1])[1:])) for denoiser in DENOISERS)

  @property
  def fields(self) -> Fields:
    return encoder_decoder_fields(self.seq_len, self.target_len, self.vocabulary.size)

  def check(self) -> None:
    self.vocabulary.require("eos", "ul2")
    needed = self.runs + 3
    if len(self.vocabulary.sentinel_ids) < needed:
      raise UserError(
        f"a row of {self.row_tokens} tokens has up to {self.runs} spans and objective.name=ul2 has 3 mode "
        f"tokens, but the tokenizer has {len(self.vocabulary.sentinel_ids)} sentinels: set "
        f"tokenizer.sentinels={max(100, needed)}"
      )

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    valid = source.segment_ids > 0
    chosen = draws.integers(_DENOISER, 1, len(DENOISERS))[:, 0]
    removed = np.zeros_like(valid)
    for number, denoiser in enumerate(DENOISERS):
      rows = np.flatnonzero(chosen == number)
      if len(rows):
        removed[rows] = _removed(denoiser, draws.part(rows), valid[rows].sum(axis=1), valid.shape[1])
    modes = np.array(self.vocabulary.sentinel_ids[-3:], np.int32)
    first = modes[np.array([denoiser.mode for denoiser in DENOISERS])[chosen]]
    pad = self.vocabulary.pad_id
    encoder = corrupt(self.vocabulary, self.runs, source.tokens, valid, removed, self.seq_len, first)
    decoder = corrupt(self.vocabulary, self.runs, source.tokens, valid, ~removed, self.target_len)
    return encoder_decoder_arrays(encoder, decoder, pad, pad)


def _most(denoiser: Denoiser, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(most removed tokens, most runs of removed tokens, most runs of kept ones) of rows of these lengths."""
  one = np.ones_like(lengths)
  if denoiser.mode == S:
    return np.maximum(lengths // 2, 1), one, one
  noise, spans = noise_counts(lengths, denoiser.density, denoiser.mean_span)
  return noise, spans, spans + 1


def _removed(denoiser: Denoiser, draws: Draws, lengths: np.ndarray, width: int) -> np.ndarray:
  """Which tokens are removed, bool [R, width]; none of rows below two tokens."""
  if denoiser.mode == S:
    count = 1 + np.floor(draws.uniform(_END, 1)[:, 0] * np.maximum(lengths // 2, 1)).astype(np.int64)
    begin = np.where(lengths > 1, lengths - count, lengths)
    column = np.arange(width)
    return (column >= begin[:, None]) & (column < lengths[:, None])
  mask = noise_mask(draws, lengths, *noise_counts(lengths, denoiser.density, denoiser.mean_span), width)
  # T5's rule removes the end of each row; a single span would always be it, as in S. So a part of the kept tokens
  # before the first span moves behind the last one, but never all of them.
  shift = np.floor(draws.uniform(_SHIFT, 1)[:, 0] * mask.argmax(axis=1)).astype(np.int64)
  column = np.arange(width) + np.zeros_like(lengths)[:, None]
  index = (column + shift[:, None]) % np.maximum(lengths, 1)[:, None]
  return np.take_along_axis(mask, np.where(column < lengths[:, None], index, column), axis=1)
