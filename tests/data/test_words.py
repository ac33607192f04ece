"""Words of rows of tokens, whole-word masking, n-grams, rates that change: against slow oracles, as statistics."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_jax.data.dataset import Dataset
from tfm_jax.data.prepare import vocabulary_of
from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.masking import Masking
from tfm_jax.objectives.objective import ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import Side, Split
from tfm_jax.objectives.table import make_objective
from tfm_jax.objectives.words import choose_units, ngram_starts, pieces_of, runs, sentence_ends, word_starts
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer

TEXT = (
  "The unbelievable acknowledgements, 1984 of them: don't go. Naturally, an extraordinary (really) well-known "
  "configuration was internationalised!\nIs it so? Yes, überhaupt."
)
KINDS = {
  "wordpiece": {"vocab_size": 90},
  "sentencepiece": {"vocab_size": 320},
  "gpt2": {"vocab_size": 290},
  "char": {},
  "byte": {},
}


def tokenizer_of(kind):
  return train_tokenizer(TokenizerConfig(kind=kind, lowercase=False, **KINDS[kind]), [TEXT] * 3)


def draws_for(count, seed=0):
  return Draws.of(seed, 0, np.arange(count))


def starts_of(tokenizer, text, seed=0):
  """(ids, which of them begin a word) of one text."""
  vocabulary = vocabulary_of(tokenizer)
  ids = tokenizer.encode(text)[None]
  ordinary = ~np.isin(ids, vocabulary.special_ids)
  kinds = pieces_of(vocabulary)[ids]
  return ids[0], word_starts(draws_for(1, seed), 0, kinds, ordinary, np.ones_like(ids))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_every_tokenizer_are_runs_of_letters_and_digits(kind):
  tokenizer = tokenizer_of(kind)
  ids, starts = starts_of(tokenizer, TEXT)
  places = np.flatnonzero(starts)
  assert len(places) < len(ids)
  words = [tokenizer.decode(part).replace(" ", "") for part in np.split(ids, places)[1:]]
  found = [word for word in words if re.search(r"\w", word)]
  if kind == "gpt2" or kind == "sentencepiece":  # a piece may hold a letter and punctuation
    assert {"unbelievable", "acknowledgements", "1984", "internationalised", "überhaupt"} <= set(found)
  else:
    assert found == re.findall(r"\w+", TEXT)


def test_ends_of_sentences_are_full_stops_and_line_ends():
  for kind in ("char", "byte", "sentencepiece", "gpt2"):
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("No. Is it so? Yes\nIs")
    ends = sentence_ends(pieces_of(vocabulary_of(tokenizer))[ids][None])[0]
    parts = [tokenizer.decode(part).strip() for part in np.split(ids, np.flatnonzero(ends) + 1)]
    assert parts == ["No.", "Is it so?", "Yes", "Is"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_closing_quotation_mark_belongs_to_the_sentence_before_it(kind):
  texts = ['He said "go." Then (so?) "no."', "“Yes.” “No!” A."]
  tokenizer = train_tokenizer(TokenizerConfig(kind=kind, lowercase=False, **KINDS[kind]), [TEXT, *texts] * 3)
  for text, expected in zip(texts, ['He said "go."|Then (so?)|"no."', "“Yes.”|“No!”|A."], strict=True):
    if kind != "byte" or text.isascii():  # curly marks are several bytes
      ids = tokenizer.encode(text)
      ends = sentence_ends(pieces_of(vocabulary_of(tokenizer))[ids][None])[0]
      parts = [tokenizer.decode(part).replace(" ", "") for part in np.split(ids, np.flatnonzero(ends) + 1)]
      assert "|".join(filter(None, parts)) == expected.replace(" ", "")


def test_chinese_is_cut_into_words_of_one_to_four_characters_anew_in_each_row():
  text = "我们今天去北京大学看朋友然后回家吃饭" * 20
  tokenizer = train_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=60), [text, "latin words"])
  ids, starts = starts_of(tokenizer, text)
  assert len(ids) == len(text)
  lengths = np.diff(np.flatnonzero(starts))
  assert set(lengths) == {1, 2, 3, 4}
  assert abs(lengths.mean() - 1.75) < 5 * lengths.std() / np.sqrt(len(lengths))
  assert (starts != starts_of(tokenizer, text, seed=1)[1]).any()
  ids, starts = starts_of(tokenizer, "北京latin北京")
  assert starts[tokenizer.encode("北京").size]  # a word does not span two scripts


@given(st.integers(0, 2**31), st.integers(1, 60), st.data())
@settings(max_examples=60)
def test_units_are_chosen_as_berts_whole_words_are(seed, width, data):
  rng = np.random.default_rng(seed)
  members = rng.random((3, width)) < 0.8
  starts = members & (rng.random((3, width)) < 0.5)
  starts |= members & ~np.roll(members, 1, axis=1)
  starts[:, 0] = members[:, 0]
  counts = np.array([data.draw(st.integers(0, int(n))) for n in members.sum(axis=1)])
  draws = draws_for(3, seed)
  chosen = choose_units(draws, 7, starts, members, counts)
  keys = draws.bits(7, width)
  for r in range(3):
    units: list[list[int]] = []
    for t in np.flatnonzero(members[r]):
      units = [*units, [t]] if starts[r, t] else [*units[:-1], [*units[-1], t]]
    expected: set[int] = set()
    for number in np.argsort(keys[r], kind="stable"):
      if number < len(units) and len(expected) + len(units[number]) <= counts[r]:
        expected |= set(units[number])
    assert set(np.flatnonzero(chosen[r])) == expected


def test_every_word_is_as_likely_and_is_masked_whole():
  kinds = np.zeros(40, np.uint8)
  kinds[20:] = 4  # INSIDE
  vocabulary = Vocabulary(40, pieces=kinds.tobytes())
  row = np.array([5, 25, 6, 7, 26, 8, 9, 27, 10, 11] * 4, np.int32)
  tokens = np.tile(row, (4000, 1))
  masking = Masking(ObjectiveConfig(whole_word=True, random_rate=0.0, keep_rate=0.0), vocabulary, len(row))
  out = masking.apply(draws_for(len(tokens)), tokens, np.ones_like(tokens))
  hidden = out["inputs"] == 4
  continued = np.flatnonzero(row >= 20)
  np.testing.assert_array_equal(hidden[:, continued], hidden[:, continued - 1])
  assert (hidden.sum(axis=1) <= 6).all() and hidden.sum(axis=1).mean() > 5.9
  single = hidden[:, [0 + 2, 5, 8, 9]].mean()
  double = hidden[:, continued].mean()
  # Long words are passed over when little is left, as in BERT.
  assert 0.15 <= single < 0.18 and 0.12 < double <= 0.15


def test_ngrams_have_lengths_in_proportion_to_their_inverse():
  ordinary = np.ones((200, 300), bool)
  ordinary[:, ::50] = False
  segments = np.ones((200, 300), int)
  starts = ngram_starts(draws_for(200), 3, ordinary, ordinary, segments, 3)
  inner = np.concatenate([np.diff(np.flatnonzero(row[1:40])) for row in starts])
  shares = np.bincount(inner, minlength=4)[1:4] / len(inner)
  expected = np.array([6, 3, 2]) / 11
  assert (np.abs(shares - expected) < 0.02).all() and inner.max() == 3
  assert starts[:, 1::50].all() and not starts[:, ::50].any()


@given(st.integers(0, 2**31), st.integers(1, 50))
def test_runs_have_the_lengths_that_are_drawn(seed, count):
  begins = runs(draws_for(2, seed), 0, count, (0.2, 0.0, 0.8))
  assert begins[:, 0].all()
  for row in begins:
    lengths = np.diff(np.flatnonzero(row))
    assert set(lengths) <= {1, 3}


@given(
  seed=st.integers(0, 2**31),
  whole=st.booleans(),
  ngram=st.integers(1, 4),
  rate=st.floats(0.05, 0.6),
  width=st.integers(2, 40),
)
def test_masks_of_words_never_exceed_their_number_and_nothing_that_fits_is_left(seed, whole, ngram, rate, width):
  rng = np.random.default_rng(seed)
  kinds = np.zeros(60, np.uint8)
  kinds[30:] = 4
  vocabulary = Vocabulary(60, pieces=kinds.tobytes())
  tokens = rng.integers(0, 60, (4, width)).astype(np.int32)
  segments = np.sort(rng.integers(0, 3, (4, width)), axis=1).astype(np.int32)
  config = ObjectiveConfig(whole_word=whole, ngram=ngram, mask_rate=rate)
  out = Masking(config, vocabulary, width).apply(draws_for(4, seed), tokens, segments)
  for r in range(4):
    ordinary = (tokens[r] >= 5) & (segments[r] > 0)
    used = out["weights"][r] > 0
    places = out["mlm_positions"][r, used]
    assert ordinary[places].all() and len(set(places)) == used.sum()
    assert used.sum() <= min(ordinary.sum(), max(1, round(rate * ordinary.sum())))
    np.testing.assert_array_equal(out["targets"][r, used], tokens[r, places])
    if whole:
      hidden = set(places.tolist())
      for t in range(1, width):
        same = ordinary[t] and ordinary[t - 1] and segments[r, t] == segments[r, t - 1]
        if same and tokens[r, t] >= 30:
          assert (t in hidden) == (t - 1 in hidden)


def test_a_rate_that_changes_is_a_function_of_the_step():
  config = ObjectiveConfig("mlm", mask_rate=0.3, final_mask_rate=0.15, mask_rate_steps=10)
  objective = make_objective(config, Vocabulary(500), 100)
  side = Side(np.arange(5, 405, dtype=np.uint16), np.array([0, 400]), np.array([0, 400]))
  split = Split("train", (side,))
  train = Dataset(split, objective, 2, seed=0, packing=True, shuffle=True)
  masked = [int(train.batch(step)["weights"].sum(axis=1)[0]) for step in (0, 5, 10, 500)]
  assert masked == [30, 22, 15, 15]
  held_out = Dataset(split, objective, 2, seed=0, packing=True, shuffle=False)
  assert held_out.batch(0)["weights"].sum(axis=1).tolist() == [15, 15]


@pytest.mark.parametrize(
  ("settings", "culprit"),
  [
    ({"final_mask_rate": 0.1}, "objective.mask_rate_steps"),
    ({"mask_rate_steps": 10}, "set objective.final_mask_rate"),
    ({"ngram": 0}, "objective.ngram=0"),
  ],
)
def test_impossible_masks_are_refused(settings, culprit):
  with pytest.raises(UserError, match=culprit):
    make_objective(ObjectiveConfig("mlm", **settings), Vocabulary(50), 16)
