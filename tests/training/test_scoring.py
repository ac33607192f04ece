"""`run.fill_mask` and `run.perplexity` against plain forward passes over whole texts, one at a time."""

import dataclasses
import math

import jax
import numpy as np
import pytest

import tests.support.tiny as tiny_models
from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer
from tfm_jax.training.config import from_dict
from tfm_jax.training.load import Run

TEXTS = ["the cat sat on the mat and saw the bird", "a dog ran after one small grey bird", "all of the town sat"] * 20
KINDS = {"sentencepiece": 300, "wordpiece": 120, "char": 0}


def make_run(variant, kind="sentencepiece", **others):
  """A run with disturbed parameters and a tokenizer of that kind, whose ids are within the model's."""
  tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=KINDS[kind]), TEXTS)
  model = tiny_models.make_model(variant)
  model = dataclasses.replace(model, vocab_size=max(tokenizer.vocab_size + 3, tiny_models.VOCAB))
  if model.vocab_size > 256:
    params = jax.jit(model.init)(jax.random.key(0))
  else:
    params = tiny_models.params_of(variant)
  return Run(from_dict({"data": {"seq_len": 16}}), model, params, tokenizer, 0, **others)


def log_softmax(run, ids):
  """Of one row, in float64 from the logits of a plain forward pass."""
  batch = {"inputs": np.asarray(ids, np.int32)[None]}
  logits = np.asarray(run.model.logits(run.params, batch), np.float64)[0]
  return (
    logits
    - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    - logits.max(-1, keepdims=True)
  )


@pytest.mark.parametrize(("variant", "kind"), [("bert", "sentencepiece"), ("rotary", "wordpiece")])
def test_fill_mask_is_a_forward_pass_of_the_text_with_the_mask(variant, kind):
  run = make_run(variant, kind)
  tokenizer = run.tokenizer
  words = [tokenizer.encode(part) for part in ("the cat", " on the", " mat")]
  mask, first, last = tokenizer.mask_id, tokenizer.bos_id, tokenizer.eos_id
  ids = [first, *words[0], mask, *words[1], mask, *words[2], last]
  expected = log_softmax(run, ids)[:, : tokenizer.vocab_size]
  for name in ("[MASK]", tokenizer.token(mask)):
    results = run.fill_mask(f"the cat {name} on the {name} mat", top=3)
    assert len(results) == 2
    for place, result in zip(np.flatnonzero(np.array(ids) == mask), results, strict=True):
      p = np.exp(expected[place]) / np.exp(expected[place]).sum()
      best = np.argsort(-p)[:3]
      assert [piece for piece, _ in result] == [tokenizer.token(int(id)) for id in best]
      assert [share for _, share in result] == pytest.approx(p[best].tolist(), rel=1e-4)


def test_a_mask_of_characters_keeps_the_spaces_around_it():
  """A mask stands for one character: the space before it is another."""
  run = make_run("bert", "char")
  (result,) = run.fill_mask("the [MASK]at", top=1)
  ids = [run.tokenizer.bos_id, *run.tokenizer.encode("the "), run.tokenizer.mask_id, *run.tokenizer.encode("at")]
  expected = log_softmax(run, [*ids, run.tokenizer.eos_id])[5, : run.tokenizer.vocab_size]
  assert result[0][0] == run.tokenizer.token(int(expected.argmax()))


@pytest.mark.parametrize(("variant", "begins"), [("gpt", False), ("llama", True)])
def test_the_perplexity_of_a_causal_model(variant, begins):
  run = make_run(variant)
  text = "the cat sat on the mat"
  ids = run.tokenizer.encode(text)
  run = dataclasses.replace(run, begin_id=run.tokenizer.bos_id if begins else -1)
  ids = [run.begin_id, *ids] if begins else ids
  log_p = log_softmax(run, ids[:-1])
  expected = math.exp(-np.mean([log_p[i, ids[i + 1]] for i in range(len(ids) - 1)]))
  assert run.perplexity(text) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_long_text_is_read_in_windows_that_overlap_by_half():
  run = make_run("gpt")
  text = " ".join(TEXTS[:12])
  ids = run.tokenizer.encode(text)
  assert len(ids) > 64
  nll, scored = 0.0, 1
  for start in range(0, len(ids), 8):
    log_p = log_softmax(run, ids[start : start + 16])
    while scored < min(start + 17, len(ids)):
      nll -= log_p[scored - 1 - start, ids[scored]]
      scored += 1
  assert scored == len(ids)
  assert run.perplexity(text) == pytest.approx(math.exp(nll / (len(ids) - 1)), rel=1e-4)
  log_p = log_softmax(run, ids[:31])
  whole = math.exp(-np.mean([log_p[i, ids[i + 1]] for i in range(31)]))
  assert run.perplexity(run.tokenizer.decode(ids[:32]), window=32) == pytest.approx(whole, rel=1e-4)


def test_the_pseudo_perplexity_masks_one_token_at_a_time():
  run = make_run("rotary")  # positions without end
  text = " ".join(TEXTS[:5])
  tokens = run.tokenizer.encode(text)
  assert len(tokens) > 32  # more than a batch
  nll = []
  for i, token in enumerate(tokens):
    masked = tokens.copy()
    masked[i] = run.tokenizer.mask_id
    nll.append(-log_softmax(run, [run.tokenizer.bos_id, *masked, run.tokenizer.eos_id])[i + 1, token])
  assert run.perplexity(text) == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)


@pytest.mark.slow
def test_a_sharded_model_says_the_same():
  run = make_run("bert")
  sharded = dataclasses.replace(run, model=dataclasses.replace(run.model, placement=tiny_models.placement("fsdp", 8)))
  text = "the cat [MASK] on the mat"
  for one, other in zip(run.fill_mask(text)[0], sharded.fill_mask(text)[0], strict=True):
    assert one[0] == other[0] and one[1] == pytest.approx(other[1], rel=1e-4)
  assert run.perplexity("the cat") == pytest.approx(sharded.perplexity("the cat"), rel=1e-4)


@pytest.mark.parametrize(
  ("variant", "call", "message"),
  [
    ("gpt", lambda run: run.fill_mask("a [MASK]"), "fill_mask needs a masked.*family=gpt is a causal language model"),
    ("t5", lambda run: run.perplexity("a cat"), "perplexity needs a causal or.*family=t5 is an encoder-decoder"),
    ("bert", lambda run: run.fill_mask("the cat"), r"no mask: write \[MASK\]"),
    ("bert", lambda run: run.fill_mask("[MASK]" + " the cat" * 30), "tokens, but the model has 32 positions"),
    ("bert", lambda run: run.perplexity("the cat " * 30), "tokens, but the model has 32 positions"),
    (
      "gpt",
      lambda run: run.perplexity("the cat " * 30, window=64),
      "window=64 is longer than the model's 32 positions",
    ),
    ("bert", lambda run: run.fill_mask("a [MASK]", top=0), "top=0 is not between 1 and"),
    ("bert", lambda run: run.perplexity(""), "the text is empty"),
    ("gpt", lambda run: run.perplexity(""), "too short"),
    ("gpt", lambda run: run.perplexity("a", window=1), "window=1 is too short"),
    ("gpt", lambda run: dataclasses.replace(run, tokenizer=None).perplexity("a cat"), "the run has no tokenizer"),
  ],
)
def test_refusals(variant, call, message):
  with pytest.raises(UserError, match=message):
    call(make_run(variant))
