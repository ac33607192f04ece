"""A batch that grows: few rows at first, twice as many after every `ramp_steps`, until it is `batch_size`.

Small batches learn more per row while the loss falls fast (McCandlish et al. 2018). A step has as many rows as its
place in the ramp says, and takes the rows after those of the steps before it: batches stay a pure function of the step.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from tfm_jax.data.dataset import Dataset
from tfm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Ramp:
  """The sizes of the batches by step.

  Attributes:
    first: rows of the first batches.
    steps: steps of each size before the last one; a multiple of full / first.
    full: rows of the batches after the ramp; `first` times a power of two.
  """

  first: int
  steps: int
  full: int

  def __post_init__(self) -> None:
    ratio = self.full // max(self.first, 1)
    if self.first < 1 or self.first * ratio != self.full or ratio & (ratio - 1):
      raise UserError(
        f"train.ramp_from={self.first} is doubled until it is train.batch_size={self.full}: divide that by a power of "
        f"two"
      )
    if self.steps < 1 or self.steps % ratio:
      raise UserError(
        f"train.ramp_steps={self.steps}: each size of the ramp takes a multiple of {ratio} steps, so that a batch has "
        f"the rows of one full batch"
      )

  @property
  def sizes(self) -> list[int]:
    """The sizes of the batches, ascending."""
    return [self.first << i for i in range((self.full // self.first).bit_length())]

  def stages(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(first step, step after the last one, size) of the parts of start .. stop - 1 that have batches of one size."""
    for i, size in enumerate(self.sizes):
      begin = max(start, i * self.steps)
      end = stop if size == self.full else min(stop, (i + 1) * self.steps)
      if begin < end:
        yield begin, end, size

  def size(self, step: int) -> int:
    """Rows of the batch of a step."""
    return self.sizes[min(step // self.steps, len(self.sizes) - 1)]

  def place(self, step: int) -> tuple[int, int]:
    """(n, i): the batch of a step begins with row i of the n-th batch of the full size."""
    stage = min(step // self.steps, len(self.sizes) - 1)
    rows = sum(self.sizes[:stage]) * self.steps + (step - stage * self.steps) * self.sizes[stage]
    return divmod(rows, self.full)


@dataclasses.dataclass(frozen=True)
class Ramped:
  """The batches of a data set of full batches, as a ramp has them."""

  full: Dataset
  ramp: Ramp

  def batch(self, step: int, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The arrays of a step, or only its rows with these indices."""
    number, first = self.ramp.place(step)
    rows = np.arange(self.ramp.size(step)) if rows is None else np.asarray(rows)
    return self.full.arrays(number * self.ramp.full + first + rows, np.full(len(rows), step))
