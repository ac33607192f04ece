"""Rows of labelled examples: token ids of unequal length in memory, and the batches that are cut from them."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfm_jax.data.permutation import permute
from tfm_jax.objectives import plan
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import encoder_decoder_arrays
from tfm_jax.tasks.labelled.augmentation import Augmentation

Batch = dict[str, np.ndarray]

_GROUP = 50  # batches whose rows are sorted by length together
_SHORTEST = 16  # tokens of the shortest batches
_HELD_OUT = 0  # the seed of the order of held-out rows, in every run


@dataclasses.dataclass(frozen=True)
class Rows:
  """R rows, each of one sequence of tokens or of several (the candidates of a choice, the two texts of a pair).

  Attributes:
    tokens: int32, the tokens of all sequences after each other.
    offsets: int64 [sequences + 1], where they begin.
    types: int32 like `tokens`, the token types; None: the model reads none.
    labels: name -> one value per row [R, ...].
    token_labels: name -> one value per token, like `tokens`.
    examples: int32 [R], the example that each row belongs to; an example may have several rows.
    truncated: texts that were cut.
    members: sequences per row.
    sources: int32, like `tokens`: what of the example each token stands for (the number of its word, the span of its
      characters), for reading predictions; it is in no batch.
    target: of an encoder-decoder, what its decoder writes: as many rows.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  types: np.ndarray | None
  labels: Mapping[str, np.ndarray]
  token_labels: Mapping[str, np.ndarray]
  examples: np.ndarray
  truncated: int = 0
  members: int = 1
  sources: np.ndarray | None = None
  target: "Rows | None" = None

  @property
  def lengths(self) -> np.ndarray:
    """int64 [R]: the tokens of each row's longest sequence."""
    return np.diff(self.offsets).reshape(-1, self.members).max(axis=1, initial=0)

  def __len__(self) -> int:
    return len(self.examples)

  def sources_of(self, row: int) -> np.ndarray:
    """The sources of the tokens of a row of one sequence."""
    assert self.sources is not None and self.members == 1
    return self.sources[self.offsets[row] : self.offsets[row + 1]]

  def grouped(self, members: int, labels: Mapping[str, np.ndarray]) -> "Rows":
    """Every `members` rows of one sequence as one row, with labels of its own."""
    count = len(self) // members
    own = {"labels": dict(labels), "examples": np.arange(count, dtype=np.int32), "members": members}
    return dataclasses.replace(self, **own)  # type: ignore[arg-type]

  def with_labels(self, labels: Mapping[str, np.ndarray]) -> "Rows":
    """The rows with some labels replaced."""
    return dataclasses.replace(self, labels={**self.labels, **labels})


def make_rows(
  sequences: Sequence[np.ndarray],
  types: Sequence[np.ndarray] | None,
  labels: Mapping[str, np.ndarray],
  token_labels: Mapping[str, Sequence[np.ndarray]],
  examples: Sequence[int],
  truncated: int = 0,
  members: int = 1,
  sources: Sequence[np.ndarray] | None = None,
) -> Rows:
  """`Rows` from one array per sequence."""
  joined = lambda parts, dtype=np.int32: np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)
  return Rows(
    joined(sequences),
    np.concatenate([[0], np.cumsum([len(ids) for ids in sequences], dtype=np.int64)]).astype(np.int64),
    None if types is None else joined(types),
    dict(labels),
    {name: joined(parts, parts[0].dtype if parts else np.dtype(np.int32)) for name, parts in token_labels.items()},
    np.asarray(examples, np.int32),
    truncated,
    members,
    None if sources is None or not len(sources) else np.concatenate(sources).astype(np.int32),
  )


