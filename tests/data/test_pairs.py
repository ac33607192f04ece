"""Next sentence and sentence order: rows of two texts against the documents that they come from."""

import dataclasses
import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_jax.data.dataset import Dataset
from tfm_jax.data.prepare import vocabulary_of
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import Side, Split
from tfm_jax.objectives.table import make_objective
from tfm_jax.objectives.words import ENDS_SENTENCE
from tfm_jax.text.tokenizers.table import TokenizerConfig, from_path
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


def whole_sentences(begin, end, width):
  """(first token, token after the last) of the row of each piece of a document with the tokens begin .. end - 1."""
  stops = [t + 1 for t in range(begin, end) if t % 7 == 0]
  rows = []
  for nominal in range(begin, end, width):
    early = [t for t in stops if nominal < t <= nominal + width]
    first = early[0] if nominal > begin and early else nominal
    fits = [t for t in stops if first < t <= first + width]
    rows.append((first, fits[-1] if fits else min(first + width, end)))
  return rows


def texts(batch, r, eos=3):
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
  middle = tokens.index(eos)
  assert tokens[0] == 2 and tokens[-1] == eos and tokens.count(eos) == 2
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
    rows = dict(whole_sentences(bounds[document - 1], bounds[document], seq_len - 3))
    end = rows[a[0]]
    stops = [t for t in range(a[0], end - 1) if t % 7 == 0]
    assert a[-1] in stops if stops else a[-1] < end - 1  # cut after a sentence
    if batch["next_sentence"][r] == 0:
      assert b == list(range(a[-1] + 1, end))
    else:
      steps = [(y - x) % sum(sizes) for x, y in itertools.pairwise(b)]
      assert set(steps) <= {1}  # text from elsewhere, as it stands there
      assert len(a) + len(b) <= seq_len - 3
      assert not stops or (b[0] - 1) % 7 == 0 or b[0] == 5 or sum(sizes) < 3 * seq_len


def test_half_of_the_second_texts_are_from_other_documents_and_lengths_tell_nothing():
  dataset = dataset_of("nsp", [200, 300, 250, 190], batch_size=4000, seq_len=40, seed=1)
  batch = dataset.batch(0)
  real = batch["segment_ids"].any(axis=1)
  batch = {name: array[real] for name, array in batch.items()}
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
    assert (b[0] - 1) % 7 == 0 or b[0] - 1 < 5 or a[-1] % 7  # after a sentence
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


# ---- nothing but the text tells the label


@pytest.fixture(scope="module")
def wikipedia():
  """(tokenizer, vocabulary, articles) of real text."""
  if "TFM_DATA_DIR" not in os.environ:
    pytest.skip("TFM_DATA_DIR names no folder with wiki_paragraphs")
  root = Path(os.environ["TFM_DATA_DIR"])
  tokenizer = from_path(TokenizerConfig(path=str(root / "vocab" / "t5" / "cc_all.32000.100extra.model")))
  vocabulary = dataclasses.replace(vocabulary_of(tokenizer), bos_id=2, mask_id=4)
  with gzip.open(root / "wiki_paragraphs" / "valid.txt.gz", "rt", encoding="utf-8") as file:
    return tokenizer, vocabulary, file.read()[:300_000].split("\n\n")


@pytest.mark.parametrize(("name", "document"), [("sop", "article"), ("nsp", "paragraph")])
def test_no_token_of_real_text_tells_the_label(wikipedia, name, document):
  tokenizer, vocabulary, articles = wikipedia
  parts = articles if document == "article" else [line for text in articles for line in text.split("\n")[1:] if line]
  ids = tokenizer.encode_batch(parts)
  offsets = np.concatenate([[0], np.cumsum([len(x) for x in ids])])
  side = Side(np.concatenate(ids).astype(np.uint16), offsets, offsets)
  objective = make_objective(ObjectiveConfig(name), vocabulary, 128)
  batch = Dataset(Split("train", (side,)), objective, 2500, 0, packing=True, shuffle=True).batch(0)
  both = {r: texts(batch, r, vocabulary.eos_id) for r in range(2500) if batch["segment_ids"][r].any()}
  label = batch["next_sentence"][list(both)] == 1
  piece = tokenizer.token
  signs = {
    "A begins with a capital": [piece(a[0]).lstrip("▁")[:1].isupper() for a, _ in both.values()],
    "B begins with a capital": [piece(b[0]).lstrip("▁")[:1].isupper() for _, b in both.values()],
    "A ends with a full stop": [piece(a[-1]).strip("\"')").endswith((".", "?", "!")) for a, _ in both.values()],
    "B ends with a full stop": [piece(b[-1]).strip("\"')").endswith((".", "?", "!")) for _, b in both.values()],
    "the row is nearly full": [len(a) + len(b) > 110 for a, b in both.values()],
  }
  for sign, holds in signs.items():
    assert abs(np.mean(np.array(holds)[label]) - np.mean(np.array(holds)[~label])) < 0.08, sign
  assert np.mean([len(a) + len(b) for a, b in both.values()]) > (100 if document == "article" else 80)


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
