"""How the next token is chosen, each rule against a slow oracle over plain Python lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tfm_jax.decode import choosing
from tfm_jax.decode.options import History, Options, numbers, plan

V = 11


def history_of(prompt, new=(), padding=0, room=3):
  """One row: padding, the prompt, generated ids, and columns that are not filled."""
  ids = [0] * padding + [*prompt] + [*new] + [9] * room
  filled = [False] * padding + [True] * (len(prompt) + len(new)) + [False] * room
  is_new = [False] * (padding + len(prompt)) + [True] * len(new) + [False] * room
  arrays = (np.array(ids, np.int32)[None], np.array(filled)[None], np.array(is_new)[None])
  return History(*map(jnp.asarray, arrays), jnp.int32(padding + len(prompt) + len(new)))


def allowed(logits, history, ends=(), bad_words=(), vocab_size=V, **options):
  options = Options(**options)
  of_plan = plan(options, vocab_size, ends, 0, bad_words)
  return np.asarray(choosing.allowed(of_plan, numbers(options), jnp.asarray(logits, jnp.float32)[None], history))[0]


def kept(logits, **options):
  """The ids that may be drawn."""
  options = Options(temperature=1.0, **options)
  of_plan = plan(options, len(logits), (), 0)
  left = choosing.truncated(of_plan, numbers(options), jnp.asarray(logits, jnp.float32)[None])[0]
  return set(np.flatnonzero(np.asarray(left) > -np.inf).tolist())


LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12, unique=True)


@pytest.mark.slow
@settings(max_examples=40)
@given(LOGITS, st.integers(1, 14), st.floats(0.05, 0.99), st.floats(0.01, 0.9))
def test_what_may_be_drawn_is_what_sorting_gives(logits, k, p, share):
  logits = np.array(logits, np.float32)
  probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
  order = np.argsort(-logits)
  assert kept(logits, top_k=k) == set(order[:k].tolist())
  before = np.cumsum(probabilities[order]) - probabilities[order]
  if np.abs(before[1:] - p).min(initial=1.0) > 1e-5:  # not at a border, where rounding decides
    assert kept(logits, top_p=p) == {int(id) for id, x in zip(order, before, strict=True) if x < p}
  assert kept(logits, min_p=share) >= {int(i) for i in order if probabilities[i] > share * probabilities.max() * 1.0001}
  assert kept(logits, min_p=share) <= {int(i) for i in order if probabilities[i] > share * probabilities.max() * 0.9999}
  information = -np.log(np.maximum(probabilities, 1e-37))
  surprise = np.abs(information - (probabilities * information).sum())
  nearest = np.argsort(surprise, kind="stable")
  mass = np.cumsum(probabilities[nearest]) - probabilities[nearest]
  gaps = np.diff(np.sort(surprise))
  if np.abs(mass[1:] - p).min(initial=1.0) > 1e-4 and gaps.min(initial=1.0) > 1e-3:
    assert kept(logits, typical_p=p) == {int(id) for id, x in zip(nearest, mass, strict=True) if x < p}


def test_equal_logits_are_kept_together():
  assert kept([1.0, 3.0, 3.0, 0.0], top_k=1) == {1, 2}
  assert kept([0.0] * 5, top_p=0.3) == set(range(5))


def test_truncations_apply_in_order():
  logits = np.log([0.4, 0.3, 0.2, 0.1])
  assert kept(logits, top_p=0.6) == {0, 1}
  assert kept(logits, top_k=3, top_p=0.5) == {0, 1}  # of 0.9: 0.44, 0.33
  assert kept(logits, top_k=2, min_p=0.8) == {0}


def test_penalties_are_those_of_their_papers():
  logits = np.array([2.0, -2.0, 1.0, 0.5] + [0.0] * (V - 4))
  history = history_of([1, 5], [0, 0, 2], padding=2)
  got = allowed(logits, history, repetition_penalty=2.0)
  np.testing.assert_allclose(got[:4], [1.0, -4.0, 0.5, 0.5])
  got = allowed(logits, history, presence_penalty=0.25, frequency_penalty=0.5)
  np.testing.assert_allclose(got[:4], [2.0 - 0.25 - 1.0, -2.0, 1.0 - 0.25 - 0.5, 0.5])  # generated ones alone


def banned_by_ngrams(n, tokens):
  """The ids that would repeat n tokens in a row."""
  seen = {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
  tail = tuple(tokens[len(tokens) - n + 1 :]) if n > 1 else ()
  return {id for id in range(V) if len(tail) == n - 1 and (*tail, id) in seen}


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 2))
def test_no_ngram_is_repeated(tokens, n, padding):
  got = allowed(np.zeros(V), history_of(tokens, padding=padding), no_repeat_ngram=n)
  assert set(np.flatnonzero(got == -np.inf).tolist()) == banned_by_ngrams(n, tokens)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 2))
def test_bad_words_are_banned_where_they_would_be_completed(tokens, padding):
  words = ((2,), (1, 3), (0, 0, 1))
  got = allowed(np.zeros(V), history_of(tokens, padding=padding), bad_words=words)
  expected = {w[-1] for w in words if tuple(tokens[len(tokens) - len(w) + 1 :]) == w[:-1] and len(tokens) >= len(w) - 1}
  assert set(np.flatnonzero(got == -np.inf).tolist()) == expected


def test_the_end_waits_for_the_least_number_of_tokens():
  for new, waits in (([], True), ([4, 4], True), ([4, 4, 4], False)):
    got = allowed(np.zeros(V), history_of([1], new), ends=(3,), min_new_tokens=3)
    assert (got[3] == -np.inf) == waits and np.isfinite(np.delete(got, 3)).all()


def test_ids_beyond_the_tokenizer_are_never_chosen():
  got = allowed(np.arange(V), history_of([1]), vocab_size=7)
  assert (got[7:] == -np.inf).all() and np.isfinite(got[:7]).all()


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.8}])
def test_draws_have_the_distribution_of_the_truncated_logits(options):
  logits = np.log(np.array([0.3, 0.05, 0.2, 0.15, 0.02, 0.28]))
  temperature, draws = 1.5, 4000
  options = Options(temperature=temperature, **options)
  of_plan = plan(options, len(logits), (), 0)
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(draws))
  rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, len(logits)))
  ids = np.asarray(choosing.choose(of_plan, numbers(options), rows, keys, jnp.int32(3)))
  left = np.asarray(choosing.truncated(of_plan, numbers(options), rows[:1] / temperature), np.float64)[0]
  expected = np.exp(left) / np.exp(left).sum()
  counts = np.bincount(ids, minlength=len(logits))
  assert (counts[expected == 0] == 0).all()
  inside = expected > 0
  assert chisquare(counts[inside], expected[inside] * draws).pvalue > 1e-4


def test_the_seed_of_a_row_is_of_its_prompt_and_sample_alone():
  one, two = np.array([3, 4]), np.array([3, 5])
  data = lambda *rows: np.asarray(jax.random.key_data(choosing.row_keys(7, [r[0] for r in rows], [r[1] for r in rows])))
  together, alone = data((two, 0), (one, 0), (one, 1)), data((one, 0))
  np.testing.assert_array_equal(together[1], alone[0])
  assert len({tuple(row) for row in together.tolist()}) == 3