def lengths_of(seq_len: int, buckets: int) -> tuple[int, ...]:
  """The lengths that batches may have, ascending: `seq_len` and its halves, at most `buckets`, none below 16."""
  lengths = [seq_len]
  while len(lengths) < buckets and lengths[-1] % 2 == 0 and lengths[-1] // 2 >= _SHORTEST:
    lengths.append(lengths[-1] // 2)
  return tuple(reversed(lengths))


class RowBatches:
  """Batches of rows; `batch` is a pure function of the step.

  All rows of a batch are padded to the shortest of `lengths` that holds them. In training, the rows of each epoch are
  shuffled, then sorted by length in groups of 50 batches, and the batches of the epoch are shuffled again, so that
  little is padded. Held-out rows come by length, each once; the last batch is filled up with blank rows, whose weights
  are 0.

  Args:
    rows: what the batches hold.
    batch_size: rows of the global batch.
    seed: of the shuffles.
    lengths: what batches may be long, ascending.
    shuffle: training (True) or evaluation (False).
    pad: the token id where there is no token.
    limit: of evaluation, the number of batches; they hold rows from everywhere. 0: all rows.
    augment: of training, changes the tokens of rows; None: they stay.
  """

  def __init__(
    self,
    rows: Rows,
    batch_size: int,
    seed: int,
    lengths: Sequence[int],
    shuffle: bool,
    pad: int = 0,
    limit: int = 0,
    augment: Augmentation | None = None,
  ) -> None:
    self._rows, self.batch_size, self._seed, self._shuffle, self._pad = rows, batch_size, seed, shuffle, pad
    self.num_rows = len(rows)
    self._augment = augment if augment and augment.active else None
    self._lengths = np.asarray(lengths)
    sizes = self._sizes()
    self._bucket = np.searchsorted(self._lengths, sizes)
    if not shuffle:
      order = np.arange(self.num_rows)
      if limit and limit * batch_size < self.num_rows:
        order = np.sort(permute(order, self.num_rows, _HELD_OUT, 0 * order)[: limit * batch_size])
      self._order = order[np.argsort(sizes[order], kind="stable")]

  def _sizes(self) -> np.ndarray:
    """int64 [R]: the tokens that a batch needs room for, for each row."""
    return self._rows.lengths

  @property
  def num_batches(self) -> int:
    """Batches of one pass over the held-out rows."""
    return -(-len(self._order) // self.batch_size)

  def rows_of(self, step: int) -> np.ndarray:
    """The rows of the global batch of a step, int64 [batch_size]; -1: blank."""
    samples = step * self.batch_size + np.arange(self.batch_size)
    if not self._shuffle:
      real = samples < len(self._order)
      return np.where(real, self._order[np.minimum(samples, len(self._order) - 1)], -1)
    epochs, places = np.divmod(samples, self.num_rows)
    return np.array([self._epoch(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)])

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The arrays of a step: the global batch, or only its rows with these indices in 0 .. batch_size - 1."""
    whole = self.rows_of(step)
    length = int(self._lengths[self._bucket[whole[whole >= 0]].max(initial=0)])
    here = np.arange(self.batch_size) if rows is None else rows
    # A batch may begin in one epoch and end in another.
    epochs = (step * self.batch_size + here) // self.num_rows if self._shuffle else 0 * here
    return self._arrays(whole[here], length, epochs)

  def batches(self) -> Iterator[Batch]:
    """The held-out batches."""
    return (self.batch(step) for step in range(self.num_batches))

  def fill(self) -> float:
    """The share of the positions of the first epoch's batches that hold a token."""
    steps = range(-(-self.num_rows // self.batch_size))
    positions = 0
    for step in steps:
      rows = self.rows_of(step)
      positions += int(self._lengths[self._bucket[rows[rows >= 0]].max()]) * self.batch_size * self._rows.members
    tokens = len(self._rows.tokens) * len(steps) * self.batch_size / self.num_rows
    return min(tokens / max(positions, 1), 1.0)

  def _arrays(self, rows: np.ndarray, length: int, epochs: np.ndarray) -> Batch:
    source, members = self._rows, self._rows.members
    real = rows >= 0
    sequences = np.maximum(rows, 0)[:, None] * members + np.arange(members)
    starts, sizes = source.offsets[sequences], np.diff(source.offsets)[sequences] * real[:, None]
    column = np.arange(length)
    valid = column < sizes[..., None]
    places = np.where(valid, starts[..., None] + column, 0)

    def along(values: np.ndarray, blank: int) -> np.ndarray:
      """One value per token of each row."""
      return self._shaped(np.where(valid, values[places] if len(values) else blank, blank).astype(values.dtype))

    # The ids of rows decide dropout and augmentation: those of an epoch differ from those of the others.
    ids = np.where(real, (rows + epochs * self.num_rows) % 2**31, 0).astype(np.int32)
    out = {"inputs": along(source.tokens, self._pad)}
    if self._augment is not None:
      flat = out["inputs"].reshape(-1, length)
      draws = Draws.of(
        self._seed, 0, np.repeat(ids, members) * np.int64(members) + np.tile(np.arange(members), len(ids))
      )
      out["inputs"] = self._augment(flat, draws).reshape(out["inputs"].shape)
    out["segment_ids"] = self._shaped(valid.astype(np.int32))
    # Padding has positions as well: the loss of answers reads it, as reference code does.
    out["positions"] = self._shaped(np.broadcast_to(column, valid.shape).astype(np.int32))
    if source.types is not None:
      out["token_types"] = along(source.types, 0)
    out |= {name: along(values, 0) for name, values in source.token_labels.items()}
    for name, values in source.labels.items():
      picked = values[np.maximum(rows, 0)]
      out[name] = np.where(real.reshape(-1, *[1] * (picked.ndim - 1)), picked, 0).astype(values.dtype)
    out["rows"] = ids
    return out

  def _shaped(self, array: np.ndarray) -> np.ndarray:
    """Without the axis of members, where rows have a single sequence."""
    return array[:, 0] if self._rows.members == 1 else array

  @functools.lru_cache(maxsize=2)  # noqa: B019  # a task holds its batches as long as the run lasts
  def _epoch(self, epoch: int) -> np.ndarray:
    """The order of the rows in an epoch."""
    index = np.arange(self.num_rows)
    order = permute(index, self.num_rows, self._seed, index * 0 + epoch)
    if len(self._lengths) == 1:
      return order
    # The first rows fill up the last batch of the epoch before.
    lead = (-epoch * self.num_rows) % self.batch_size
    head, rest = order[:lead], order[lead:]
    group = _GROUP * self.batch_size
    parts = [rest[begin : begin + group] for begin in range(0, len(rest), group)]
    rest = np.concatenate([head[:0], *(part[np.argsort(self._bucket[part], kind="stable")] for part in parts)])
    whole = len(rest) // self.batch_size
    if not whole:
      return np.concatenate([head, rest])
    batches = rest[: whole * self.batch_size].reshape(whole, self.batch_size)
    number = np.arange(whole)
    batches = batches[permute(number, whole, self._seed + 1, number * 0 + epoch)]
    return np.concatenate([head, batches.reshape(-1), rest[whole * self.batch_size :]])


class PairBatches(RowBatches):
  """Batches of rows with a `target`, with the fields of `objectives.objective.encoder_decoder_fields`.

  If `target_len` is the last of `lengths`, both sides of a batch are padded to the shortest length that holds them;
  otherwise each target is padded to `target_len`.

  Args:
    rows: the rows; augmentation changes what the encoder reads.
    target_len: most tokens of a target.
    start: what the decoder reads first.
    batch_size, seed, lengths, shuffle, pad, options: see `RowBatches`.
  """

  def __init__(
    self,
    rows: Rows,
    batch_size: int,
    seed: int,
    lengths: Sequence[int],
    shuffle: bool,
    *,
    target_len: int,
    start: int,
    pad: int = 0,
    **options: Any,
  ) -> None:
    assert rows.target is not None
    self._target = RowBatches(rows.target, 1, 0, (target_len,), shuffle=False, pad=pad)
    self._target_len, self._start = target_len, start
    super().__init__(rows, batch_size, seed, lengths, shuffle, pad, **options)

  def _sizes(self) -> np.ndarray:
    own, target = self._rows.lengths, self._target._rows.lengths
    return np.maximum(own, target) if self._together else own

  @property
  def _together(self) -> bool:
    """Whether both sides of a batch are equally long."""
    return self._target_len == int(self._lengths[-1])

  def _arrays(self, rows: np.ndarray, length: int, epochs: np.ndarray) -> Batch:
    source = super()._arrays(rows, length, epochs)
    target = self._target._arrays(rows, length if self._together else self._target_len, epochs)
    side = lambda arrays: plan.Rows(arrays["inputs"], arrays["segment_ids"], arrays["positions"])
    return {**encoder_decoder_arrays(side(source), side(target), self._start, self._pad), "rows": source["rows"]}
