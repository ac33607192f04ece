"""Objectives: masking statistics, span corruption against a row-by-row oracle, shifts, independence of rows."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Objective, ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import Rows
from tfm_jax.objectives.span_corruption import SpanCorruption
from tfm_jax.objectives.table import OBJECTIVES, make_objective

PRETRAINING = [*OBJECTIVES]
SIZE = 300
SENTINELS = tuple(range(SIZE - 1, SIZE - 101, -1))
VOCABULARY = Vocabulary(SIZE, sentinel_ids=SENTINELS, special_ids=(0, 1, 2, 3, 4, *SENTINELS))
ORDINARY = (5, SIZE - 100)


def objective_of(name: str, seq_len: int = 32, target_len: int = 0, **config: float) -> Objective:
  return make_objective(ObjectiveConfig(name, **config), VOCABULARY, seq_len, target_len)


def random_rows(rng: np.random.Generator, lengths: list[int], width: int, specials: float = 0.0) -> Rows:
  """Rows of these lengths, each of one or two segments."""
  tokens = rng.integers(*ORDINARY, (len(lengths), width)).astype(np.int32)
  tokens[rng.random(tokens.shape) < specials] = 3
  segment_ids, positions = np.zeros_like(tokens), np.zeros_like(tokens)
  for r, length in enumerate(lengths):
    cut = int(rng.integers(0, length + 1))
    segment_ids[r, :cut], segment_ids[r, cut:length] = 1, 2 if cut else 1
    positions[r, :cut], positions[r, cut:length] = np.arange(cut), np.arange(length - cut)
  tokens[segment_ids == 0] = 0
  return Rows(tokens, segment_ids, positions)


def other_texts(objective: Objective, rows: Rows) -> Rows | None:
  """What the row plan of next sentence reads beside the rows."""
  if objective.config.name != "nsp":
    return None
  tokens = np.random.default_rng(1).integers(*ORDINARY, (len(rows.tokens), 2 * objective.row_tokens)).astype(np.int32)
  return Rows(tokens, np.ones_like(tokens), np.zeros_like(tokens))


def one_segment(tokens: np.ndarray, lengths: np.ndarray) -> Rows:
  valid = np.arange(tokens.shape[1]) < np.asarray(lengths)[:, None]
  return Rows(np.where(valid, tokens, 0).astype(np.int32), valid.astype(np.int32), np.cumsum(valid, 1) - valid)


def draws_for(count: int, seed: int = 0, epoch: int = 0) -> Draws:
  return Draws.of(seed, epoch, np.arange(count))


lengths_within = st.lists(st.integers(0, 40), min_size=1, max_size=6)


# ---- draws


def test_uniform_draws_fill_the_unit_interval():
  u = draws_for(500).uniform(0, 400)
  assert u.min() >= 0
  assert u.max() < 1
  share, _ = np.histogram(u, 20, (0, 1))
  assert np.abs(share / u.size - 0.05).max() < 5 * np.sqrt(0.05 * 0.95 / u.size)
  assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.2


def test_sites_rows_epochs_and_seeds_share_no_draws():
  rows = np.arange(50)
  kinds = [Draws.of(seed, epoch, rows).bits(site, 20) for seed in (0, 1) for epoch in (0, 1) for site in (0, 1)]
  assert len(np.unique(np.concatenate(kinds))) == len(kinds) * 50 * 20


@given(st.integers(0, 2**32), st.integers(1, 70), st.data())
def test_choose_picks_that_many_candidates_in_order(seed, width, data):
  candidates = np.random.default_rng(seed).random((3, width)) < 0.5
  counts = np.array([data.draw(st.integers(0, int(n))) for n in candidates.sum(axis=1)])
  positions, used = draws_for(3, seed).choose(0, candidates, counts, int(counts.max()))
  np.testing.assert_array_equal(used.sum(axis=1), counts)
  for row in range(3):
    chosen = positions[row, used[row]]
    assert candidates[row, chosen].all()
    assert (np.diff(chosen) > 0).all()
    assert not positions[row, ~used[row]].any()


# ---- all objectives


@pytest.mark.parametrize("name", PRETRAINING)
@given(seed=st.integers(0, 2**31), lengths=lengths_within)
@settings(max_examples=20)
def test_arrays_are_as_declared_and_padding_has_no_weight(name, seed, lengths):
  objective = objective_of(name)
  width = objective.row_tokens + objective.lookahead
  rows = random_rows(np.random.default_rng(seed), [min(n, width) for n in lengths], width, specials=0.2)
  arrays = objective.make(draws_for(len(lengths), seed), rows, other_texts(objective, rows))
  assert {*arrays, "rows"} == set(objective.fields)
  for field, array in arrays.items():
    declared = objective.fields[field]
    assert array.shape == (len(lengths), *declared.shape), field
    assert array.dtype == declared.dtype, field
    assert len(declared.axes) == array.ndim and declared.axes[0] == "batch", field
    assert array.flags.c_contiguous, field
    if declared.dtype == np.int32:
      assert array.min() >= 0
    if declared.kind in ("ids", "labels"):
      assert array.max() < declared.classes, field
      assert array.max() < SIZE
  weights = arrays["decoder_weights" if "decoder_weights" in arrays else "weights"]
  assert not weights[np.array(lengths) == 0].any()
  if "decoder_weights" in arrays:
    np.testing.assert_array_equal(weights > 0, arrays["decoder_segment_ids"] > 0)


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_row_depends_on_itself_alone(name):
  objective = objective_of(name)
  width = objective.row_tokens + objective.lookahead
  rows = random_rows(np.random.default_rng(0), [width, 3, 17, width - 1, 0], width, specials=0.1)
  other = other_texts(objective, rows)
  whole = objective.make(Draws.of(1, 2, np.arange(5)), rows, other)
  some = np.array([3, 1])
  pick = lambda x: x and Rows(x.tokens[some], x.segment_ids[some], x.positions[some])
  part = objective.make(Draws.of(1, 2, some), pick(rows), pick(other))
  for field in whole:
    np.testing.assert_array_equal(whole[field][some], part[field], err_msg=field)


# ---- masked language modelling


@given(
  seed=st.integers(0, 2**31),
  lengths=lengths_within,
  specials=st.sampled_from([0.0, 0.3, 1.0]),
  rate=st.floats(0.01, 1),
)
def test_masks_hit_the_right_number_of_ordinary_tokens(seed, lengths, specials, rate):
  rows = random_rows(np.random.default_rng(seed), lengths, 40, specials)
  arrays = objective_of("mlm", 40, mask_rate=rate).make(draws_for(len(lengths), seed), rows)
  for r, tokens in enumerate(rows.tokens):
    ordinary = np.flatnonzero((tokens >= ORDINARY[0]) & (tokens < ORDINARY[1]))
    used = arrays["weights"][r] == 1
    chosen = arrays["mlm_positions"][r, used]
    expected = min(len(ordinary), max(1, round(rate * len(ordinary))))
    assert len(chosen) == expected
    assert (np.diff(chosen) > 0).all()
    assert np.isin(chosen, ordinary).all()
    np.testing.assert_array_equal(arrays["targets"][r, used], tokens[chosen])
    untouched = np.setdiff1d(np.arange(40), chosen)
    np.testing.assert_array_equal(arrays["inputs"][r, untouched], tokens[untouched])
    assert not arrays["mlm_positions"][r, ~used].any()
    assert not arrays["targets"][r, ~used].any()
    assert not arrays["weights"][r, ~used].any()


def test_masks_are_80_10_10_and_uniform_over_places():
  count, width = 4000, 64
  tokens = np.random.default_rng(0).integers(*ORDINARY, (count, width))
  arrays = objective_of("mlm", width).make(draws_for(count), one_segment(tokens, np.full(count, width)))
  written = np.take_along_axis(arrays["inputs"], arrays["mlm_positions"], axis=1)
  total = written.size
  masked, kept = np.mean(written == 4), np.mean(written == arrays["targets"])
  ids = np.arange(*ORDINARY)
  kept_by_chance = 0.1 / len(ids)
  for share, expected in ((masked, 0.8), (kept, 0.1 + kept_by_chance)):
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / total)
  random = written[(written != 4) & (written != arrays["targets"])]
  assert np.isin(random, ids).all()
  assert len(np.unique(random)) == len(ids)
  places = np.bincount(arrays["mlm_positions"].ravel(), minlength=width) / count
  expected = arrays["mlm_positions"].shape[1] / width
  assert np.abs(places - expected).max() < 5 * np.sqrt(expected * (1 - expected) / count)


def test_each_epoch_has_other_masks():
  rows = one_segment(np.full((50, 32), 9), np.full(50, 32))
  first, second = (objective_of("mlm").make(draws_for(50, epoch=e), rows)["mlm_positions"] for e in (0, 1))
  assert (first != second).any(axis=1).mean() > 0.9


# ---- causal


@given(seed=st.integers(0, 2**31), lengths=lengths_within)
def test_causal_targets_are_the_next_tokens_of_the_same_document(seed, lengths):
  rows = random_rows(np.random.default_rng(seed), lengths, 41)
  arrays = objective_of("causal", 40).make(draws_for(len(lengths)), rows)
  for r in range(len(lengths)):
    for t in range(40):
      same = rows.segment_ids[r, t] == rows.segment_ids[r, t + 1] != 0
      assert arrays["weights"][r, t] == same
      assert arrays["inputs"][r, t] == rows.tokens[r, t]
      if same:
        assert arrays["targets"][r, t] == rows.tokens[r, t + 1]


# ---- span corruption


def t5_lengths(inputs_length: int, density: float, mean_span: float) -> tuple[int, int]:
  """T5's `random_spans_helper`, unchanged: tokens per row and length of the targets."""

  def lengths(tokens_length):
    noise = round(tokens_length * density)
    spans = round(noise / mean_span)
    return tokens_length - noise + spans + 1, noise + spans + 1

  tokens_length = inputs_length - 1
  while lengths(tokens_length + 1)[0] <= inputs_length:
    tokens_length += 1
  return tokens_length, lengths(tokens_length)[1]


