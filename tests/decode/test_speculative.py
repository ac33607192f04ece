"""Speculative decoding gives what the large model alone gives."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.stats import chi2_contingency

from tests.support.generating import PROMPTS, run_of
from tfm_jax.decode.speculative import Draft, checked_draft
from tfm_jax.errors import UserError


def draft_of(run, noise, tokens=3):
  """The model itself with disturbed parameters: it is often right."""
  draw = np.random.default_rng(1)
  params = jax.tree.map(lambda x: x + np.float32(noise) * draw.standard_normal(x.shape, np.float32), run.params)
  return checked_draft(run.model, Draft(run.model, params, tokens), run.tokenizer, run.tokenizer)


@pytest.mark.slow_but("gpt-0.05")
@pytest.mark.parametrize(("variant", "noise"), [("gpt", 0.05), ("gpt", 1.0), ("llama", 0.06), ("t5", 0.0)])
def test_greedy_texts_are_the_same(variant, noise):
  run = run_of(variant)
  plain = run.generate(PROMPTS, max_new_tokens=11)
  fast = run.generate(PROMPTS, max_new_tokens=11, draft=draft_of(run, noise))
  for one, other in zip(plain, fast, strict=True):
    assert one.ids == other.ids and one.text == other.text and one.end == other.end
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.parametrize("options", [{"no_repeat_ngram": 2, "repetition_penalty": 1.3}, {"presence_penalty": 5.0}])
def test_penalties_see_the_drafted_tokens_before_each_and_no_others(options):
  """The draft is the model itself: one that sees the same tokens drafts what is kept."""
  run = run_of("gpt")
  plain, fast = (
    run.generate(PROMPTS[0], max_new_tokens=12, draft=draft, **options) for draft in (None, draft_of(run, 0))
  )
  assert fast[0].ids == plain[0].ids


def test_an_end_that_was_drafted_beyond_the_last_token_is_not_the_end_of_the_text():
  run = run_of("gpt")
  (free,) = run.generate(PROMPTS[0], max_new_tokens=12)
  run.tokenizer.eos_id = free.ids[8]
  assert free.ids[8] not in free.ids[:8]
  (one,) = run.generate(PROMPTS[0], max_new_tokens=8, draft=draft_of(run, 0))  # rounds end with tokens 1, 5 and 9
  assert (one.ids, one.end) == (free.ids[:8], "length")


@pytest.mark.slow
def test_drawn_texts_have_the_same_distribution():
  """The second and third token of many samples, with a draft that is often wrong."""
  run = run_of("gpt", kind="char")
  options = {"max_new_tokens": 3, "temperature": 0.7, "top_k": 5, "samples": 800}
  (plain,) = run.generate(["the"], batch_size=800, **options)
  # All rows of a batch keep as many drafted tokens as the unluckiest: small batches keep some.
  (fast,) = run.generate(["the"], batch_size=2, draft=draft_of(run, 0.3), **options)
  for place in (1, 2):
    counts = np.array(
      [
        np.bincount([one.ids[place] for one in texts if len(one.ids) > place], minlength=run.tokenizer.vocab_size)
        for texts in (plain, fast)
      ]
    )
    counts = counts[:, counts.sum(0) >= 10]
    assert chi2_contingency(counts).pvalue > 1e-4
  assert [one.ids for one in plain] != [one.ids for one in fast]


def test_a_draft_that_cannot_serve_is_refused():
  run, other = run_of("gpt"), run_of("t5")
  with pytest.raises(UserError, match="the draft must be of the same kind"):
    checked_draft(run.model, Draft(other.model, other.params), run.tokenizer, other.tokenizer)
  letters = run_of("gpt", kind="char")
  with pytest.raises(UserError, match="the draft has another tokenizer"):
    checked_draft(run.model, Draft(letters.model, letters.params), run.tokenizer, letters.tokenizer)
  with pytest.raises(UserError, match="a draft is for greedy decoding and sampling"):
    run.generate("the", beams=2, draft=draft_of(run, 0.1))
  short = run_of("gpt", max_positions=16)
  short = checked_draft(run.model, Draft(short.model, short.params), run.tokenizer, short.tokenizer)
  with pytest.raises(UserError, match="prompt 2 and the text after it may take 17 positions, and the draft has 16"):
    run.generate(["the", "the cat"], max_new_tokens=14, draft=short)
  lstm = run_of("lstm")
  with pytest.raises(UserError, match="the state of family=lstm cannot"):
    checked_draft(lstm.model, Draft(lstm.model, lstm.params), lstm.tokenizer, lstm.tokenizer)
  with pytest.raises(UserError, match="draft_tokens=0 must be at least 1"):
    checked_draft(run.model, Draft(run.model, run.params, 0), run.tokenizer, dataclasses.replace(run).tokenizer)
