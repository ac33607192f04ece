"""Prefix language modelling: its rows against a slow oracle, and what a decoder that reads them sees."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_objectives import draws_for, objective_of, one_segment, random_rows
from tests.support.tiny import make_batch, make_model, params_of
from tfm_jax.decode.generate import continued
from tfm_jax.decode.likelihood import Row, likelihoods_of
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import Prompt
from tfm_jax.errors import UserError
from tfm_jax.ops.masks import Mask
from tfm_jax.text.tokenizers.characters import ByteTokenizer

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


def test_the_mask_of_a_prefix():
  segments, prefix = np.array([[1, 1, 1, 2, 2, 0]]), np.array([[1, 1, 0, 0, 0, 0]])
  mask = Mask(True, query_segments_BT=segments, key_segments_BS=segments, prefix_BS=prefix).dense(6, 6)
  expected = ["110000", "110000", "111000", "000100", "000110"]
  assert ["".join(map(str, row)) for row in np.asarray(mask[0, :5]).astype(int)] == expected


def test_a_decoder_sees_its_prefix_in_both_directions_and_nothing_else():
  model, params = make_model("gpt"), params_of("gpt")
  batch = make_batch("gpt", rows=2)
  prefix = np.zeros_like(batch["inputs"])
  prefix[:, :4] = 1
  logits = jax.jit(model.logits)
  read = lambda ids, **others: np.asarray(logits(params, batch | {"inputs": ids, **others}))
  ids = batch["inputs"]
  changed = ids.copy()
  changed[:, 3] = 9 + (changed[:, 3] == 9)
  before, after = read(ids, prefix=prefix), read(changed, prefix=prefix)
  assert (
    np.abs(before - after)[:, :4].max(axis=(0, 2)) > 1e-4
  ).all()  # all of the prefix, and all after it in its text
  np.testing.assert_allclose(before[:, 7:], after[:, 7:], atol=1e-6)  # the second segment
  changed = ids.copy()
  changed[:, 5] = 9 + (changed[:, 5] == 9)
  np.testing.assert_allclose(read(ids, prefix=prefix)[:, :5], read(changed, prefix=prefix)[:, :5], atol=1e-6)
  np.testing.assert_allclose(read(ids, prefix=0 * prefix), read(ids), atol=1e-6)


def test_prompts_are_read_as_prefixes_by_the_cache_too():
  model, params = make_model("gpt", max_positions=64), params_of("gpt")
  tokenizer = ByteTokenizer()
  tokenizer.vocab_size, tokenizer.eos_id = 250, -1
  ids = np.arange(20, 31, dtype=np.int32)
  wide = jax.tree.map(lambda x: x, params)
  wide["embed"]["position"] = np.concatenate([params["embed"]["position"]] * 2)
  found = {}
  for both_ways in (False, True):
    prompt = Prompt(0, "", ids, ids[:0], both_ways=both_ways)
    ((sample,),) = continued(model, wide, tokenizer, [prompt], Options(max_new_tokens=5, temperature=0.0))
    new = list(sample.ids)
    whole = np.concatenate([ids, new]).astype(np.int32)
    prefix = np.where(np.arange(len(whole)) < len(ids), int(both_ways), 0)[None]
    logits = np.asarray(model.logits(wide, {"inputs": whole[None], "prefix": prefix.astype(np.int32)}))[0, :, :250]
    assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == new
    row = Row(whole, len(ids), ids[:0], prefix=len(ids) * both_ways)
    (likelihood,) = likelihoods_of(model, wide, tokenizer, [row])
    expected = jax.nn.log_softmax(logits)[np.arange(len(ids) - 1, len(whole) - 1), new]
    np.testing.assert_allclose(likelihood.logprobs, expected, atol=1e-4)
    found[both_ways] = logits[len(ids) - 1]
  assert np.abs(found[True] - found[False]).max() > 1e-3


def test_a_kernel_without_prefixes_refuses_them():
  model, params = make_model("gpt", attention="splash"), params_of("gpt")
  batch = make_batch("gpt", rows=2)
  with pytest.raises(UserError, match="has no prefixes"):
    model.logits(params, batch | {"prefix": np.ones_like(batch["inputs"])})
