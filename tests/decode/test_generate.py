"""Generation with a cache against plain forward passes over whole texts, one at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.generating import PROMPTS, logits_after, run_of
from tests.support.tiny import placement
from tfm_jax.decode import generate as decoding
from tfm_jax.decode.options import Options
from tfm_jax.decode.start import prepared
from tfm_jax.errors import UserError
from tfm_jax.models import blocks
from tfm_jax.models.config import replaced
from tfm_jax.models.per_layer import PerLayer


def check_greedy(run, found, count):
  """Each id is the likeliest by the forward pass (within rounding), and has its log-probability."""
  for one in found:
    assert one.end == "end" or len(one.ids) == count
    for i, id in enumerate(one.ids):
      logits = logits_after(run, one.prompt, one.ids[:i])
      assert logits[id] > logits.max() - 1e-3 * np.abs(logits).max()
      logprob = logits[id] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
      np.testing.assert_allclose(one.logprobs[i], logprob, atol=2e-3)
    np.testing.assert_allclose(one.logprob, sum(one.logprobs), rtol=1e-5)
    assert all(id != run.tokenizer.eos_id for id in one.ids[:-1])


CASES = {
  "learned": ("gpt", {}),
  "sinusoidal": ("gpt", {"positions": "sinusoidal", "max_positions": 0}),
  "relative": ("gpt", {"positions": "relative"}),
  "grouped, rotary": ("llama", {"num_kv_heads": 2}),
  "some windows": ("llama", {"window.size": 2, "window.global_every": 2}),
  "t5": ("t5", {}),
  "transformer": ("transformer", {}),
  "lstm": ("lstm", {}),
  "gru_encoder_decoder": ("gru_encoder_decoder", {}),
}
DEFAULT = ("learned", "some windows", "t5", "lstm")


@pytest.mark.parametrize("case", [pytest.param(x, marks=() if x in DEFAULT else pytest.mark.slow) for x in CASES])
def test_greedy_texts_of_unequal_prompts_follow_the_full_forward(case):
  variant, changes = CASES[case]
  run = run_of(variant, **changes)
  check_greedy(run, run.generate(PROMPTS, max_new_tokens=6), 6)


@pytest.mark.parametrize(
  ("variant", "changes"),
  [
    ("gpt", {}),
    ("llama", {"num_kv_heads": 2}),
    *(pytest.param(name, {}, marks=pytest.mark.slow) for name in ("t5", "lstm", "gru_encoder_decoder")),
  ],
)
def test_a_cpu_reads_the_weights_of_each_layer_from_an_array_of_its_own(variant, changes, monkeypatch):
  run = run_of(variant, **changes)
  options = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
  stacked = run.generate(PROMPTS, **options)
  monkeypatch.setattr(blocks, "UNROLLED_ON_CPU", 12)
  params = prepared(run.model, run.params)
  cut = [x for x in jax.tree.leaves(params, is_leaf=is_cut) if is_cut(x)]
  assert cut and all(len(x.layers) == run.model.config.num_layers for x in cut)
  restored = jax.tree.map(lambda x: x.whole() if is_cut(x) else x, params, is_leaf=is_cut)
  jax.tree.map(np.testing.assert_array_equal, restored, run.params)
  apart = run.generate(PROMPTS, **options)
  assert [one.ids for one in apart] == [one.ids for one in stacked]
  np.testing.assert_allclose([one.logprob for one in apart], [one.logprob for one in stacked], rtol=1e-5)


def is_cut(x):
  return isinstance(x, PerLayer)


def test_a_model_whose_layers_all_have_a_window_keeps_no_more_than_it():
  """Prompt and text are longer than the cache, whose columns are taken anew."""
  run = run_of("llama", **{"window.size": 3})
  long = ["the cat"]
  (read,) = decoding.prompts.read_prompts(run.model, run.tokenizer, run.symbols, long, Options())
  (batch,) = decoding.prompts.batches(run.model, [read], 1, 1)
  width = batch.ids_BT.shape[1]
  state, _ = decoding.start(run.model, run.params, batch, width + 64)
  assert (width, state.cache.columns) == (16, 32)
  check_greedy(run, run.generate(long, max_new_tokens=40), 40)


def test_with_a_context_each_token_reads_the_last_ones_alone():
  run = run_of("llama")
  config = replaced(run.model.config, {"window.size": 3})
  windowed = dataclasses.replace(run, model=dataclasses.replace(run.model, config=config))
  found, expected = run.generate(PROMPTS, max_new_tokens=24, context=4), windowed.generate(PROMPTS, max_new_tokens=24)
  assert [one.ids for one in found] == [one.ids for one in expected]
  assert [one.ids for one in found] != [one.ids for one in run.generate(PROMPTS, max_new_tokens=24)]
  assert "".join(run.stream(PROMPTS[0], max_new_tokens=24, context=4)) == found[0].text


@pytest.mark.parametrize(
  ("variant", "changes", "named"),
  [
    ("gpt", {}, "learned positions"),
    ("llama", {"window.size": 2, "window.global_every": 2}, "windows of its own"),
    ("t5", {}, "an encoder-decoder"),
  ],
)
def test_a_context_is_refused_where_a_model_cannot_have_it(variant, changes, named):
  with pytest.raises(UserError, match=named):
    run_of(variant, **changes).generate(PROMPTS, context=4)


@pytest.mark.parametrize(
  ("variant", "dtype", "tolerance"),
  [
    ("llama", "int8", 0.03),
    pytest.param("t5", "int8", 0.03, marks=pytest.mark.slow),
    pytest.param("llama", "float32", 1e-5, marks=pytest.mark.slow),
  ],
)
def test_a_cache_of_another_dtype_changes_log_probabilities_by_its_rounding_alone(variant, dtype, tolerance):
  run = run_of(variant)
  exact = run.generate(PROMPTS, max_new_tokens=5)
  rounded = run.generate(PROMPTS, max_new_tokens=5, cache_dtype=dtype)
  for one, other in zip(exact, rounded, strict=True):
    same = next((i for i, ids in enumerate(zip(one.ids, other.ids, strict=False)) if ids[0] != ids[1]), 5)
    assert same >= 1
    np.testing.assert_allclose(one.logprobs[:same], other.logprobs[:same], atol=tolerance * 10, rtol=tolerance)
  if dtype != "float32":
    assert [one.logprobs for one in exact] != [one.logprobs for one in rounded]


SAMPLED = Options(max_new_tokens=8, temperature=0.9, top_p=0.95, seed=11)


@pytest.mark.slow_but("gpt")
@pytest.mark.parametrize("variant", ["gpt", "t5"])
def test_a_sampled_text_depends_on_no_other_prompt(variant):
  run = run_of(variant)
  together = run.generate(PROMPTS, SAMPLED)
  for prompt, one in zip(PROMPTS, together, strict=True):
    (alone,) = run.generate(prompt, SAMPLED)
    assert alone.ids == one.ids and alone.text == one.text
  other = run.generate(PROMPTS, SAMPLED, seed=12)
  assert [one.ids for one in other] != [one.ids for one in together]
  several = run.generate(PROMPTS[:1], SAMPLED, samples=3)[0]
  assert several[0].ids == together[0].ids and len({one.ids for one in several}) > 1


def test_a_sharded_model_generates_the_same_text():
  run = run_of("llama", num_layers=2)
  other = run_of("llama", placement("tp", 4), num_layers=2)
  for options in (Options(max_new_tokens=6), SAMPLED):
    assert [one.ids for one in run.generate(PROMPTS, options)] == [one.ids for one in other.generate(PROMPTS, options)]


def test_text_goes_on_where_the_prompt_ends():
  run = run_of("gpt")
  for one in run.generate(PROMPTS, SAMPLED):
    whole = run.tokenizer.decode([*run.tokenizer.encode(one.prompt), *one.ids])
    assert one.prompt + one.text == whole


def test_a_stop_string_ends_the_text_before_it():
  run = run_of("gpt")
  free = run.generate(PROMPTS[0], max_new_tokens=24, temperature=1.0)[0]
  stop = free.text[len(free.text) // 2 :][:2]
  (cut,) = run.generate(PROMPTS[0], max_new_tokens=24, temperature=1.0, stop=(stop,))
  assert cut.end == "stop" and cut.text == free.text[: free.text.index(stop)]
  assert free.ids[: len(cut.ids)] == cut.ids
  assert stop in run.tokenizer.decode([*run.tokenizer.encode(PROMPTS[0]), *cut.ids])[len(PROMPTS[0]) :]
  assert "".join(run.stream(PROMPTS[0], max_new_tokens=24, temperature=1.0, stop=(stop,))) == cut.text


@pytest.mark.parametrize("variant", ["gpt", "t5"])
def test_a_stream_is_the_text_in_pieces(variant):
  run = run_of(variant)
  pieces = list(run.stream(PROMPTS[0], SAMPLED))
  assert "".join(pieces) == run.generate(PROMPTS[0], SAMPLED)[0].text and len(pieces) > 1


@pytest.mark.parametrize("variant", ["gpt", "t5"])
def test_a_forced_prefix_begins_the_text(variant):
  run = run_of(variant)
  (one,) = run.generate(PROMPTS[0], max_new_tokens=4, prefix="the bird")
  assert one.text.lstrip().startswith("the bird") and len(one.ids) > 4


def test_the_options_reach_the_texts():
  run = run_of("gpt")
  (free,) = run.generate(PROMPTS[0], max_new_tokens=12)
  piece = run.tokenizer.token(free.ids[0])
  assert piece == "▁cat"
  (banned,) = run.generate(PROMPTS[0], max_new_tokens=12, bad_words=("cat",))
  assert free.ids[0] not in banned.ids
  (once,) = run.generate(PROMPTS[0], max_new_tokens=12, no_repeat_ngram=1)
  assert len(set(once.ids)) == len(once.ids)
  (short,) = run.generate(PROMPTS[0], max_new_tokens=3)
  assert short.ids == free.ids[:3] and short.end == "length"


def test_other_numbers_need_no_other_program():
  run = run_of("gpt")
  run.generate(PROMPTS, SAMPLED)
  before = decoding._advance._cache_size()
  run.generate(PROMPTS, SAMPLED, temperature=0.5, top_p=0.7, seed=3)
  run.generate(["one bird", "the small dog", "on"], SAMPLED, max_new_tokens=7)
  assert decoding._advance._cache_size() == before


def test_what_cannot_be_continued_is_refused():
  gpt = run_of("gpt")
  for variant, prompts, options, message in (
    ("bert", ["a"], {}, "family=bert reads in both directions and generates no text: use --fill"),
    ("gpt", ["the cat " * 40], {}, r"the prompt has \d+ tokens, but the model has 32 positions, so that nothing can"),
    ("gpt", ["a", "the cat " * 40], {}, "prompt 2 has"),
    ("t5", ["a", ""], {}, "prompt 2 is empty: the encoder needs at least one token"),
    ("gpt", ["a"], {"beams": 1000}, "beams=1000 must be between 1 and"),
    ("gpt", ["a"], {"temperature": -1.0}, "temperature=-1.0 must be 0"),
    ("gpt", ["a"], {"top_p": 0.5}, "top_p=0.5 chooses what is drawn: set a temperature too"),
    ("gpt", ["a"], {"samples": 2}, "samples=2 would all be equal"),
    ("gpt", ["a"], {"temprature": 1.0}, "temprature is no option of generation; did you mean temperature?"),
  ):
    with pytest.raises(UserError, match=message):
      run_of(variant).generate(prompts, **options)
  nameless = dataclasses.replace(gpt, begin_id=-1)
  with pytest.raises(UserError, match="the prompt is empty, and the texts of this model begin with no symbol"):
    nameless.generate("")
  assert gpt.generate("", max_new_tokens=2)[0].ids


def test_texts_end_where_the_positions_do_whatever_prompts_are_beside():
  run = run_of("gpt")
  prompts = ["the cat " * 8, "a dog", "the cat " * 9]
  together = run.generate(prompts, max_new_tokens=24, min_new_tokens=24)
  for prompt, one in zip(prompts, together, strict=True):
    assert len(one.ids) == min(24, 32 - 1 - len(run.tokenizer.encode(prompt)))
    assert one.ids == run.generate(prompt, max_new_tokens=24, min_new_tokens=24)[0].ids
  assert len({len(one.ids) for one in together}) == 3


def test_jax_sees_no_other_dtype():
  """The prepared parameters are those of the compute dtype where they are multiplied with, the others as stored."""
  run = run_of("gpt", dtype="bfloat16")
  params = decoding.prepared(run.model, run.params)
  assert params["blocks"]["attn"]["wq"].dtype == params["embed"]["token"].dtype == jnp.bfloat16
  assert params["final_norm"]["scale"].dtype == jnp.float32