def corrupt_row(tokens: list[int], noise: list[bool]) -> tuple[list[int], list[int]]:
  """The oracle for one row, token by token."""
  sides: tuple[list[int], list[int]] = ([], [])
  for side, removed in enumerate((noise, [not n for n in noise])):
    sentinel = 0
    for t, token in enumerate(tokens):
      if not removed[t]:
        sides[side].append(token)
      elif t == 0 or not removed[t - 1]:
        sides[side].append(SENTINELS[sentinel])
        sentinel += 1
    sides[side].append(VOCABULARY.eos_id)
  return sides


@pytest.mark.parametrize("seq_len", [16, 31, 64, 100, 128, 512, 1024])
@pytest.mark.parametrize(("density", "mean_span"), [(0.15, 3.0), (0.3, 5.0), (0.15, 1.0)])
def test_row_lengths_are_those_of_t5(seq_len, density, mean_span):
  objective = SpanCorruption(ObjectiveConfig(noise_density=density, mean_span=mean_span), VOCABULARY, seq_len, 0)
  assert (objective.row_tokens, objective.target_len) == t5_lengths(seq_len, density, mean_span)


def test_t5_512_has_114_targets():
  objective = objective_of("span_corruption", 512)
  assert (objective.row_tokens, objective.target_len) == (568, 114)


