"""`Dataset.batch(step)`, a pure function from a step to arrays, and an iterator that prefetches batches."""

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from tfm_jax.data.permutation import permute
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Fields, Objective, check_arrays
from tfm_jax.objectives.plan import Rows, Split

# Grain, when it is imported beside jaxlib 0.9, warns of a profiler that is not used here.
logging.getLogger("absl").addFilter(lambda record: "Grain multiprocess worker profiling" not in str(record.msg))

Batch = dict[str, np.ndarray]

_CHUNK = 1 << 18  # approximate number of tokens that a pass over all rows computes at once
_CHECKED = 8  # rows that are compared with the declared fields
_HELD_OUT = 0  # the seed of the order of held-out rows, in every run


class Batches(Protocol):
  """What has a batch for every step."""

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch: ...


class Evaluated(NamedTuple):
  """How much held-out text the metrics of an evaluation cover."""

  rows: int  # rows that are evaluated
  of: int  # all held-out rows
  tokens: int  # tokens of text that these rows predict; 0 for objectives that do not predict each token at most once
  text_bytes: float  # UTF-8 bytes of that text; a document counts by the share of its tokens that is predicted


class Dataset:
  """The rows of one split in batches.

  With shuffle=True, for training: sample i = step * batch_size + j is row permutation(seed, epoch)[i mod num_rows] of
  epoch i // num_rows. With shuffle=False, for evaluation: each row once, always in the same order and with the masks of
  epoch 0; samples after the last row have weight 0. That order is a permutation too, because the first rows of a text
  are one passage of it. (Up to version 0.1 held-out rows came in the order of the text: a run of that time that is
  resumed goes on with other held-out rows, unless `eval.batches` is 0.)

  Args:
    split: the tokens of the training or the held-out part.
    objective: makes rows and arrays.
    batch_size: rows of the global batch.
    seed: decides the order of the rows and all random draws.
    packing: whether a row may hold several documents.
    shuffle: training (True) or evaluation (False).
    first_row: the global id of row 0, by which sources of a mixture differ; ids decide all random draws.

  Attributes:
    fields: what the arrays of a batch hold, by name.
    num_rows: rows per epoch.
    num_tokens: tokens of the split, including bos and eos of its documents.
    text_bytes: UTF-8 bytes of the text that is predicted (the target side of pairs).
    truncated: texts that are cut because they are longer than their row.

  Raises:
    UserError: the objective makes other arrays than it declares.
  """

  def __init__(
    self,
    split: Split,
    objective: Objective,
    batch_size: int,
    seed: int,
    packing: bool,
    shuffle: bool,
    first_row: int = 0,
  ):
    self._first_row = first_row
    self._objective, self._plan = objective, objective.plan(split, packing)
    self._predicted, self._seed, self._shuffle = split.sides[-1], seed, shuffle
    self.batch_size = batch_size
    self.fields: Fields = objective.fields
    self.num_rows: int = self._plan.num_rows
    self.truncated: int = self._plan.truncated
    self.num_tokens = split.num_tokens
    self.text_bytes = self._predicted.text_bytes
    if self.num_rows:
      samples = np.arange(min(self.num_rows, batch_size, _CHECKED))
      _, draws, parts = self._read(samples)
      declared = {name: field for name, field in self.fields.items() if name != "rows"}
      check_arrays(objective.make(draws, *parts), declared, len(samples), f"objective.name={objective.config.name}")

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The arrays of a step: the global batch, or only its rows with these indices in 0 .. batch_size - 1."""
    rows = np.arange(self.batch_size) if rows is None else np.asarray(rows, np.int64)
    return self.arrays(step * self.batch_size + rows, np.full(len(rows), step))

  def arrays(self, samples: np.ndarray, steps: np.ndarray) -> Batch:
    """The arrays of these samples [N], numbered through all steps and epochs, in the batches of `steps` [N]."""
    row, draws, parts = self._read(samples, steps)
    return {**self._objective.make(draws, *parts), "rows": (self._first_row + row).astype(np.int32)}

  def _read(self, samples: np.ndarray, steps: np.ndarray | None = None) -> tuple[np.ndarray, Draws, tuple[Rows, ...]]:
    """For these samples: the row ids, their random numbers, and the tokens that the row plan reads."""
    epoch, index = np.divmod(samples, self.num_rows) if self._shuffle else (np.zeros_like(samples), samples)
    row, real = index.copy(), index < self.num_rows
    row[real] = permute(index[real], self.num_rows, self._seed if self._shuffle else _HELD_OUT, epoch[real])
    draws = Draws.of(self._seed, epoch, self._first_row + row, steps if self._shuffle else None)
    return row, draws, self._plan.read(row, draws)

  def source_names(self, rows: np.ndarray) -> list[str]:
    """In a mixture, the source of each of these rows, by their global ids; otherwise none."""
    return []

  def targets(self, rows: int | None = None) -> Iterator[np.ndarray]:
    """All targets with a weight above 0 of the first `rows` rows (None: of one pass over all), in chunks."""
    for _, draws, parts in self._pieces(self.num_rows if rows is None else rows):
      yield self._weighted(self._objective.make(draws, *parts))

  def evaluated(self, limit: int = 0) -> Evaluated:
    """How much text the first `limit` batches (0: all) of one pass over the rows predict."""
    rows = min(self.num_rows, self.num_batches(limit) * self.batch_size)
    return Evaluated(rows, self.num_rows, *self.predicted(rows))

  def predicted(self, rows: int) -> tuple[int, float]:
    """(tokens, bytes) of the text that the first `rows` rows predict; (0, 0) see `Evaluated`."""
    tokens, size = 0, 0.0
    if self._objective.predicts_text:
      side = self._predicted
      bytes_per_token = np.diff(side.byte_offsets) / np.maximum(np.diff(side.offsets), 1)
      for _, draws, parts in self._pieces(rows):
        # The objective moves tokens without changing them, so it can move the numbers of their documents instead.
        numbered = [replace(part, tokens=part.documents()) for part in parts]
        documents = self._weighted(self._objective.make(draws, *numbered))
        tokens += len(documents)
        size += float(bytes_per_token[documents].sum())
    return tokens, size

  def _pieces(self, num_rows: int) -> Iterator[tuple[np.ndarray, Draws, tuple[Rows, ...]]]:
    """What `_read` gives for the first `num_rows` samples, in chunks of about `_CHUNK` tokens."""
    step = max(1, _CHUNK // self._objective.row_tokens)
    for start in range(0, num_rows, step):
      yield self._read(np.arange(start, min(start + step, num_rows)))

  def _weighted(self, arrays: Batch) -> np.ndarray:
    """The targets whose weight is above 0, of the first array of labels."""
    targets = next(name for name, field in self.fields.items() if field.kind == "labels")
    shape = self.fields[targets].shape
    weights = next(name for name, field in self.fields.items() if field.kind == "weights" and field.shape == shape)
    return arrays[targets][arrays[weights] > 0]

  def num_batches(self, limit: int = 0) -> int:
    """Batches of one pass over the rows, the last one padded with blank rows; at most `limit` unless that is 0."""
    batches_per_pass = -(-self.num_rows // self.batch_size)
    return min(batches_per_pass, limit) if limit else batches_per_pass


def batches(
  dataset: Batches, start: int, stop: int, rows: np.ndarray | None = None, prefetch: int = 8
) -> Iterator[tuple[int, Batch]]:
  """(step, batch) for steps start .. stop - 1; a thread prepares up to `prefetch` batches ahead (0: none).

  rows: indices of the rows of the global batch that are needed; None: all.
  """

  def make(step: int) -> tuple[int, Batch]:
    return step, dataset.batch(int(step), rows)

  if prefetch <= 0 or start >= stop:
    yield from map(make, range(start, stop))
    return
  import grain  # imported late: it takes seconds, and processes that only tokenise do not need it

  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
  iterator: Any = iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))
  try:
    yield from iterator
  finally:
    if hasattr(iterator, "close"):
      iterator.close()


def unigram_entropy(dataset: Dataset) -> float:
  """Entropy, in nats, of the distribution of all targets with a weight above 0 in one pass over the rows.

  It is the loss of the best model that ignores its input. NaN if the fields have no labels.
  """
  if not any(field.kind == "labels" for field in dataset.fields.values()):
    return math.nan
  counts = np.zeros(1, np.int64)
  with tqdm(dataset.targets(), "counting held-out targets", delay=5, disable=None) as bar:
    for targets in bar:
      total = np.bincount(targets, minlength=len(counts))
      total[: len(counts)] += counts
      counts = total
  shares = counts[counts > 0] / max(1, int(counts.sum()))
  return float(-(shares * np.log(shares)).sum())
