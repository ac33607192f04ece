"""BART's denoising and UL2's mixture: against slow oracles, and their statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_objectives import ORDINARY, SENTINELS, VOCABULARY, draws_for, objective_of, one_segment
from tfm_jax.errors import UserError
from tfm_jax.objectives.bart import Denoising
from tfm_jax.objectives.objective import ObjectiveConfig, Vocabulary
from tfm_jax.objectives.table import make_objective
from tfm_jax.objectives.ul2 import DENOISERS, MixtureOfDenoisers, R, S, X
from tfm_jax.objectives.words import ENDS_SENTENCE

SIZE = 300
STOPS = np.where(np.arange(SIZE) % 10 == 9, ENDS_SENTENCE, 0).astype(np.uint8)
WITH_STOPS = Vocabulary(SIZE, pieces=STOPS.tobytes())
NOTHING = {"noise_density": 0.0, "permute_rate": 0.0}


def bart(seq_len=34, **config):
  objective = make_objective(ObjectiveConfig("bart", **NOTHING | config), WITH_STOPS, seq_len)
  assert isinstance(objective, Denoising)
  return objective


def rows_of(seed, lengths, width):
  """Rows in which each token is another."""
  rng = np.random.default_rng(seed)
  return one_segment(np.stack([10 + rng.permutation(SIZE - 10)[:width] for _ in lengths]), np.array(lengths))


def sides(arrays, r):
  """(what the encoder reads, what the decoder writes), without bos and eos."""
  encoder = arrays["encoder_inputs"][r, arrays["encoder_segment_ids"][r] > 0].tolist()
  decoder = arrays["decoder_targets"][r, arrays["decoder_weights"][r] > 0].tolist()
  inputs = arrays["decoder_inputs"][r, arrays["decoder_segment_ids"][r] > 0].tolist()
  if not encoder:
    assert not decoder
    return [], []
  assert (encoder[0], encoder[-1], decoder[0], decoder[-1]) == (2, 3, 2, 3)
  assert inputs == [3, *decoder[:-1]]
  return encoder[1:-1], decoder[1:-1]


lengths_of = st.lists(st.integers(0, 32), min_size=1, max_size=6)


# ---- BART


@given(
  seed=st.integers(0, 2**31),
  lengths=lengths_of,
  density=st.floats(0, 1),
  mean_span=st.floats(0.2, 6),
  others=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.9)),
)
@settings(max_examples=80, deadline=None)
def test_what_is_left_of_a_row_is_the_row(seed, lengths, density, mean_span, others):
  config = dict(zip(("permute_rate", "rotate_rate", "delete_rate"), others, strict=True))
  rows = rows_of(seed, lengths, 32)
  arrays = bart(noise_density=density, mean_span=mean_span, **config).make(draws_for(len(lengths), seed), rows)
  for r, length in enumerate(lengths):
    noisy, text = sides(arrays, r)
    assert text == rows.tokens[r, :length].tolist()
    kept = [token for token in noisy if token != 4]
    assert len(noisy) <= length and len(set(kept)) == len(kept) and set(kept) <= set(text)
    deleted = round(config["delete_rate"] * length)
    if mean_span > 1.5:  # spans enough for all that is removed
      assert len(kept) == length - deleted - round(density * (length - deleted))


@given(seed=st.integers(0, 2**31), lengths=lengths_of, density=st.floats(0.05, 0.9))
@settings(max_examples=60, deadline=None)
def test_infilling_keeps_the_order_and_each_gap_has_a_mask(seed, lengths, density):
  rows = rows_of(seed, lengths, 32)
  arrays = bart(noise_density=density).make(draws_for(len(lengths), seed), rows)
  for r in range(len(lengths)):
    noisy, text = sides(arrays, r)
    places = [text.index(token) for token in noisy if token != 4]
    assert places == sorted(places)
    ends = [-1, *places, len(text)]
    at = [i for i, token in enumerate(noisy) if token != 4]
    between = np.diff([-1, *at, len(noisy)]) - 1
    for gap, masks in zip(np.diff(ends) - 1, between, strict=True):
      assert gap == 0 or masks > 0


def test_spans_have_poisson_lengths_and_any_place():
  count, width = 4000, 98
  rows = rows_of(0, [width] * count, width)
  objective = bart(100, noise_density=0.3)
  noisy, lengths = objective.infilled(draws_for(count), rows.tokens, np.full(count, width))
  masks = (noisy == 4) & (np.arange(width) < lengths[:, None])
  kept = lengths - masks.sum(axis=1)
  assert (kept == width - 29).all()
  spans = masks.sum(axis=1).mean()
  # Lengths of mean 3 up to a sum of 29: about (29 + 1.5) / 3 spans, empty ones included.
  assert abs(spans - 10.6) < 0.5
  shares = masks[:, :60].mean(axis=0)
  assert np.abs(shares - shares.mean()).max() < 5 * np.sqrt(shares.mean() / count)


def test_a_row_has_the_same_spans_beside_longer_ones():
  objective, short = bart(100, noise_density=0.3, mean_span=0.3), rows_of(0, [12] * 200, 98).tokens
  alone, lengths = objective.infilled(draws_for(200), short, np.full(200, 12))
  beside, others = objective.infilled(
    draws_for(201), np.concatenate([short, rows_of(1, [98], 98).tokens]), np.append(np.full(200, 12), 98)
  )
  np.testing.assert_array_equal(lengths, others[:-1])
  np.testing.assert_array_equal(alone, beside[:-1])


def test_the_span_that_is_cut_to_fit_may_be_any():
  count, width = 3000, 98
  rows = rows_of(0, [width] * count, width)
  noisy, lengths = bart(100, noise_density=0.3).infilled(draws_for(count), rows.tokens, np.full(count, width))
  sizes = []
  for text, row, length in zip(rows.tokens.tolist(), noisy.tolist(), lengths, strict=True):
    places = [-1, *(text.index(token) if token != 4 else None for token in row[:length]), width]
    around = [(a, b) for a, mask, b in zip(places, places[1:], places[2:], strict=False) if mask is None]
    known = [b - a - 1 for a, b in around if a is not None and b is not None]  # masks that stand alone
    sizes.append((known[0], known[-1]) if len(known) > 1 else (0, 0))
  first, last = np.array(sizes, float).T
  assert abs(first.mean() - last.mean()) < 5 * first.std() * np.sqrt(2 / count)


def test_sentences_change_places_and_stay_whole():
  text = [11, 12, 19, 21, 29, 31, 32, 33, 39, 41, 42]  # four sentences, the last without a stop
  parts = [[11, 12, 19], [21, 29], [31, 32, 33, 39], [41, 42]]
  count = 3000
  rows = one_segment(np.tile(np.array(text + [0] * 21), (count, 1)), np.full(count, len(text)))
  arrays = bart(permute_rate=1.0).make(draws_for(count), rows)
  orders = {}
  for r in range(count):
    noisy, _ = sides(arrays, r)
    order = tuple(sorted(range(4), key=lambda n: noisy.index(parts[n][0])))
    assert noisy == [token for n in order for token in parts[n]]
    orders[order] = orders.get(order, 0) + 1
  assert len(orders) == 24
  assert all(abs(n / count - 1 / 24) < 5 * np.sqrt(1 / 24 / count) for n in orders.values())
  arrays = bart(permute_rate=0.5).make(draws_for(count), rows)
  moved = [sides(arrays, r)[0] != text for r in range(count)]
  assert abs(np.mean(moved) - 0.5) < 5 * 0.5 / np.sqrt(count)  # two of the sentences change places, or do not


def test_rotated_rows_begin_anywhere():
  count, width = 4000, 32
  rows = rows_of(0, [width] * count, width)
  arrays = bart(rotate_rate=0.5).make(draws_for(count), rows)
  begins = []
  for r in range(count):
    noisy, text = sides(arrays, r)
    begins.append(text.index(noisy[0]))
    assert noisy == text[begins[-1] :] + text[: begins[-1]]
  shares = np.bincount(begins, minlength=width) / count
  assert abs(shares[0] - (0.5 + 0.5 / width)) < 0.04 and np.abs(shares[1:] - 0.5 / width).max() < 0.012


def test_deleted_tokens_leave_no_trace():
  rows = rows_of(0, [32] * 500, 32)
  arrays = bart(delete_rate=0.25).make(draws_for(500), rows)
  gone = np.zeros(32)
  for r in range(500):
    noisy, text = sides(arrays, r)
    assert len(noisy) == 24 and noisy == [token for token in text if token in noisy]
    gone += [token not in noisy for token in text]
  assert np.abs(gone / 500 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 500)


@pytest.mark.parametrize(
  ("settings", "target_len", "culprit"),
  [
    ({"rotate_rate": 1.5}, 0, "objective.rotate_rate=1.5"),
    ({"mean_span": 0.0}, 0, "objective.mean_span=0"),
    ({}, 8, "data.target_len=8"),
  ],
)
def test_impossible_noise_is_refused(settings, target_len, culprit):
  with pytest.raises(UserError, match=culprit):
    make_objective(ObjectiveConfig("bart", **settings), WITH_STOPS, 16, target_len)


# ---- UL2

MODES = SENTINELS[-3:]


def ul2(seq_len=48, target_len=0):
  objective = objective_of("ul2", seq_len, target_len)
  assert isinstance(objective, MixtureOfDenoisers)
  return objective


@given(seed=st.integers(0, 2**31), data=st.data())
@settings(max_examples=60, deadline=None)
def test_both_sides_of_ul2_put_together_are_the_row(seed, data):
  objective = ul2()
  width = objective.row_tokens
  lengths = data.draw(st.lists(st.integers(0, width), min_size=1, max_size=6))
  tokens = np.random.default_rng(seed).integers(*ORDINARY, (len(lengths), width))
  arrays = objective.make(draws_for(len(lengths), seed), one_segment(tokens, np.array(lengths)))
  for r, length in enumerate(lengths):
    encoder = arrays["encoder_inputs"][r, arrays["encoder_segment_ids"][r] > 0].tolist()
    decoder = arrays["decoder_targets"][r, arrays["decoder_weights"][r] > 0].tolist()
    if not length:
      assert not encoder and not decoder
      continue
    mode = encoder.pop(0)
    assert mode in MODES and encoder.pop() == decoder.pop() == 3
    spans: dict[int, list[int]] = {}
    for token in decoder:
      if token in SENTINELS:
        spans[token] = []
      else:
        spans[list(spans)[-1]].append(token) if spans else spans.setdefault(-1, []).append(token)
    # The decoder's sentinels stand for what the encoder kept; T5's alternate, kept first.
    whole: list[int] = []
    for token in encoder:
      whole += spans[token] if token in SENTINELS else [token]
    if length > 1:
      assert whole == tokens[r, :length].tolist()
    if mode == MODES[S] and length > 1:
      assert [token in SENTINELS for token in encoder] == [False] * (len(encoder) - 1) + [True]


def test_denoisers_are_equally_likely_and_remove_what_they_say():
  objective = ul2(128)
  count, width = 7000, objective.row_tokens
  tokens = np.random.default_rng(0).integers(*ORDINARY, (count, width))
  arrays = objective.make(draws_for(count), one_segment(tokens, np.full(count, width)))
  mode = arrays["encoder_inputs"][:, 0]
  removed = (arrays["decoder_targets"] >= ORDINARY[0]) & (arrays["decoder_targets"] < ORDINARY[1])
  share = removed.sum(axis=1) / width
  for number, expected in ((R, 2 / 7), (X, 4 / 7), (S, 1 / 7)):
    chosen = mode == MODES[number]
    assert abs(chosen.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / count)
  assert np.abs(share[mode == MODES[R]] - 0.15).max() < 0.01
  assert set(np.round(share[mode == MODES[X]], 1)) <= {0.1, 0.2, 0.5}
  ends = share[mode == MODES[S]]
  assert ends.max() <= 0.5 and abs(ends.mean() - 0.25) < 5 * ends.std() / np.sqrt(len(ends))
  assert len(DENOISERS) == 7


def test_single_spans_of_ul2_are_anywhere_but_in_front():
  objective = ul2(48)
  count, width = 6000, objective.row_tokens
  tokens = np.random.default_rng(0).integers(*ORDINARY, (count, width))
  arrays = objective.make(draws_for(count), one_segment(tokens, np.full(count, width)))
  inputs = arrays["encoder_inputs"]
  sentinel = np.isin(inputs[:, 1:], SENTINELS)
  single = (inputs[:, 0] == MODES[X]) & (sentinel.sum(axis=1) == 1)
  for size in (round(0.15 * width), round(0.5 * width)):
    removed = width - (inputs != 0).sum(axis=1) + 3  # mode, sentinel and eos are no tokens of the row
    places = sentinel[single & (removed == size)].argmax(axis=1)
    shares = np.bincount(places, minlength=width)[1 : width - size + 1] / len(places)
    assert len(places) > 700 and abs(shares.sum() - 1) < 1e-9
    assert np.abs(shares - 1 / len(shares)).max() < 5 * np.sqrt(1 / len(shares) / len(places))


def test_rows_of_ul2_fill_the_encoder_or_the_targets():
  for seq_len, target_len in ((64, 0), (64, 30), (512, 512)):
    objective = (
      ul2(seq_len, target_len)
      if seq_len < 512
      else make_objective(
        ObjectiveConfig("ul2"), Vocabulary(5000, sentinel_ids=tuple(range(4999, 4499, -1))), seq_len, target_len
      )
    )
    assert objective.target_len == target_len or not target_len
    tokens = np.random.default_rng(0).integers(*ORDINARY, (300, objective.row_tokens))
    arrays = objective.make(draws_for(300), one_segment(tokens, np.full(300, objective.row_tokens)))
    full = arrays["encoder_segment_ids"].sum(axis=1).max(), arrays["decoder_segment_ids"].sum(axis=1).max()
    assert full[0] <= seq_len and full[1] <= objective.target_len
    assert full[0] >= seq_len - 2 or full[1] >= objective.target_len - 3


def test_too_few_sentinels_for_modes_are_refused():
  objective = make_objective(ObjectiveConfig("ul2"), Vocabulary(SIZE, sentinel_ids=SENTINELS[:5]), 48)
  with pytest.raises(UserError, match=r"3 mode tokens.*tokenizer\.sentinels=100"):
    objective.check()
  assert VOCABULARY.sentinel_ids[-3:] == MODES
