"""Gaps of a text: how they are read, and which part of what T5 writes fills which."""

import numpy as np
import pytest

from tests.support.tiny import make_model
from tests.training.test_scoring import TEXTS, make_run
from tfm_jax.decode import filling
from tfm_jax.decode.generate import Generated
from tfm_jax.decode.prompts import Symbols, encoded
from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer

GAPS = "the cat <extra_id_0> on the <extra_id_1> mat"


def tokenizer_of(kind="sentencepiece"):
  return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=300, sentinels=4), TEXTS)


def test_a_gap_stands_for_a_piece_with_the_space_in_front():
  tokenizer, model = tokenizer_of(), make_model("t5")
  (ids,) = encoded(model, tokenizer, [GAPS])
  assert [tokenizer.token(int(id)) for id in ids] == [
    "the",
    "▁cat",
    "<extra_id_0>",
    "▁on",
    "▁the",
    "<extra_id_1>",
    "▁mat",
  ]
  characters = tokenizer_of("char")
  (ids,) = encoded(model, characters, [GAPS])
  assert "".join(characters.token(int(id)) for id in ids) == GAPS  # where a space is a token of its own
  (ids,) = encoded(make_model("gpt"), tokenizer, [GAPS])
  assert not np.isin(ids, tokenizer.sentinel_ids).any()
  assert [len(ids) for ids in encoded(model, tokenizer, ["", "the <extra_id_3>", "<extra_id_0><extra_id_1>"])] == [
    0,
    2,
    2,
  ]


def test_each_gap_gets_what_stands_behind_its_sentinel_until_the_next(monkeypatch):
  tokenizer = tokenizer_of()
  first, second, *_ = tokenizer.sentinel_ids.tolist()
  a, b, c = (int(tokenizer.encode(text)[0]) for text in (" sat", " small", " grey"))
  written = [c, first, a, first, c, second, b, c, tokenizer.eos_id]  # before a sentinel, and again: of no use
  logprobs = [-9.0, -9.0, -1.0, -9.0, -9.0, -9.0, -0.125, -2.0, -9.0]
  monkeypatch.setattr(filling, "prepared", lambda model, params: params)
  one = Generated("", "", tuple(written), sum(logprobs), tuple(logprobs), "end")
  monkeypatch.setattr(filling, "continued", lambda *_: [[one]])
  text = "the cat <extra_id_0> on <extra_id_2> the <extra_id_1> mat"
  filled = filling.fill_mask(make_model("t5"), None, tokenizer, Symbols(start=0), text)
  assert [[name for name, _ in guesses] for guesses in filled] == [[" sat"], [], [" small grey"]]
  assert [p for guesses in filled for _, p in guesses] == pytest.approx([np.exp(-1.0), np.exp(-2.125)])
  assert filled.text == "the cat sat on the small grey mat"


def test_the_text_has_the_likeliest_piece_in_every_mask():
  run = make_run("rotary")
  filled = run.fill_mask("the [MASK] sat on [MASK] mat", top=3)
  ids = filling.masked_ids(run.tokenizer, "the [MASK] sat on [MASK] mat")
  names = [run.tokenizer.token(id) for id in range(run.tokenizer.vocab_size)]
  ids[ids == run.tokenizer.mask_id] = [names.index(guesses[0][0]) for guesses in filled]
  assert filled.text == run.tokenizer.decode(ids)


@pytest.mark.parametrize(
  ("variant", "text", "message"),
  [
    ("t5", "the <extra_id_0>", "fill_mask needs a masked language model, or one of objective span_corruption"),
    ("gpt", "the [MASK]", "fill_mask needs a masked language model: family=gpt is a causal"),
  ],
)
def test_refusals(variant, text, message):
  with pytest.raises(UserError, match=message):
    make_run(variant).fill_mask(text)
  with pytest.raises(UserError, match="the text has no gap: write <extra_id_0>"):
    filling.fill_mask(make_model("t5"), None, tokenizer_of(), Symbols(start=0), "the cat")