@given(
  seed=st.integers(0, 2**31),
  lengths=st.lists(st.integers(0, 60), min_size=1, max_size=5),
  density=st.floats(0.05, 0.6),
  mean_span=st.floats(1, 6),
)
def test_spans_against_a_row_by_row_oracle(seed, lengths, density, mean_span):
  objective = objective_of("span_corruption", 48, noise_density=density, mean_span=mean_span)
  assert isinstance(objective, SpanCorruption)
  width = objective.row_tokens
  lengths = [min(n, width) for n in lengths]
  tokens = np.random.default_rng(seed).integers(*ORDINARY, (len(lengths), width))
  rows = one_segment(tokens, np.array(lengths))
  draws = draws_for(len(lengths), seed)
  noise = objective.noise_mask(draws, np.array(lengths), width)
  arrays = objective.make(draws, rows)
  for r, length in enumerate(lengths):
    mask = noise[r].tolist()
    assert not any(mask[length:])
    if length >= 2:
      expected_noise = min(max(round(length * density), 1), length - 1)
      expected_spans = min(max(round(expected_noise / mean_span), 1), length - expected_noise)
      assert sum(mask) == expected_noise
      assert sum(m and not before for m, before in zip(mask, [False, *mask], strict=False)) == expected_spans
      assert not mask[0]  # a kept span comes first, a removed span last
      assert mask[length - 1]
    encoder, decoder = corrupt_row(rows.tokens[r, :length].tolist(), mask[:length]) if length else ([], [])
    assert arrays["encoder_inputs"][r].tolist() == encoder + [0] * (48 - len(encoder))
    assert arrays["encoder_segment_ids"][r].tolist() == [1] * len(encoder) + [0] * (48 - len(encoder))
    rest = objective.target_len - len(decoder)
    assert arrays["decoder_targets"][r].tolist() == decoder + [0] * rest
    assert arrays["decoder_weights"][r].tolist() == [1] * len(decoder) + [0] * rest
    assert arrays["decoder_inputs"][r, : len(decoder)].tolist() == [0, *decoder][: len(decoder)]
    assert arrays["decoder_positions"][r, : len(decoder)].tolist() == list(range(len(decoder)))


