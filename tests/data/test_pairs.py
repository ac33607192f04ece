"""Next sentence and sentence order: rows of two texts against the documents that they come from."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_jax.data.dataset import Dataset
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import Side, Split
from tfm_jax.objectives.table import make_objective
from tfm_jax.objectives.words import ENDS_SENTENCE
from tfm_jax.training.config import from_dict, resolve

SIZE, STOP = 5000, 4999  # each token is another id, which tells its place; multiples of 7 end sentences
PIECES = np.where(np.arange(SIZE) % 7 == 0, ENDS_SENTENCE, 0).astype(np.uint8)
PIECES[:5] = 0
VOCABULARY = Vocabulary(SIZE, pieces=PIECES.tobytes())


def dataset_of(name, sizes, seq_len=32, batch_size=8, seed=0, vocabulary=VOCABULARY, shuffle=True, **config):
  offsets = np.concatenate([[0], np.cumsum(sizes)])
  side = Side(np.arange(5, 5 + offsets[-1], dtype=np.uint16), offsets, offsets)
  objective = make_objective(ObjectiveConfig(name, **config), vocabulary, seq_len)
  return Dataset(Split("train", (side,)), objective, batch_size, seed, packing=True, shuffle=shuffle)


def texts(batch, r):
  """(A, B) of a row with the masked tokens put back, or None if it is blank."""
  tokens = batch["inputs"][r].copy()
  used = batch["weights"][r] > 0
  tokens[batch["mlm_positions"][r, used]] = batch["targets"][r, used]
  valid = batch["segment_ids"][r] == 1
  if not valid.any():
    assert not tokens.any() and not used.any() and not batch["token_types"][r].any()
    return None
  length = int(valid.sum())
  assert valid[:length].all() and not tokens[length:].any()
  tokens = tokens[:length].tolist()
  middle = tokens.index(3)
  assert tokens[0] == 2 and tokens[-1] == 3 and tokens.count(3) == 2
  expected = [0] * (middle + 1) + [1] * (length - middle - 1)
  assert batch["token_types"][r].tolist() == expected + [0] * (len(valid) - length)
  assert batch["positions"][r, :length].tolist() == list(range(length))
  return tokens[1:middle], tokens[middle + 1 : -1]


@given(
  sizes=st.lists(st.integers(1, 90), min_size=2, max_size=6), seed=st.integers(0, 1000), seq_len=st.integers(8, 40)
)
@settings(max_examples=40, deadline=None)
def test_rows_of_next_sentence_against_their_documents(sizes, seed, seq_len):
  dataset = dataset_of("nsp", sizes, seq_len, seed=seed)
  bounds = np.cumsum([0, *sizes]) + 5
  batch = dataset.batch(0)
  for r in range(8):
    both = texts(batch, r)
    if both is None:
      continue
    a, b = both
    assert a and b and a == list(range(a[0], a[0] + len(a)))
    document = np.searchsorted(bounds, a[0], side="right")
    end = bounds[document]
    piece = (a[0] - bounds[document - 1]) % (seq_len - 3) == 0  # pieces begin every seq_len - 3 tokens
    assert piece and len(a) + len(b) == min(seq_len - 3, end - a[0])
    stops = [t for t in range(a[0], a[0] + len(a) + len(b) - 1) if t % 7 == 0]
    assert not stops or a[-1] in stops  # cut after a sentence
    if batch["next_sentence"][r] == 0:
      assert b == list(range(a[-1] + 1, a[-1] + 1 + len(b)))
    else:
      steps = [(y - x) % sum(sizes) for x, y in itertools.pairwise(b)]
      assert set(steps) <= {1}  # text from elsewhere, as it stands there
      assert b[0] != a[-1] + 1 or (b[0] - 1) % 7 == 0


def test_half_of_the_second_texts_are_from_other_documents_and_lengths_tell_nothing():
  dataset = dataset_of("nsp", [200, 300, 250, 190], batch_size=4000, seq_len=40)
  batch = dataset.batch(0)
  label = batch["next_sentence"]
  assert abs(label.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(label))
  length = batch["segment_ids"].sum(axis=1)
  second = batch["token_types"].sum(axis=1)
  for size in (length, second):
    ones, zeros = size[label == 1], size[label == 0]
    assert abs(ones.mean() - zeros.mean()) < 5 * size.std() / np.sqrt(len(label) / 4)
  bounds, other = np.cumsum([0, 200, 300, 250, 190]) + 5, []
  for r in np.flatnonzero(label):
    a, b = texts(batch, r)
    document = [int(np.searchsorted(bounds, t, side="right")) for t in (a[0], b[0])]
    other.append(document[0] != document[1])
    assert (b[0] - 1) % 7 == 0 or b[0] - 1 < 5  # after a sentence
  assert np.mean(other) > 0.93  # the rest began in another document, and the next sentence led back into this one


@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_rows_of_sentence_order_are_a_text_in_either_order(sizes, seed):
  batch = dataset_of("sop", sizes, seed=seed).batch(0)
  for r in range(8):
    both = texts(batch, r)
    if both is not None:
      a, b = both if batch["next_sentence"][r] == 0 else both[::-1]
      assert a and b and a + b == list(range(a[0], a[0] + len(a) + len(b)))


def test_half_of_the_orders_are_swapped_and_masks_keep_their_rate():
  batch = dataset_of("sop", [3000], batch_size=2000, seq_len=64).batch(0)
  assert abs(batch["next_sentence"].mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)
  full = batch["segment_ids"].sum(axis=1) == 64
  assert (batch["weights"][full].sum(axis=1) == round(0.15 * 61)).all()
  assert not np.isin(batch["targets"][batch["weights"] > 0], [0, 2, 3]).any()


@pytest.mark.parametrize("name", ["nsp", "sop"])
def test_without_ends_of_sentences_texts_are_cut_anywhere(name):
  batch = dataset_of(name, [400, 400], batch_size=500, vocabulary=Vocabulary(SIZE)).batch(0)
  places = [len(texts(batch, r)[0]) for r in range(500) if (batch["segment_ids"][r] == 1).sum() == 32]
  assert set(places) == set(range(1, 29))


def test_a_single_document_has_no_other():
  with pytest.raises(UserError, match=r"^objective\.name=nsp takes half .* data\.document"):
    dataset_of("nsp", [100])


@pytest.mark.parametrize(
  ("changes", "culprit"),
  [
    ({}, "set head.name=pretraining"),
    ({"head": {"name": "pretraining"}, "model": {"token_types": 1}}, "set model.token_types=2"),
  ],
)
def test_a_model_that_cannot_read_two_texts_is_refused(changes, culprit):
  with pytest.raises(UserError, match=culprit):
    resolve(from_dict({"objective": {"name": "nsp"}} | changes))
  resolve(from_dict({"objective": {"name": "nsp"}, "head": {"name": "pretraining"}}))
