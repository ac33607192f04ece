"""Contrastive search against the paper's formula, computed by full forward passes without a cache."""

import functools

import jax
import numpy as np
import pytest

from tests.support.generating import PROMPTS, WIDTH, logits_after, run_of
from tests.support.tiny import placement
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import position_limit
from tfm_jax.errors import UserError

CONTRAST = Options(max_new_tokens=6, penalty_alpha=0.6, top_k=4)


@functools.cache
def _last_hidden(model):
  return jax.jit(lambda params, batch: model.hidden_states(params, batch)[-1])


def hidden_of(run, prompt, new):
  """The last hidden states of the decoder's tokens, float64 [tokens, D], of length 1."""
  ids, width = run.tokenizer.encode(prompt), position_limit(run.model) or WIDTH
  row = lambda ids: np.pad(np.array(ids, np.int32), (0, width - len(ids)))[None]
  if run.model.encoder_decoder:
    source, target = [run.begin_id, *ids, run.tokenizer.eos_id], [run.start_id, *new]
    batch = {
      "encoder_inputs": row(source),
      "encoder_segment_ids": row([1] * len(source)),
      "decoder_inputs": row(target),
    }
  else:
    target = [run.begin_id, *ids, *new]
    batch = {"inputs": row(target)}
  h = np.asarray(_last_hidden(run.model)(run.params, batch), np.float64)[0, : len(target)]
  return h / np.linalg.norm(h, axis=-1, keepdims=True)


def scores_of(run, prompt, new, alpha, k):
  """The worth of each candidate: (1 - alpha) p(v) - alpha max_j cos(h_v, h_j)."""
  logits = logits_after(run, prompt, new)
  p = np.exp(logits - logits.max())
  p /= p.sum()
  worth = {}
  for id in np.argsort(-p, kind="stable")[:k].tolist():
    *before, last = hidden_of(run, prompt, [*new, id])
    worth[id] = (1 - alpha) * p[id] - alpha * max(last @ other for other in before)
  return worth


def check(run, found, options):
  """Each id is the best candidate by the formula, within rounding; and what a greedy search would not give is there."""
  greedy = 0
  for one in found:
    assert one.end == "end" or len(one.ids) == options.max_new_tokens
    for i, id in enumerate(one.ids):
      worth = scores_of(run, one.prompt, one.ids[:i], options.penalty_alpha, options.top_k)
      assert id in worth and worth[id] > max(worth.values()) - 1e-4, (one.prompt, i, id, worth)
      logits = logits_after(run, one.prompt, one.ids[:i])
      logprob = logits[id] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
      np.testing.assert_allclose(one.logprobs[i], logprob, atol=2e-3)
      greedy += id == logits.argmax()
  assert greedy < sum(len(one.ids) for one in found)


CASES = {
  "learned": ("gpt", {}),
  "grouped, rotary": ("llama", {"num_kv_heads": 2}),
  "windows": ("llama", {"window.size": 3}),
  "lstm": ("lstm", {}),
  "t5": ("t5", {}),
  "transformer": ("transformer", {}),
}


@pytest.mark.parametrize("case", [pytest.param(x, marks=() if x == "learned" else pytest.mark.slow) for x in CASES])
def test_every_token_is_the_best_candidate_by_the_formula(case):
  variant, changes = CASES[case]
  run = run_of(variant, **changes)
  check(run, run.generate(PROMPTS, CONTRAST), CONTRAST)


def test_without_a_penalty_for_likeness_the_text_is_the_greedy_one():
  run = run_of("gpt")
  for one, other in zip(
    run.generate(PROMPTS, CONTRAST, penalty_alpha=1e-9), run.generate(PROMPTS, max_new_tokens=6), strict=True
  ):
    assert one.ids == other.ids
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_a_text_depends_on_no_other_prompt():
  run = run_of("gpt")
  together = run.generate(PROMPTS, CONTRAST)
  (alone,) = run.generate(PROMPTS[0], CONTRAST)
  assert alone.ids == together[0].ids
  assert "".join(run.stream(PROMPTS[0], CONTRAST)) == together[0].text


@pytest.mark.slow
def test_a_sharded_model_gives_the_same_text():
  run, sharded = run_of("llama", num_layers=2), run_of("llama", placement("tp", 4), num_layers=2)
  assert [one.ids for one in sharded.generate(PROMPTS, CONTRAST)] == [
    one.ids for one in run.generate(PROMPTS, CONTRAST)
  ]


def test_what_must_not_follow_is_no_candidate():
  """With as many candidates as tokens, those that may not follow have no probability, but may be unlike the text."""
  run = run_of("gpt", kind="char")
  size = run.tokenizer.vocab_size
  worth = scores_of(run, "the", (), 1.0, size)
  unlike = max(worth, key=worth.__getitem__)
  options = Options(max_new_tokens=2, penalty_alpha=1.0, top_k=size, bad_words=(run.tokenizer.token(unlike),))
  (one,) = run.generate("the", options)
  assert one.ids[0] == max(set(worth) - {unlike}, key=worth.__getitem__) and unlike not in one.ids


def test_penalties_apply_to_the_candidates():
  run = run_of("gpt")
  (once,) = run.generate(PROMPTS[:1], CONTRAST, no_repeat_ngram=1)
  assert len(set(once.ids)) == len(once.ids)


@pytest.mark.slow
def test_a_cache_of_another_dtype_holds_the_candidates_too():
  run = run_of("llama")
  exact = run.generate(PROMPTS, CONTRAST)
  rounded = run.generate(PROMPTS, CONTRAST, cache_dtype="int8")
  for one, other in zip(exact, rounded, strict=True):
    same = next((i for i, ids in enumerate(zip(one.ids, other.ids, strict=False)) if ids[0] != ids[1]), 6)
    assert same >= 1
    np.testing.assert_allclose(one.logprobs[:same], other.logprobs[:same], atol=0.3)


def test_impossible_options_are_refused():
  run = run_of("gpt")
  size = run.tokenizer.vocab_size
  for options, message in (
    ({"penalty_alpha": 1.5}, "penalty_alpha=1.5 must be between 0"),
    ({"top_k": 0}, rf"\(penalty_alpha=0.6\) chooses among the top_k likeliest tokens: set top_k=4, .*{size}, not 0"),
    ({"top_k": size + 1}, rf"from 2 to {size}, not {size + 1}"),
    ({"temperature": 1.0}, "draws nothing and has no beams: set temperature=0"),
    ({"beams": 2}, "has no beams"),
    ({"top_p": 0.5}, "top_p=0.5 chooses what is drawn"),
    ({"samples": 2}, "samples=2 would all be equal"),
  ):
    with pytest.raises(UserError, match=message):
      run.generate(["a"], CONTRAST, **options)
