"""T5's span corruption (Raffel et al. 2020): spans become sentinels, and the decoder predicts the removed spans.

The numbers of noise tokens and spans are those of `random_spans_helper` and `random_spans_noise_mask` in
google-research/text-to-text-transfer-transformer. A row is one segment: documents in it are concatenated.
"""

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import (
  Fields,
  Objective,
  Vocabulary,
  encoder_decoder_arrays,
  encoder_decoder_fields,
)
from tfm_jax.objectives.plan import Rows

_NOISE, _KEPT = range(2)  # sites of `Draws`


class SpanCorruption(Objective):
  """Takes as many tokens per row as fit: the corrupted row into seq_len and its targets into target_len.

  Attributes:
    noise: removed tokens of a full row.
    spans: removed spans of a full row.
  """

  def setup(self) -> None:
    config, seq_len, target_len = self.config, self.seq_len, self.target_len
    if not 0 < config.noise_density < 1:
      raise UserError(f"objective.noise_density={config.noise_density:g} is not between 0 and 1")
    if config.mean_span < 1:
      raise UserError(f"objective.mean_span={config.mean_span:g} is below one token")
    lengths = np.arange(2, max(4, 2 + int(seq_len / (1 - config.noise_density))))
    noise, spans = self.noise_counts(lengths)
    fits = (lengths - noise + spans + 1 <= seq_len) & ((target_len == 0) | (noise + spans + 1 <= target_len))
    if not fits.any():
      raise UserError(f"data.seq_len={seq_len} with data.target_len={target_len} is too short for span corruption")
    longest = int(np.flatnonzero(fits)[-1])
    self.row_tokens, self.noise, self.spans = int(lengths[longest]), int(noise[longest]), int(spans[longest])
    self.target_len = target_len or self.noise + self.spans + 1

  @property
  def fields(self) -> Fields:
    return encoder_decoder_fields(self.seq_len, self.target_len, self.vocabulary.size)

  def check(self) -> None:
    self.vocabulary.require("eos", "span_corruption")
    if len(self.vocabulary.sentinel_ids) < self.spans:
      raise UserError(
        f"a row of {self.row_tokens} tokens has {self.spans} noise spans and the tokenizer has "
        f"{len(self.vocabulary.sentinel_ids)} sentinels: set tokenizer.sentinels={max(100, self.spans)}"
      )

  def noise_counts(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`noise_counts` at the rates of this objective."""
    return noise_counts(lengths, self.config.noise_density, self.config.mean_span)

  def noise_mask(self, draws: Draws, lengths: np.ndarray, width: int) -> np.ndarray:
    """`noise_mask` at the rates of this objective."""
    return noise_mask(draws, lengths, *self.noise_counts(lengths), width)

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    valid = source.segment_ids > 0
    noise = self.noise_mask(draws, valid.sum(axis=1), valid.shape[1])
    encoder = corrupt(self.vocabulary, self.spans, source.tokens, valid, noise, self.seq_len)
    decoder = corrupt(self.vocabulary, self.spans, source.tokens, valid, ~noise, self.target_len)
    pad = self.vocabulary.pad_id
    return encoder_decoder_arrays(encoder, decoder, pad, pad)


def noise_counts(lengths: np.ndarray, density: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
  """(removed tokens, removed spans) of rows of these lengths, rounded as in T5; 0 in rows below two tokens."""
  noise = np.round(lengths * density).astype(np.int64)
  noise = np.minimum(np.maximum(noise, 1), np.maximum(lengths - 1, 0))
  spans = np.maximum(np.round(noise / mean_span).astype(np.int64), 1)
  return noise, np.minimum(spans, np.minimum(noise, lengths - noise))


def noise_mask(draws: Draws, lengths: np.ndarray, noise: np.ndarray, spans: np.ndarray, width: int) -> np.ndarray:
  """Which tokens are removed, bool [R, width]: kept and removed spans alternate, kept first, none empty.

  noise, spans: removed tokens and spans of each row, see `noise_counts`.
  """
  slots = int(spans.max(initial=1))
  kept_starts, kept_used = _cuts(draws, _KEPT, lengths - noise, spans, width, slots)
  noise_starts, noise_used = _cuts(draws, _NOISE, noise, spans, width, slots)
  # Removed span j begins at (start of kept span j + 1) + (start of removed span j), each in its own count.
  row = np.arange(len(lengths))[:, None] + np.zeros_like(kept_starts)
  toggles = np.zeros((len(lengths), width + 1), np.int8)
  begin = np.where(kept_used, kept_starts, (lengths - noise)[:, None])[:, 1:] + noise_starts[:, :-1]
  end = np.where(kept_used, kept_starts, 0)[:, 1:] + noise_starts[:, 1:]
  toggles[row[:, 1:][noise_used[:, :-1]], begin[noise_used[:, :-1]]] = 1
  toggles[row[:, 1:][noise_used[:, 1:]], end[noise_used[:, 1:]]] = -1
  mask = np.cumsum(toggles[:, :width], axis=1, dtype=np.int8).astype(bool)
  return mask & (np.arange(width) < lengths[:, None])


def corrupt(
  vocabulary: Vocabulary,
  spans: int,
  tokens: np.ndarray,
  valid: np.ndarray,
  removed: np.ndarray,
  width: int,
  first: np.ndarray | None = None,
) -> Rows:
  """Replaces each run of removed tokens by the next sentinel, then appends eos and padding, to `width` columns.

  Args:
    vocabulary: the sentinels.
    spans: most runs in a row.
    tokens, valid, removed: [R, L]; tokens that are not valid are padding.
    width: columns of the result.
    first: ids that stand before the rows that are not empty, int [R]; None: nothing does.
  """
  starts = removed & valid
  starts[:, 1:] &= ~removed[:, :-1]
  sentinels = np.array((*vocabulary.sentinel_ids[:spans], vocabulary.pad_id), np.int32)
  order = np.cumsum(starts, axis=1, dtype=np.int32)
  written = np.where(starts, sentinels[np.minimum(order, len(sentinels)) - 1], tokens)
  stays = (starts | ~removed) & valid
  if first is not None:
    written = np.concatenate([first[:, None].astype(written.dtype), written], axis=1)
    stays = np.concatenate([stays.any(axis=1, keepdims=True), stays], axis=1)
  lengths = stays.sum(axis=1)
  column = np.arange(width, dtype=np.int32)
  out = np.full((len(tokens), width), vocabulary.pad_id, np.int32)
  out[column < lengths[:, None]] = written[stays]  # both sides in row order
  out[column == np.where(lengths > 0, lengths, -1)[:, None]] = vocabulary.eos_id
  segment_ids = (column < np.where(lengths > 0, lengths + 1, 0)[:, None]).astype(np.int32)
  return Rows(out, segment_ids, segment_ids * column)


def _cuts(
  draws: Draws, site: int, items: np.ndarray, spans: np.ndarray, width: int, slots: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts `items` tokens per row at random into `spans` non-empty runs.

  Returns their starts, int32 [R, slots + 1], beginning with 0; and which of them exist, bool of the same shape.
  """
  column = np.arange(width)
  candidates = (column > 0) & (column < items[:, None])
  starts, used = draws.choose(site, candidates, np.maximum(spans - 1, 0), min(slots, width))
  first = np.zeros((len(items), 1), np.int32)
  return np.concatenate([first, starts], axis=1), np.concatenate([(spans > 0)[:, None], used], axis=1)
