"""`Dataset.batch(step)`: a pure function from a step to arrays, and an iterator that makes them ahead."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tfm_jax.data.permutation import permute
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Fields, Objective
from tfm_jax.objectives.plan import Rows, Split

Batch = dict[str, np.ndarray]

_CHUNK = 1 << 18  # tokens, about, that a pass over all rows makes at once
_HELD_OUT = 0  # decides the order of held-out rows: never the run's seed


class Evaluated(NamedTuple):
  """What stands behind a figure of evaluation."""

  rows: int  # that were evaluated
  of: int  # rows that are held out
  tokens: int  # of text, that these rows predict; 0 where they do not predict a text, each token at most once
  text_bytes: float  # UTF-8 bytes of that text; a document counts by the share of its tokens


class Dataset:
  """Rows of one split in batches.

  shuffle: training; sample i = step * batch_size + j is row permutation(seed, epoch)[i mod num_rows], with
  epoch = i // num_rows. Otherwise evaluation: each row once, in an order that is always the same, with the masks of
  epoch 0; rows after the last one have weight 0. That order is a permutation, as the first rows of a text are one
  passage of it (up to version 0.1 they came in the text's order: a run of that time which is resumed goes on with other
  held-out rows, unless `eval.batches` is 0).

  Attributes:
    fields: what the arrays of a batch hold, by name.
    num_rows: rows of an epoch.
    num_tokens: tokens of the split, with the bos and eos of its documents.
    text_bytes: UTF-8 bytes of the text that is predicted (the target side of pairs).
    truncated: texts that are longer than their row and are cut.
  """

  def __init__(self, split: Split, objective: Objective, batch_size: int, seed: int, packing: bool, shuffle: bool):
    self._objective, self._plan = objective, objective.plan(split, packing)
    self._predicted, self._seed, self._shuffle = split.sides[-1], seed, shuffle
    self.batch_size = batch_size
    self.fields: Fields = objective.fields
    self.num_rows: int = self._plan.num_rows
    self.truncated: int = self._plan.truncated
    self.num_tokens = split.num_tokens
    self.text_bytes = self._predicted.text_bytes

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The arrays of a step: the whole global batch, or its rows with these indices (0 .. batch_size - 1)."""
    samples = step * self.batch_size + (np.arange(self.batch_size) if rows is None else np.asarray(rows, np.int64))
    row, draws, parts = self._read(samples)
    return {**self._objective.make(draws, *parts), "rows": row.astype(np.int32)}

  def _read(self, samples: np.ndarray) -> tuple[np.ndarray, Draws, tuple[Rows, ...]]:
    """The rows of these samples, their draws, and what the plan reads."""
    epoch, place = np.divmod(samples, self.num_rows) if self._shuffle else (np.zeros_like(samples), samples)
    row, real = place.copy(), place < self.num_rows
    row[real] = permute(place[real], self.num_rows, self._seed if self._shuffle else _HELD_OUT, epoch[real])
    draws = Draws.of(self._seed, epoch, row)
    return row, draws, self._plan.read(row, draws)

  def targets(self) -> Iterator[np.ndarray]:
    """All targets of one pass with a weight above 0, in pieces."""
    for _, draws, parts in self._pieces(self.num_rows):
      yield self._weighted(self._objective.make(draws, *parts))

  def evaluated(self, limit: int = 0) -> Evaluated:
    """What the first `limit` batches (0: all) of one pass predict."""
    rows = min(self.num_rows, self.num_batches(limit) * self.batch_size)
    tokens, size = 0, 0.0
    if self._objective.predicts_text:
      side = self._predicted
      bytes_per_token = np.diff(side.byte_offsets) / np.maximum(np.diff(side.offsets), 1)
      for _, draws, parts in self._pieces(rows):
        # The objective moves tokens and does not change them: it may as well move the numbers of their documents.
        numbered = [replace(part, tokens=part.documents()) for part in parts]
        documents = self._weighted(self._objective.make(draws, *numbered))
        tokens += len(documents)
        size += float(bytes_per_token[documents].sum())
    return Evaluated(rows, self.num_rows, tokens, size)

  def _pieces(self, num_rows: int) -> Iterator[tuple[np.ndarray, Draws, tuple[Rows, ...]]]:
    """The first samples, as many at once as are quick to make."""
    step = max(1, _CHUNK // self._objective.row_tokens)
    for start in range(0, num_rows, step):
      yield self._read(np.arange(start, min(start + step, num_rows)))

  def _weighted(self, arrays: Batch) -> np.ndarray:
    """The targets whose weight is above 0. Of several arrays of labels it is the first."""
    targets = next(name for name, field in self.fields.items() if field.kind == "labels")
    shape = self.fields[targets].shape
    weights = next(name for name, field in self.fields.items() if field.kind == "weights" and field.shape == shape)
    return arrays[targets][arrays[weights] > 0]

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


def unigram_entropy(dataset: Dataset) -> float:
  """Entropy, in nats, of the distribution of all targets of one pass (those with a weight above 0).

  It is the loss of the best model that ignores its input. NaN where there are no targets to count.
  """
  if not any(field.kind == "labels" for field in dataset.fields.values()):
    return math.nan
  counts = np.zeros(1, np.int64)
  for targets in tqdm(dataset.targets(), "counting held-out targets", delay=5, disable=None):
    more = np.bincount(targets, minlength=len(counts))
    more[: len(counts)] += counts
    counts = more
  shares = counts[counts > 0] / max(1, int(counts.sum()))
  return float(-(shares * np.log(shares)).sum())
