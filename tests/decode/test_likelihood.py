"""Likelihoods of continuations against plain forward passes."""

import dataclasses

import numpy as np
import pytest

from tests.support.generating import logits_after, run_of
from tfm_jax.errors import UserError

PAIRS = [("the cat", " sat on the mat"), ("a dog ran after one", " bird"), ("all of the", " town sat on a small grey")]


@pytest.mark.parametrize("variant", ["gpt", "llama", "t5"])
def test_the_likelihood_is_the_sum_of_its_tokens_by_forward_passes(variant):
  run = run_of(variant)
  for (prompt, text), one in zip(PAIRS, run.score(PAIRS), strict=True):
    total, likeliest = 0.0, True
    for i, id in enumerate(one.ids):
      logits = logits_after(run, prompt, one.ids[:i])
      total += logits[id] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
      likeliest &= logits[id] == logits.max()
    assert one.logprob == pytest.approx(total, abs=2e-3) and one.likeliest == likeliest and one.cut == 0
    end = [run.tokenizer.eos_id] if run.model.encoder_decoder else []
    whole = run.tokenizer.encode(text if end else prompt + text)
    assert [*one.ids] == [*whole[0 if end else len(run.tokenizer.encode(prompt)) :], *end]


def test_a_long_prompt_loses_its_beginning():
  run = run_of("gpt")
  long = "the small grey bird and the cat and the dog ran after all of the town " * 2
  (one,) = run.score([(long, " cat")])
  assert one.cut > 0
  kept = len(run.tokenizer.encode(long)) + 1 + len(one.ids) - one.cut
  assert kept == run.model.config.max_positions + 1


def test_the_choice_is_by_likelihood():
  run = run_of("gpt")
  choices = [" sat on the mat", " bird", " town"]
  ranked = run.choose("the cat", choices)
  found = {text: one.logprob for text, one in zip(choices, run.score([("the cat", c) for c in choices]), strict=True)}
  assert [text for text, _ in ranked] == sorted(choices, key=lambda text: -found[text])
  assert sum(share for _, share in ranked) == pytest.approx(1.0)
  by_byte = run.choose("the cat", choices, normalised=True)
  assert [text for text, _ in by_byte] == sorted(choices, key=lambda text: -found[text] / len(text))


def test_what_cannot_be_scored_is_refused():
  run = run_of("gpt")
  with pytest.raises(UserError, match="text 2 is empty"):
    run.score([("a", " cat"), ("a", "")])
  nameless = dataclasses.replace(run, begin_id=-1)
  assert len(run.tokenizer.encode("the")) == 1
  with pytest.raises(UserError, match="the text is one token without a prompt"):
    nameless.score([("", "the")])
  assert len(nameless.score([("", "the cat sat")])[0].ids) == len(run.tokenizer.encode("the cat sat")) - 1
  with pytest.raises(UserError, match="there is nothing to choose from"):
    run.choose("the", [])
