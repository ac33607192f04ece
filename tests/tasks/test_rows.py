"""Rows of examples and their batches: nothing is lost, little is padded, and a batch is a function of its step."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Vocabulary
from tfm_jax.tasks.labelled.augmentation import Augmentation
from tfm_jax.tasks.labelled.rows import RowBatches, lengths_of, make_rows
from tfm_jax.tasks.labelled.texts import text_rows
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer

TOKENIZER = train_tokenizer(TokenizerConfig("char"), ["abcdefghijklmnopqrstuvwxyz "])
VOCABULARY = Vocabulary(TOKENIZER.vocab_size)


def rows_of(sizes: list[int], members: int = 1):
  sequences = [np.arange(n, dtype=np.int32) + 100 * i for i, n in enumerate(sizes)]
  labels = {"targets": np.arange(len(sizes) // members, dtype=np.int32), "weights": np.ones(len(sizes) // members)}
  token_labels = {"marks": [-ids for ids in sequences]}
  return make_rows(sequences, None, labels, token_labels, range(len(sizes) // members), members=members)


@pytest.mark.parametrize(
  ("seq_len", "buckets", "lengths"),
  [(64, 1, (64,)), (64, 3, (16, 32, 64)), (64, 9, (16, 32, 64)), (100, 3, (25, 50, 100)), (30, 4, (30,))],
)
def test_lengths_are_halves_and_none_is_below_16(seq_len, buckets, lengths):
  assert lengths_of(seq_len, buckets) == lengths


@settings(max_examples=40)
@given(
  sizes=st.lists(st.integers(0, 64), min_size=1, max_size=70),
  batch_size=st.integers(1, 9),
  buckets=st.integers(1, 3),
  seed=st.integers(0, 3),
)
def test_every_epoch_has_every_row_once(sizes, batch_size, buckets, seed):
  batches = RowBatches(rows_of(sizes), batch_size, seed, lengths_of(64, buckets), shuffle=True)
  n = len(sizes)
  seen = np.concatenate([batches.rows_of(step) for step in range(-(-3 * n // batch_size))])[: 3 * n]
  for epoch in range(3):
    assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_differ_and_a_batch_is_a_function_of_its_step():
  rows = rows_of([*range(1, 65)] * 4)
  a, b = (RowBatches(rows, 16, 0, (16, 32, 64), shuffle=True) for _ in range(2))
  later = b.batch(19)
  for step in range(19):
    a.batch(step)
  for name, value in a.batch(19).items():
    np.testing.assert_array_equal(value, later[name])
  assert not np.array_equal(a.rows_of(0), a.rows_of(16))
  part = b.batch(19, np.array([1, 5]))
  for name, value in part.items():
    np.testing.assert_array_equal(value, later[name][[1, 5]])


def test_batches_hold_the_tokens_and_labels_of_their_rows():
  sizes = [3, 0, 17, 30, 5]
  batches = RowBatches(rows_of(sizes), 2, 0, (16, 32), shuffle=False, pad=7)
  seen = {}
  for step, batch in enumerate(batches.batches()):
    for i, row in enumerate(batches.rows_of(step)):
      count = sizes[row] if row >= 0 else 0
      valid = np.arange(batch["inputs"].shape[1]) < count
      np.testing.assert_array_equal(batch["segment_ids"][i], valid)
      np.testing.assert_array_equal(batch["inputs"][i], np.where(valid, np.arange(len(valid)) + 100 * row, 7))
      np.testing.assert_array_equal(batch["marks"][i], np.where(valid, -np.arange(len(valid)) - 100 * row, 0))
      np.testing.assert_array_equal(batch["positions"][i], np.arange(len(valid)))
      assert (batch["targets"][i], batch["weights"][i]) == ((row, 1) if row >= 0 else (0, 0))
      seen[row] = batch["inputs"].shape[1]
  assert seen == {0: 16, 1: 16, 4: 32, 2: 32, 3: 32, -1: 32}


def test_rows_of_several_sequences_stay_together():
  batch = RowBatches(rows_of([3, 5, 2, 16], members=2), 2, 0, (16,), shuffle=False).batch(0)
  assert batch["inputs"].shape == (2, 2, 16)
  np.testing.assert_array_equal((batch["segment_ids"] > 0).sum(-1), [[3, 5], [2, 16]])
  np.testing.assert_array_equal(batch["inputs"][:, :, 0], [[0, 100], [200, 300]])


def test_rows_of_one_length_come_together_and_little_is_padded():
  draw = np.random.default_rng(0)
  sizes = draw.integers(1, 65, 5000).tolist()
  fixed, sorted_ = (RowBatches(rows_of(sizes), 16, 0, lengths, shuffle=True) for lengths in ((64,), (16, 32, 64)))
  assert fixed.fill() == pytest.approx(sum(sizes) / (64 * 5008), rel=0.01)
  assert sorted_.fill() > 1.25 * fixed.fill()
  lengths = [sorted_.batch(step)["inputs"].shape[1] for step in range(300)]
  assert len({*lengths[:20]}) == 3  # short and long batches are mixed


def test_a_limited_evaluation_takes_rows_from_everywhere():
  batches = RowBatches(rows_of([5] * 1000), 10, 0, (16,), shuffle=False, limit=5)
  rows = np.concatenate([batches.rows_of(step) for step in range(batches.num_batches)])
  assert batches.num_batches == 5 and len({*rows.tolist()}) == 50 and rows.max() > 900


def truncated_pair(text: str, pair: str, room: int) -> tuple[str, str]:
  """Cuts letter by letter: the longer text loses its last one; of equally long ones, the second."""
  while len(text) + len(pair) > room:
    text, pair = (text[:-1], pair) if len(text) > len(pair) else (text, pair[:-1])
  return text, pair


@settings(max_examples=60)
@given(
  texts=st.lists(st.tuples(*[st.text("abc ", max_size=14)] * 2), min_size=1, max_size=8),
  seq_len=st.integers(5, 24),
  has_pair=st.booleans(),
  has_bos=st.booleans(),
)
def test_rows_of_texts_against_an_oracle_letter_by_letter(texts, seq_len, has_pair, has_bos):
  vocabulary = Vocabulary(TOKENIZER.vocab_size, bos_id=2 if has_bos else -1)
  examples = [pair if has_pair else pair[:1] for pair in texts]
  rows = text_rows(examples, {}, TOKENIZER, vocabulary, seq_len, token_types=True)
  room, cut = seq_len - has_bos - 1 - has_pair, 0
  for number, example in enumerate(examples):
    kept = truncated_pair(*example, room) if has_pair else (example[0][:room],)
    cut += sum(a != b for a, b in zip(kept, example, strict=True))
    expected = [2] * has_bos
    for text in kept:
      expected += [*TOKENIZER.encode(text).tolist(), 3]
    part = slice(rows.offsets[number], rows.offsets[number + 1])
    assert rows.tokens[part].tolist() == expected
    if has_pair:
      assert rows.types is not None and rows.types[part].sum() == len(kept[1]) + 1
  assert rows.truncated == cut and (has_pair or rows.types is None)


def test_the_order_is_shuffled_within_a_length_too():
  """Rows of one length do not always meet the same others."""
  batches = RowBatches(rows_of([10] * 64), 8, 0, (16, 32), shuffle=True)
  partners = collections.Counter()
  for step in range(8 * 20):
    rows = batches.rows_of(step).tolist()
    if 0 in rows:
      partners.update(rows)
  assert len(partners) > 50


AUGMENTED = Vocabulary(200, special_ids=(0, 1, 2, 3, 4))


@pytest.mark.parametrize(("hide", "hide_spans"), [(0.2, 0.0), (0.0, 0.2), (0.1, 0.1)])
def test_a_share_of_the_ordinary_tokens_is_hidden_anew_in_each_epoch(hide, hide_spans):
  rows = rows_of([60] * 200)
  rows = dataclasses.replace(rows, tokens=np.maximum(rows.tokens % 190, 1))
  batches = RowBatches(rows, 50, 0, (64,), True, augment=Augmentation(hide, hide_spans, 0.0, AUGMENTED))
  plain = RowBatches(rows, 50, 0, (64,), True)
  masks = {}
  for step in range(8):  # two epochs
    a, b = batches.batch(step), plain.batch(step)
    ordinary = ~np.isin(b["inputs"], (0, 1, 2, 3, 4))
    changed = a["inputs"] != b["inputs"]
    assert (a["inputs"][changed] == AUGMENTED.mask_id).all() and not (changed & ~ordinary).any()
    assert 0.7 * (hide + hide_spans) < changed.sum() / ordinary.sum() < 1.1 * (hide + hide_spans)
    for i, row in enumerate(plain.rows_of(step)):
      masks.setdefault(row, []).append(changed[i])
    for name in a:
      if name != "inputs":
        np.testing.assert_array_equal(a[name], b[name])
  assert all(not np.array_equal(first, second) for first, second in masks.values())


@pytest.mark.parametrize(("count", "batch_size"), [(3, 8), (10, 4)])
def test_every_row_of_every_epoch_has_an_id_of_its_own(count, batch_size):
  """A batch may be of several epochs; the ids decide dropout and augmentation."""
  batches = RowBatches(rows_of([5] * count), batch_size, 0, (16,), shuffle=True)
  steps = range(6 * count // batch_size)
  ids = np.concatenate([batches.batch(step)["rows"] for step in steps])
  rows = np.concatenate([batches.rows_of(step) for step in steps])
  np.testing.assert_array_equal(ids, rows + count * (np.arange(len(rows)) // count))
  part = batches.batch(1, np.array([0, batch_size - 1]))["rows"]
  np.testing.assert_array_equal(part, ids[batch_size:][[0, batch_size - 1]])


def test_tokens_are_hidden_behind_a_token_that_the_tokenizer_has():
  bare = Vocabulary(200, mask_id=-1, unk_id=-1)
  for settings_of in ((0.1, 0.0, 0.0), (0.0, 0.1, 0.0)):
    with pytest.raises(UserError, match=r"task\.hide.*=0\.1 puts the mask token or the unknown one in place of others"):
      Augmentation(*settings_of, bare)
  assert Augmentation(0.0, 0.0, 0.1, bare).active
  hidden = Augmentation(0.9, 0.0, 0.0, Vocabulary(200, mask_id=-1, unk_id=1))
  assert set(np.unique(hidden(np.full((2, 50), 9), Draws.of(0, 0, np.arange(2))))) == {1, 9}


def test_swapped_tokens_are_the_same_tokens():
  rows = rows_of([60] * 50)
  rows = dataclasses.replace(rows, tokens=rows.tokens % 190)
  batch = RowBatches(rows, 50, 0, (64,), True, augment=Augmentation(0.0, 0.0, 0.3, AUGMENTED)).batch(0)
  plain = RowBatches(rows, 50, 0, (64,), True).batch(0)
  moved = batch["inputs"] != plain["inputs"]
  assert 0.2 < moved.sum() / (plain["segment_ids"] > 0).sum() < 0.6
  np.testing.assert_array_equal(np.sort(batch["inputs"]), np.sort(plain["inputs"]))
  assert not moved[np.isin(plain["inputs"], (0, 1, 2, 3, 4))].any()
