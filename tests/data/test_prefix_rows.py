"""Prefix language modelling: its rows against a slow oracle, and the lengths of its prefixes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_objectives import draws_for, objective_of, one_segment, random_rows

WIDTH = 24


@given(seed=st.integers(0, 2**31), lengths=st.lists(st.integers(0, WIDTH + 1), min_size=1, max_size=5))
@settings(max_examples=50)
def test_rows_against_a_slow_oracle(seed, lengths):
  rows = random_rows(np.random.default_rng(seed), lengths, WIDTH + 1)
  out = objective_of("prefix_lm", WIDTH).make(draws_for(len(lengths), seed), rows)
  plain = objective_of("causal", WIDTH).make(draws_for(len(lengths), seed), rows)
  for r in range(len(lengths)):
    for segment in set(rows.segment_ids[r, :WIDTH]) - {0}:
      places = np.flatnonzero(rows.segment_ids[r, :WIDTH] == segment)
      prefix = out["prefix"][r, places]
      assert (np.diff(prefix) <= 0).all() and not prefix[-1:].all()  # a prefix, and never the whole
      for t in places:
        seen = t + 1 in places and out["prefix"][r, t + 1] == 1
        assert out["weights"][r, t] == plain["weights"][r, t] * (not seen)
  assert not out["prefix"][out["segment_ids"] == 0].any()
  for name in set(plain) - {"weights"}:
    np.testing.assert_array_equal(out[name], plain[name])


def test_every_length_of_a_prefix_is_as_likely():
  count = 8000
  rows = one_segment(np.full((count, 9), 7), np.full(count, 9))
  lengths = objective_of("prefix_lm", 8).make(draws_for(count), rows)["prefix"].sum(axis=1)
  shares = np.bincount(lengths, minlength=8) / count
  assert len(shares) == 8 and np.abs(shares - 1 / 8).max() < 5 * np.sqrt(7 / 64 / count)
