"""Beam search against exhaustive search, and against a plain version of itself."""

import itertools

import numpy as np
import pytest

from tests.support.generating import PROMPTS, logits_after, run_of
from tfm_jax.decode import beams
from tfm_jax.decode.generate import step_plan
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import batches, read_prompts
from tfm_jax.errors import UserError

SHORT = ["the cat", "a dog ran"]


def log_softmax(logits):
  return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def exhaustive(run, prompt, length, penalty):
  """All texts of at most `length` tokens, ended or as long as that, by their normalised log-probability."""
  end, found = run.tokenizer.eos_id, []
  logs = {}
  for ids in itertools.product(range(run.tokenizer.vocab_size), repeat=length):
    cut = ids[: ids.index(end) + 1] if end in ids else ids
    for i in range(len(cut)):
      if cut[:i] not in logs:
        logs[cut[:i]] = log_softmax(logits_after(run, prompt, cut[:i]))
    found.append((sum(logs[cut[:i]][cut[i]] for i in range(len(cut))) / len(cut) ** penalty, cut))
  return sorted(set(found), reverse=True)


@pytest.mark.parametrize(
  ("variant", "penalty"), [("gpt", 0.0), ("t5", 1.0), pytest.param("gpt", 1.0, marks=pytest.mark.slow)]
)
def test_as_many_beams_as_tokens_find_the_best_texts_of_two_tokens(variant, penalty):
  run = run_of(variant, kind="char")
  size = run.tokenizer.vocab_size
  (found,) = run.generate([PROMPTS[2]], beams=size, samples=3, max_new_tokens=2, length_penalty=penalty)
  best = exhaustive(run, PROMPTS[2], 2, penalty)
  assert [one.ids for one in found] == [ids for _, ids in best[:3]]
  scores = [one.logprob / len(one.ids) ** penalty for one in found]
  np.testing.assert_allclose(scores, [score for score, _ in best[:3]], rtol=1e-4)


def plain_search(run, prompt, beams, length, groups=1, diversity=0.0):
  """Beam search over lists, as in the module's description, with a length penalty of 1."""
  end, each = run.tokenizer.eos_id, beams // groups
  running = [[(0.0, ())] for _ in range(groups)]
  finished = [[] for _ in range(groups)]
  is_open = [True] * groups
  for step in range(1, length + 1):
    taken = {}
    for g in range(groups):
      candidates = []
      for score, ids in running[g]:
        for id, value in enumerate(log_softmax(logits_after(run, prompt, ids))):
          candidates.append((score + value - diversity * taken.get(id, 0), (*ids, id)))
      candidates.sort(key=lambda x: -x[0])
      candidates = candidates[: 2 * each]
      for _, ids in candidates[:each]:
        taken[ids[-1]] = taken.get(ids[-1], 0) + 1
      ended = lambda ids, step=step: ids[-1] == end or step == length
      if is_open[g]:
        finished[g] += [(score / step, ids) for score, ids in candidates[:each] if ended(ids)]
        finished[g] = sorted(finished[g], key=lambda x: -x[0])[:each]
      running[g] = [one for one in candidates if not ended(one[1])][:each]
      best = running[g][0][0] / step if running[g] else -np.inf
      is_open[g] &= len(finished[g]) < each or best > finished[g][-1][0]
    if not any(is_open):
      break
  return [ids for _, ids in sorted(itertools.chain(*finished), key=lambda x: -x[0])]


PLAIN, GROUPS = (3, 1, 0.0), (4, 2, 0.7)
SEARCHES = [("gpt", PLAIN), ("gpt", GROUPS), ("t5", GROUPS), ("lstm", PLAIN), ("gru_encoder_decoder", GROUPS)]


@pytest.mark.slow_but(*(f"{name}-{search}" for name, search in SEARCHES[:2]))
@pytest.mark.parametrize(("variant", "search"), SEARCHES, ids=str)
def test_beams_are_those_of_a_plain_search(variant, search):
  beams, groups, diversity = search
  run = run_of(variant, kind="char")
  options = {"beams": beams, "samples": beams, "max_new_tokens": 5, "beam_groups": groups, "diversity": diversity}
  found = run.generate(SHORT, **options)
  for prompt, several in zip(SHORT, found, strict=True):
    expected = plain_search(run, prompt, beams, 5, groups, diversity)
    assert [one.ids for one in several] == expected[:beams]


def test_beams_of_a_prompt_depend_on_no_other():
  run = run_of("llama")
  together = run.generate(PROMPTS, beams=3, max_new_tokens=6)
  assert [one.ids for one in together] == [run.generate(p, beams=3, max_new_tokens=6)[0].ids for p in PROMPTS]


def test_rows_that_fill_up_a_batch_are_not_searched():
  run, options = run_of("gpt", kind="char"), Options(beams=2, max_new_tokens=4)
  read = read_prompts(run.model, run.tokenizer, run.symbols, [*SHORT, "sat"], options)
  (batch,) = batches(run.model, read, 1, 4)
  found = list(beams.search(run.model, run.params, batch, 4, options, step_plan(run.tokenizer, options)))
  assert [bool(logprobs.any()) for _, logprobs in found] == [True, True, True, False]


def test_beams_draw_nothing():
  with pytest.raises(UserError, match="beam search draws nothing"):
    run_of("gpt").generate("the", beams=2, temperature=1.0)
  with pytest.raises(UserError, match="beams=4 do not divide into beam_groups=3"):
    run_of("gpt").generate("the", beams=4, beam_groups=3)
