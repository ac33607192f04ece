"""`Dataset.batch(step)`: a pure function from a step to arrays, and an iterator that makes them ahead."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tfm_jax.data.permutation import permute
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Fields, Objective
from tfm_jax.objectives.plan import Split

Batch = dict[str, np.ndarray]


class Dataset:
  """Rows of one split in batches.

  shuffle: training; sample i = step * batch_size + j is row permutation(seed, epoch)[i mod num_rows], with
  epoch = i // num_rows. Otherwise evaluation: the rows in order, once, always with the masks of epoch 0; rows
  after the last one have weight 0.

  Attributes:
    fields: what the arrays of a batch hold, by name.
    num_rows: rows of an epoch.
    num_tokens: tokens of the split, with the bos and eos of its documents.
    text_bytes: UTF-8 bytes of the text that is predicted (the target side of pairs), and
    text_tokens: the tokens that stand for it:
      bits per byte = nats per token / ln 2 * text_tokens / text_bytes.
    truncated: texts that are longer than their row and are cut.
  """

  def __init__(self, split: Split, objective: Objective, batch_size: int, seed: int, packing: bool, shuffle: bool):
    self._objective, self._plan = objective, objective.plan(split, packing)
    self._seed, self._shuffle = seed, shuffle
    self.batch_size = batch_size
    self.fields: Fields = objective.fields
    self.num_rows: int = self._plan.num_rows
    self.truncated: int = self._plan.truncated
    self.num_tokens = split.num_tokens
    self.text_tokens, self.text_bytes = len(split.sides[-1].tokens), split.sides[-1].text_bytes

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The arrays of a step: the whole global batch, or its rows with these indices (0 .. batch_size - 1)."""
    samples = step * self.batch_size + (np.arange(self.batch_size) if rows is None else np.asarray(rows, np.int64))
    if self._shuffle:
      epoch, place = np.divmod(samples, self.num_rows)
      row = permute(place, self.num_rows, self._seed, epoch)
    else:
      epoch, row = np.zeros_like(samples), samples
    draws = Draws.of(self._seed, epoch, row)
    arrays = self._objective.make(draws, *self._plan.read(row, draws))
    return {**arrays, "rows": row.astype(np.int32)}

  def num_batches(self, limit: int = 0) -> int:
    """Batches of one pass over the rows, the last one perhaps filled up; at most `limit` unless it is 0."""
    full = -(-self.num_rows // self.batch_size)
    return min(full, limit) if limit else full


def batches(
  dataset: Dataset, start: int, stop: int, rows: np.ndarray | None = None, prefetch: int = 8
) -> Iterator[tuple[int, Batch]]:
  """(step, batch) for steps start .. stop - 1, up to `prefetch` of them made ahead by a thread (0: none)."""

  def make(step: int) -> tuple[int, Batch]:
    return step, dataset.batch(int(step), rows)

  if prefetch <= 0 or start >= stop:
    yield from map(make, range(start, stop))
    return
  import grain  # late: it takes seconds, and workers that only tokenise do not need it

  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
  iterator: Any = iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))
  try:
    yield from iterator
  finally:
    if hasattr(iterator, "close"):
      iterator.close()


def unigram_entropy(dataset: Dataset, limit: int = 0) -> float:
  """Entropy, in nats, of the distribution of the tokens that the data set asks for (weight above 0).

  It is the loss of the best model that ignores its input. Counted over one pass, or `limit` batches.
  """
  counts = np.zeros(1, np.int64)
  for step in range(dataset.num_batches(limit)):
    batch = dataset.batch(step)
    side = "decoder_" if "decoder_targets" in batch else ""
    found = np.bincount(batch[f"{side}targets"][batch[f"{side}weights"] > 0], minlength=len(counts))
    found[: len(counts)] += counts
    counts = found
  shares = counts[counts > 0] / counts.sum()
  return float(-(shares * np.log(shares)).sum())
