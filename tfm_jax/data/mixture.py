"""Rows of several sources in given shares: which source a row comes from is a pure function of its place."""

from collections.abc import Iterator, Sequence

import numpy as np

from tfm_jax.data.dataset import Batch, Dataset

_BITS = 24  # shares are multiples of 2**-24; samples are numbered up to 2**39


class Mixing:
  """The sources of the samples 0, 1, 2, ..., in which every source is spread as evenly as its share allows.

  Source 0 takes its share of all samples, source 1 its share of those that are left, and so on: sample m of those that
  are left belongs to source k if floor(m q + 1/2) grows there, where q is the share of source k among the sources
  k, k + 1, ... In integers, so that all machines agree; any stretch of samples has its shares, to within about one row
  per source.

  Args:
    weights: the share of each source [sources], up to a common factor; above 0.
  """

  def __init__(self, weights: Sequence[float]):
    given = np.asarray(weights, np.float64)
    self.shares = given / given.sum()
    of_rest = given / np.cumsum(given[::-1])[::-1]
    self._quotas = np.clip(np.round(of_rest[:-1] * (1 << _BITS)), 1, (1 << _BITS) - 1).astype(np.int64)

  def sources(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(source [N], place among the samples of that source [N]) of these samples [N]."""
    source, place = np.full(len(samples), len(self._quotas)), samples.astype(np.int64)
    pending = np.arange(len(samples))
    for k, quota in enumerate(self._quotas):
      m = place[pending]
      before = _taken(m, quota)
      takes = _taken(m + 1, quota) > before
      source[pending[takes]] = k
      place[pending] = np.where(takes, before, m - before)
      pending = pending[~takes]
    return source, place

  def counts(self, samples: int) -> np.ndarray:
    """How many of the first `samples` samples come from each source [sources]."""
    counts, left = [], samples
    for quota in self._quotas:
      counts.append(int(_taken(left, quota)))
      left -= counts[-1]
    return np.array([*counts, left])

  def longest(self, rows: Sequence[int]) -> int:
    """The most samples that take at most rows[k] from each source k."""
    low, high = 0, sum(rows)
    while low < high:
      middle = (low + high + 1) // 2
      low, high = (middle, high) if (self.counts(middle) <= np.asarray(rows)).all() else (low, middle - 1)
    return low


def scaled(weights: Sequence[float], temperature: float) -> list[float]:
  """Weights to the power of 1 / temperature (Devlin et al. 2018, multilingual BERT), with a sum of 1."""
  largest = max(weights)
  powers = [(weight / largest) ** (1 / temperature) for weight in weights]
  return [power / sum(powers) for power in powers]


class MixedDataset(Dataset):
  """The rows of several data sets in one, see `Mixing`: each has its own epochs and its own order of rows.

  For training, num_rows, which is what `train.epochs` counts, is the rows of all sources together. For evaluation, it
  is as many rows as can be mixed in these shares without a repetition.

  Args:
    datasets: of the same objective, batch size and kind (training or evaluation).
    weights: the share of each, up to a common factor.
    shuffle: training (True) or evaluation (False).
    names: of the sources.
  """

  def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float], shuffle: bool, names: Sequence[str] = ()):
    self._names, self._datasets, self._mixing, self._shuffle = names, datasets, Mixing(weights), shuffle
    self.batch_size, self.fields = datasets[0].batch_size, datasets[0].fields
    rows = [dataset.num_rows for dataset in datasets]
    self.num_rows = sum(rows) if shuffle else self._mixing.longest(rows)
    self.truncated = sum(dataset.truncated for dataset in datasets)
    self.num_tokens = sum(dataset.num_tokens for dataset in datasets)
    self.text_bytes = sum(dataset.text_bytes for dataset in datasets)

  def arrays(self, samples: np.ndarray, steps: np.ndarray) -> Batch:
    source, place = self._mixing.sources(samples)
    if not self._shuffle:
      blank = samples >= self.num_rows
      source[blank], place[blank] = 0, self._datasets[0].num_rows
    result: Batch = {}
    for k in np.unique(source):
      where = np.flatnonzero(source == k)
      for name, values in self._datasets[k].arrays(place[where], steps[where]).items():
        if name not in result:
          result[name] = np.zeros((len(samples), *values.shape[1:]), values.dtype)
        result[name][where] = values
    return result

  def source_names(self, rows: np.ndarray) -> list[str]:
    ends = np.cumsum([dataset.num_rows for dataset in self._datasets])
    return [self._names[k] for k in np.searchsorted(ends[:-1], rows, side="right")]

  def targets(self, rows: int | None = None) -> Iterator[np.ndarray]:
    counts = self._mixing.counts(self.num_rows if rows is None else rows)
    for dataset, count in zip(self._datasets, counts, strict=True):
      yield from dataset.targets(int(count))

  def predicted(self, rows: int) -> tuple[int, float]:
    counts = self._mixing.counts(rows)
    parts = [dataset.predicted(int(n)) for dataset, n in zip(self._datasets, counts, strict=True)]
    return sum(tokens for tokens, _ in parts), sum(size for _, size in parts)


def _taken(samples, quota):  # type: ignore[no-untyped-def]  # of numbers or arrays of them
  """How many of the first `samples` visits a quota (in units of 2**-24) takes."""
  return (samples * quota + (1 << _BITS - 1)) >> _BITS
