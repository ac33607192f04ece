"""`ImageBatches`: the order of pictures in batches; `batch(step)` is a pure function."""

from collections.abc import Callable, Iterator

import numpy as np

from tfm_jax.data.permutation import permute
from tfm_jax.objectives.draws import Draws

Batch = dict[str, np.ndarray]
Make = Callable[[np.ndarray, np.ndarray, Draws | None], Batch]
"""(index [R], real [R], draws) -> the arrays of R pictures by their index among all; weights are 0 where not `real`.
Without draws: as for evaluation."""

_HELD_OUT = 0  # the seed of the order of held-out pictures, in every run


class ImageBatches:
  """Batches of some pictures of a set.

  In training, sample i = step * batch_size + j is picture permutation(seed, epoch)[i mod num_rows] of epoch
  i // num_rows. Held-out pictures come once, in the order of the set; the last batch is filled up with blank rows.

  Args:
    index: the pictures, as indices into the set.
    batch_size: rows of the global batch.
    seed: of the order and of all draws.
    shuffle: training (True) or evaluation (False).
    make: the arrays of a batch but `rows`.
    limit: of evaluation, the number of batches; they hold pictures from everywhere. 0: all pictures.
  """

  def __init__(self, index: np.ndarray, batch_size: int, seed: int, shuffle: bool, make: Make, limit: int = 0) -> None:
    self.batch_size, self._seed, self._shuffle, self._make = batch_size, seed, shuffle, make
    if limit and limit * batch_size < len(index) and not shuffle:
      order = np.arange(len(index))
      index = index[np.sort(permute(order, len(index), _HELD_OUT, 0 * order)[: limit * batch_size])]
    self.index = index
    self.num_rows = len(index)

  @property
  def num_batches(self) -> int:
    """Batches of one pass over the held-out pictures."""
    return -(-self.num_rows // self.batch_size)

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The arrays of a step: the global batch, or only its rows with these indices in 0 .. batch_size - 1."""
    samples = step * self.batch_size + (np.arange(self.batch_size) if rows is None else np.asarray(rows, np.int64))
    if not self._shuffle:
      real = samples < self.num_rows
      row = np.minimum(samples, self.num_rows - 1)
      return {**self._make(self.index[row], real, None), "rows": row.astype(np.int32)}
    epoch, place = np.divmod(samples, self.num_rows)
    row = permute(place, self.num_rows, self._seed, epoch)
    arrays = self._make(self.index[row], np.ones(len(row), bool), Draws.of(self._seed, epoch, row))
    # The ids of rows decide dropout: those of an epoch differ from those of the others.
    return {**arrays, "rows": ((row + epoch * self.num_rows) % 2**31).astype(np.int32)}

  def batches(self, rows: np.ndarray | None = None) -> Iterator[Batch]:
    """The held-out batches."""
    return (self.batch(step, rows) for step in range(self.num_batches))
