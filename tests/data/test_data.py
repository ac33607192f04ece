"""Row plans and batch(step): no token is lost, documents are not mixed, and batch(step) is pure."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_jax.data.config import DataConfig
from tfm_jax.data.dataset import Dataset, batches, unigram_entropy
from tfm_jax.data.permutation import permute
from tfm_jax.data.prepare import objective_fields
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Objective, ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import RowPlan, Rows, Side, Split
from tfm_jax.objectives.table import OBJECTIVES, make_objective

PRETRAINING = [*OBJECTIVES]
VOCABULARY = Vocabulary(70_000, sentinel_ids=tuple(range(69_999, 69_899, -1)))


def side_of(sizes: list[int], first: int = 10) -> Side:
  """A stream of distinct tokens, so that a token tells its position."""
  offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
  return Side(np.arange(first, first + offsets[-1], dtype=np.uint32), offsets, offsets * 4)


def objective_of(name: str, seq_len: int, target_len: int = 0) -> Objective:
  return make_objective(ObjectiveConfig(name), VOCABULARY, seq_len, target_len)


def dataset_of(name: str = "mlm", sizes: tuple[int, ...] = (30, 7, 1, 90), batch_size: int = 4, **options) -> Dataset:
  options = {"seed": 3, "packing": True, "shuffle": True} | options
  return Dataset(Split("train", (side_of(list(sizes)),)), objective_of(name, 16), batch_size, **options)


def assert_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def read(plan: RowPlan, extra: int) -> tuple[Rows, ...]:
  """All rows of a row plan, and `extra` blank ones."""
  rows = np.arange(plan.num_rows + extra)
  return plan.read(rows, Draws.of(0, 0, rows))


sizes_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=12)


# ---- the order of rows


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 1000))
def test_the_order_is_a_permutation(size, seed, epoch):
  order = permute(np.arange(size), size, seed, np.full(size, epoch))
  np.testing.assert_array_equal(np.sort(order), np.arange(size))


@pytest.mark.parametrize("size", [2, 5, 8])
def test_every_row_comes_at_every_place_as_often(size):
  epochs = 3000
  order = permute(np.tile(np.arange(size), epochs), size, 0, np.repeat(np.arange(epochs), size))
  shares = np.zeros((size, size))
  np.add.at(shares, (np.tile(np.arange(size), epochs), order), 1 / epochs)
  assert np.abs(shares - 1 / size).max() < 5 * np.sqrt((1 - 1 / size) / size / epochs)


# ---- row plans


@given(sizes_of_documents, st.integers(2, 20), st.booleans())
def test_packed_rows_are_the_stream_and_keep_documents_apart(sizes, seq_len, causal):
  side = side_of(sizes)
  objective = objective_of("causal" if causal else "mlm", seq_len)
  plan = objective.plan(Split("train", (side,)), packing=True)
  (rows,) = read(plan, 2)
  document = np.repeat(np.arange(len(sizes)), sizes)
  width, pad = seq_len + causal, VOCABULARY.pad_id
  for r in range(plan.num_rows + 2):
    begin = r * seq_len
    expected = side.tokens[begin : begin + width] if r < plan.num_rows else side.tokens[:0]
    count = len(expected)
    assert rows.tokens[r].tolist() == expected.tolist() + [pad] * (width - count)
    owners = document[begin : begin + count]
    assert not rows.segment_ids[r, count:].any()
    assert not rows.positions[r, count:].any()
    if count:
      assert rows.segment_ids[r, :count].tolist() == (owners - owners[0] + 1).tolist()
      assert rows.documents()[r, :count].tolist() == owners.tolist()
      for owner in np.unique(owners):
        assert rows.positions[r, :count][owners == owner].tolist() == list(range((owners == owner).sum()))
  targets = len(side.tokens) - causal
  assert plan.num_rows == max(1, -(-targets // seq_len))


@given(sizes_of_documents, st.integers(2, 20), st.booleans())
def test_unpacked_rows_are_pieces_of_one_document(sizes, seq_len, causal):
  side = side_of(sizes)
  objective = objective_of("causal" if causal else "mlm", seq_len)
  plan = objective.plan(Split("train", (side,)), packing=False)
  (rows,) = read(plan, 1)
  expected = []
  for document in np.split(side.tokens, side.offsets[1:-1]):
    starts = range(0, max(1, len(document) - causal), seq_len)
    expected += [document[start : start + seq_len + causal].tolist() for start in starts]
  texts = [rows.tokens[r, rows.segment_ids[r] > 0].tolist() for r in range(plan.num_rows + 1)]
  assert texts == [*expected, []]
  assert rows.segment_ids.max() == 1


@given(
  pairs=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=15),
  widths=st.tuples(st.integers(2, 24), st.integers(2, 24)),
  packing=st.booleans(),
)
def test_pairs_stay_whole_and_together(pairs, widths, packing):
  sides = tuple(side_of([pair[i] for pair in pairs], 10 + 10_000 * i) for i in (0, 1))
  plan = objective_of("seq2seq", *widths).plan(Split("train", sides), packing)
  assert plan.truncated == sum(pair[i] > widths[i] for pair in pairs for i in (0, 1))
  both = read(plan, 1)
  expected = [
    tuple(tuple(side.tokens[side.offsets[n] :][: min(pair[i], widths[i])]) for i, side in enumerate(sides))
    for n, pair in enumerate(pairs)
  ]
  texts, fill = [], []
  for r in range(plan.num_rows):
    segments = [range(1, side.segment_ids[r].max() + 1) for side in both]
    assert segments[0] == segments[1]
    assert packing or len(segments[0]) == 1
    row = [tuple(tuple(side.tokens[r, side.segment_ids[r] == s]) for side in both) for s in segments[0]]
    fill.append([sum(len(pair[i]) for pair in row) for i in (0, 1)])
    texts += row
  assert texts == expected
  assert not any(side.segment_ids[-1].any() for side in both)
  if packing:  # a row ends only where the next pair would not fit
    ends = np.cumsum([both[0].segment_ids[r].max() for r in range(plan.num_rows)])
    for r, end in enumerate(ends[:-1]):
      assert any(fill[r][i] + len(expected[end][i]) > widths[i] for i in (0, 1))


# ---- batch(step)


@pytest.mark.parametrize("name", PRETRAINING)
def test_batches_are_as_declared(name):
  dataset = dataset_of(name)
  declared = objective_fields(ObjectiveConfig(name), DataConfig(seq_len=16), VOCABULARY)
  assert dataset.fields == declared
  batch = dataset.batch(5)
  assert {n: (a.shape, a.dtype) for n, a in batch.items()} == {
    n: ((4, *field.shape), field.dtype) for n, field in declared.items()
  }


@pytest.mark.parametrize("name", PRETRAINING)
def test_batch_is_pure_and_its_rows_are_independent(name):
  first, second = dataset_of(name), dataset_of(name)
  for step in (7, 0, 7):
    assert_equal(first.batch(step), second.batch(step))
  whole = first.batch(3)
  for part in (np.array([2, 0]), np.array([3])):
    assert_equal({n: a[part] for n, a in whole.items()}, second.batch(3, part))


@given(st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=20)
def test_each_epoch_holds_every_row_once(batch_size, seed):
  dataset = dataset_of(batch_size=batch_size, seed=seed)
  steps = -(-3 * dataset.num_rows // batch_size)
  rows = np.concatenate([dataset.batch(step)["rows"] for step in range(steps)])[: 3 * dataset.num_rows]
  epochs = rows.reshape(3, dataset.num_rows)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(dataset.num_rows))


def test_masks_belong_to_the_row_and_not_to_its_place():
  both = [dataset_of(sizes=(800,), batch_size=50, shuffle=shuffle).batch(0) for shuffle in (True, False)]
  assert (both[0]["rows"] != both[1]["rows"]).any()
  assert_equal(*({n: a[np.argsort(batch["rows"])] for n, a in batch.items()} for batch in both))


def test_the_order_and_the_masks_change_with_epoch_and_seed():
  dataset = dataset_of(sizes=(4000,), batch_size=250)
  first, second, other = (
    dataset.batch(0),
    dataset.batch(1),
    dataset_of(sizes=(4000,), batch_size=250, seed=4).batch(0),
  )
  for batch in (second, other):
    assert (first["rows"] != batch["rows"]).mean() > 0.9
    masks = [b["mlm_positions"][np.argsort(b["rows"])] for b in (first, batch)]
    assert (masks[0] != masks[1]).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_evaluation_sees_every_target_once_whatever_the_batch(batch_size):
  dataset = dataset_of("causal", batch_size=batch_size, shuffle=False)
  evaluated = [dataset.batch(step) for step in range(dataset.num_batches())]
  rows = np.concatenate([batch["rows"] for batch in evaluated])
  order = np.argsort(rows)
  targets, weights = (np.concatenate([batch[name] for batch in evaluated])[order] for name in ("targets", "weights"))
  targets = targets[weights > 0]
  side = side_of([30, 7, 1, 90])
  starts = side.offsets[:-1]
  np.testing.assert_array_equal(targets, np.delete(side.tokens, starts))
  assert dataset.num_batches(2) == min(2, dataset.num_batches())


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_evaluation_takes_the_same_rows_from_everywhere(batch_size):
  """Because the first rows of a text are one passage of it."""
  seen = []
  for seed in (0, 1):
    dataset = dataset_of(sizes=(16_000,), batch_size=batch_size, seed=seed, shuffle=False)
    count = -(-140 // batch_size)
    seen.append(np.concatenate([dataset.batch(step)["rows"] for step in range(count)])[:140])
  np.testing.assert_array_equal(*seen)
  assert len(np.unique(seen[0])) == 140
  histogram, _ = np.histogram(seen[0], 10, (0, 1000))
  assert histogram.min() > 3


# ---- what was evaluated


def test_the_bytes_of_what_was_evaluated():
  """Documents count by the share of their tokens that is predicted; here they have 1, 2, 3, ... bytes per token."""
  sizes = [30, 7, 1, 90, 200, 5]
  offsets = np.concatenate([[0], np.cumsum(sizes)])
  starts = np.concatenate([[0], np.cumsum(np.arange(1, 7) * sizes)])
  side = Side(np.arange(10, 10 + offsets[-1], dtype=np.uint32), offsets, starts)
  for limit, packing in itertools.product((0, 1, 3), (True, False)):
    dataset = Dataset(Split("e", (side,)), objective_of("causal", 16), 4, 0, packing, shuffle=False)
    batches = [dataset.batch(step) for step in range(dataset.num_batches(limit))]
    targets = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in batches])
    owners = np.searchsorted(offsets, targets - 10, side="right") - 1
    evaluated = dataset.evaluated(limit)
    rows = sum((batch["rows"] < dataset.num_rows).sum() for batch in batches)
    assert evaluated == (rows, dataset.num_rows, len(targets), pytest.approx((owners + 1).sum()))
  assert dataset.evaluated().tokens == sum(sizes) - len(sizes)


def test_the_bytes_of_pairs_are_those_of_their_targets():
  source, target = side_of([5, 6, 7]), side_of([4, 9, 2], 20)  # 4 bytes per token
  dataset = Dataset(Split("e", (source, target)), objective_of("seq2seq", 8, 8), 2, 0, packing=True, shuffle=False)
  assert dataset.evaluated() == (3, 3, 4 + 8 + 2, 4 * (4 + 8 + 2))
  continued = Dataset(Split("e", (source,)), objective_of("seq2seq", 8, 8), 2, 0, packing=True, shuffle=False)
  evaluated = [continued.batch(step) for step in range(continued.num_batches())]
  weight = sum(batch["decoder_weights"].sum() for batch in evaluated)
  assert continued.evaluated() == (2, 2, weight, 4 * weight)


def test_no_bytes_stand_behind_masks():
  assert dataset_of("mlm", shuffle=False).evaluated(1) == (4, 8, 0, 0)


def test_a_corpus_shorter_than_a_row_is_padded():
  dataset = dataset_of("causal", sizes=(5,), batch_size=3)
  assert dataset.num_rows == 1
  assert dataset.batch(0)["weights"].sum(axis=1).tolist() == [4, 4, 4]


# ---- prefetching


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_prefetching_changes_nothing(prefetch):
  dataset = dataset_of()
  prefetched = list(batches(dataset, 3, 9, rows=np.array([1, 2]), prefetch=prefetch))
  assert [step for step, _ in prefetched] == list(range(3, 9))
  for step, batch in prefetched:
    assert_equal(batch, dataset.batch(step, np.array([1, 2])))
  assert list(batches(dataset, 9, 9, prefetch=prefetch)) == []


def test_an_error_in_the_background_reaches_the_reader(monkeypatch):
  dataset = dataset_of()
  make = dataset.batch

  def fails_at_two(step, rows=None):
    if step == 2:
      raise RuntimeError("disk gone")
    return make(step, rows)

  monkeypatch.setattr(dataset, "batch", fails_at_two)
  iterator = batches(dataset, 0, 5, prefetch=2)
  with pytest.raises(RuntimeError, match="disk gone"):
    list(iterator)


def test_prefetching_can_be_left_early():
  iterator = batches(dataset_of(), 0, 10_000, prefetch=4)
  assert [step for step, _ in itertools.islice(iterator, 3)] == [0, 1, 2]
  iterator.close()


# ---- unigram entropy


def test_unigram_entropy_of_known_targets():
  tokens = np.array([10, 10, 10, 11, 12, 13, 10, 11, 10], np.uint16)  # as targets: 10 x 4, 11 x 2, 12, 13
  side = Side(tokens, np.array([0, 9]), np.array([0, 9]))
  dataset = Dataset(Split("evaluation", (side,)), objective_of("causal", 4), 3, 0, packing=True, shuffle=False)
  p = np.array([4, 2, 1, 1]) / 8
  assert unigram_entropy(dataset) == pytest.approx(-(p * np.log(p)).sum())
  assert unigram_entropy(dataset_of("span_corruption", shuffle=False)) > 0


@pytest.mark.parametrize("name", PRETRAINING)
def test_unigram_entropy_counts_every_target_of_every_held_out_row(name, monkeypatch):
  monkeypatch.setattr("tfm_jax.data.dataset._CHUNK", 50)
  dataset = dataset_of(name, sizes=(300, 40, 77), shuffle=False)
  side = "decoder_" if "decoder_targets" in dataset.fields else ""
  evaluated = [dataset.batch(step) for step in range(dataset.num_batches())]
  targets = np.concatenate([batch[f"{side}targets"][batch[f"{side}weights"] > 0] for batch in evaluated])
  _, counts = np.unique(targets, return_counts=True)
  p = counts / counts.sum()
  assert unigram_entropy(dataset) == pytest.approx(-(p * np.log(p)).sum())
