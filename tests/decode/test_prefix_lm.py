"""Prefix language models: what a decoder that reads prefixes sees, at once and through its cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import make_batch, make_model, params_of
from tfm_jax.decode.generate import continued
from tfm_jax.decode.likelihood import Row, likelihoods_of
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import Prompt
from tfm_jax.errors import UserError
from tfm_jax.ops.masks import Mask
from tfm_jax.text.tokenizers.characters import ByteTokenizer


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
  np.testing.assert_allclose(before[:, 7:14], after[:, 7:14], atol=1e-6)  # the second text
  changed = ids.copy()
  changed[:, 5] = 9 + (changed[:, 5] == 9)
  np.testing.assert_allclose(read(ids, prefix=prefix)[:, :5], read(changed, prefix=prefix)[:, :5], atol=1e-6)
  np.testing.assert_allclose(read(ids, prefix=0 * prefix), read(ids), atol=1e-6)


@pytest.mark.slow
def test_prompts_are_read_as_prefixes_by_the_cache_too():
  model, params = make_model("gpt", max_positions=64), params_of("gpt")
  tokenizer = ByteTokenizer()
  tokenizer.vocab_size, tokenizer.eos_id = 250, -1
  ids = np.arange(20, 31, dtype=np.int32)
  wide = jax.tree.map(lambda x: x, params)
  wide["embed"]["position"] = jnp.concatenate([params["embed"]["position"]] * 2)
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
