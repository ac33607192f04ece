"""Spans of tokens: the characters of the original text, for every kind of tokenizer."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfm_jax.text.tokenizers.table import TokenizerConfig, from_path, train_tokenizer

TEXTS = ("The  quick brown fox, 1928!\n", "Ünïcode ＡＢＣ ﬁne", "東京 2020 is a▁b", "naïve café\tx")
SIZES = {"sentencepiece": 300, "wordpiece": 120, "gpt2": 270, "char": 0, "byte": 0}


@pytest.fixture(scope="module")
def tokenizers():
  return {kind: train_tokenizer(TokenizerConfig(kind, vocab_size=n), list(TEXTS) * 20) for kind, n in SIZES.items()}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("text", [*TEXTS, "", " ", "unseen words ĄĆŻ 🙂"])
def test_spans_belong_to_the_ids_of_encode(tokenizers, kind, text):
  ids, spans = tokenizers[kind].encode_with_spans([text])[0]
  np.testing.assert_array_equal(ids, tokenizers[kind].encode(text, reads_names=False))
  assert spans.shape == (len(ids), 2) and (spans[:, 0] <= spans[:, 1]).all()
  assert (np.diff(spans[:, 0]) >= 0).all() and spans.max(initial=0) <= len(text)


@pytest.mark.parametrize("kind", SIZES)
@given(text=st.text(alphabet="abc 東é\n▁🙂,.ＡﬁA", max_size=30))
def test_every_letter_is_covered_and_no_piece_begins_or_ends_with_space(tokenizers, kind, text):
  _, spans = tokenizers[kind].encode_with_spans([text])[0]
  covered = {place for start, end in spans.tolist() for place in range(start, end)}
  assert {i for i, letter in enumerate(text) if not letter.isspace()} <= covered
  for start, end in spans.tolist():
    assert text[start:end].isspace() or text[start:end] == text[start:end].strip()


def test_pieces_of_bert_stand_for_the_original_characters(tokenizers):
  """Lower case, without accents, and cut into pieces: spans are of the text as it was."""
  tokenizer, text = tokenizers["wordpiece"], "Café, THE Fox"
  ids, spans = tokenizer.encode_with_spans([text])[0]
  words = "".join(tokenizer.token(int(i)).removeprefix("##") for i in ids)
  assert words == "cafe,thefox" and "".join(text[a:b] for a, b in spans) == "Café,THEFox"


def test_spans_of_t5_fall_on_words():
  folder = os.environ.get("TFM_DATA_DIR")
  if not folder:
    pytest.skip("TFM_DATA_DIR is not set")
  tokenizer = from_path(TokenizerConfig(path=f"{folder}/vocab/t5/cc_all.32000.100extra.model"))
  text = "Beyoncé Giselle  Knowles (born 1981)"
  _, spans = tokenizer.encode_with_spans([text])[0]
  assert {a for a, _ in spans} >= {0, text.index("Giselle"), text.index("Knowles"), text.index("(")}