def test_every_way_to_cut_the_spans_is_as_likely():
  objective = objective_of("span_corruption", 32, noise_density=0.5, mean_span=2.0)
  assert isinstance(objective, SpanCorruption)
  count = 9000  # 8 tokens, 4 of them removed in 2 spans: 3 x 3 ways
  masks = objective.noise_mask(draws_for(count), np.full(count, 8), objective.row_tokens)[:, :8]
  kinds, counts = np.unique(masks, axis=0, return_counts=True)
  assert len(kinds) == 9
  assert np.abs(counts / count - 1 / 9).max() < 5 * np.sqrt(8 / 81 / count)


def test_a_short_target_side_shortens_the_row():
  objective = objective_of("span_corruption", 64, target_len=8)
  assert objective.target_len == 8
  tokens = np.full((1, objective.row_tokens), 9)
  arrays = objective.make(draws_for(1), one_segment(tokens, np.array([objective.row_tokens])))
  assert arrays["decoder_targets"][0, arrays["decoder_weights"][0] > 0][-1] == VOCABULARY.eos_id


# ---- sequence to sequence


def test_each_pair_of_a_row_starts_with_bos():
  segment_ids = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
  positions = np.array([[0, 1, 2, 0, 1, 0]], np.int32)
  side = Rows(np.array([[7, 8, 3, 9, 3, 0]], np.int32), segment_ids, positions)
  arrays = objective_of("seq2seq", 6).make(draws_for(1), side, side)
  assert arrays["decoder_inputs"].tolist() == [[2, 7, 8, 2, 9, 0]]
  assert arrays["decoder_targets"].tolist() == [[7, 8, 3, 9, 3, 0]]
  assert arrays["decoder_weights"].tolist() == [[1, 1, 1, 1, 1, 0]]


def test_without_a_bos_the_decoder_starts_with_pad():
  vocabulary = dataclasses.replace(VOCABULARY, bos_id=-1)
  side = one_segment(np.array([[7, 3]]), np.array([2]))
  arrays = make_objective(ObjectiveConfig("seq2seq"), vocabulary, 2).make(draws_for(1), side, side)
  assert arrays["decoder_inputs"].tolist() == [[0, 7]]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_a_continuation_loses_no_token(lengths):
  tokens = np.random.default_rng(0).integers(*ORDINARY, (len(lengths), 30))
  arrays = objective_of("seq2seq", 20, 10).make(draws_for(len(lengths)), one_segment(tokens, np.array(lengths)))
  for r, length in enumerate(lengths):
    head = arrays["encoder_inputs"][r, arrays["encoder_segment_ids"][r] > 0]
    rest = arrays["decoder_targets"][r, arrays["decoder_weights"][r] > 0]
    np.testing.assert_array_equal(np.concatenate([head, rest]), tokens[r, :length])
    assert abs(len(head) - 2 * len(rest)) <= 2


# ---- mistakes


@pytest.mark.parametrize(
  ("name", "settings", "culprit"),
  [
    ("mml", {}, "objective.name"),
    ("mlm", {"mask_rate": 1.5}, "objective.mask_rate"),
    ("mlm", {"random_rate": 0.6, "keep_rate": 0.6}, "objective.keep_rate"),
    ("mlm", {"seq_len": 1}, "data.seq_len"),
    ("causal", {"target_len": -1}, "data.target_len"),
    ("span_corruption", {"noise_density": 0.0}, "objective.noise_density"),
    ("span_corruption", {"mean_span": 0.5}, "objective.mean_span"),
    ("span_corruption", {"seq_len": 32, "target_len": 1}, "data.target_len"),
  ],
)
def test_impossible_settings_are_named(name, settings, culprit):
  with pytest.raises(UserError, match=culprit):
    objective_of(name, **settings)


def test_a_vocabulary_that_lacks_a_token_is_refused():
  poor = Vocabulary(SIZE, mask_id=-1, special_ids=(0, 1, 2, 3))
  with pytest.raises(UserError, match="mask token"):
    make_objective(ObjectiveConfig("mlm"), poor, 32).check()
  with pytest.raises(UserError, match=r"tokenizer\.sentinels"):
    make_objective(ObjectiveConfig("span_corruption"), poor, 32).check()
  objective_of("span_corruption").check()
