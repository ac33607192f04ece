"""Sentencepiece models as tokenizer.json: the ids of the `tokenizers` library are those of sentencepiece."""

import os
import random

import pytest
import tokenizers as library
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.hf_tokenizer_cases import (
  CORPORA,
  LICENSE,
  ODD,
  OTHERS,
  TOKENIZERS,
  library_ids,
  our_ids,
  plain,
  t5_model,
  trained,
)
from tests.support.plain_tokenizers import real_lines
from tfm_jax.errors import UserError
from tfm_jax.hf.tokenizer import write_tokenizer
from tfm_jax.text.tokenizers import sentencepiece_json
from tfm_jax.text.tokenizers.sentencepiece_json import CONTROL, NORMAL, USER_DEFINED, converted, parse
from tfm_jax.text.tokenizers.subwords import SentencePieceTokenizer
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer


# Each corpus with one algorithm in turn.
@pytest.mark.slow
@pytest.mark.parametrize(("file", "name"), [*zip(CORPORA, ["unigram", "bpe"] * 3, strict=True)])
def test_sentencepiece_as_json_on_real_text(name, file):
  lines = real_lines(file)
  config = TokenizerConfig(algorithm=name, vocab_size=3000, sentinels=5)
  wikitext, chinese = real_lines(CORPORA[0])[:1500], real_lines(CORPORA[3])[-500:]
  if config not in MADE:
    MADE[config] = train_tokenizer(config, ["\n".join(wikitext), "\n".join(chinese)])
  assert library_ids(converted(MADE[config]), lines) == our_ids(MADE[config], lines)


MADE: dict[TokenizerConfig, SentencePieceTokenizer] = {}


@pytest.mark.slow
@pytest.mark.parametrize("file", CORPORA)
def test_t5_as_json_on_real_text(file):
  lines = real_lines(file)
  tokenizer = SentencePieceTokenizer(t5_model(), 100)
  assert library_ids(converted(tokenizer), lines) == our_ids(tokenizer, lines)


@pytest.mark.parametrize("name", ["unigram", "bpe"])
@settings(max_examples=300)
@given(text=st.text(max_size=40) | st.text(st.sampled_from(" -=a\n\t▁<0x>A1北"), max_size=40))
def test_sentencepiece_as_json_on_any_text(name, text):
  assume(plain([text]))
  ids = TOKENIZERS[name].encode(text).tolist()
  assert JSON[name].encode(text, add_special_tokens=False).ids == ids
  assert JSON[name].decode(ids) == text


def test_ties_are_decided_alike_in_long_texts():
  """Runs of spaces have segmentations of equal score; in float32 rounding would choose between them."""
  rng = random.Random(0)
  words = [" " * rng.randint(1, 40) + rng.choice(["def", "the", "License", "x", "---", "\n"]) for _ in range(20_000)]
  text = "".join(words)
  assert JSON["unigram"].encode(text, add_special_tokens=False).ids == TOKENIZERS["unigram"].encode(text).tolist()


JSON = {name: library.Tokenizer.from_str(converted(TOKENIZERS[name]).to_str()) for name in ("unigram", "bpe")}


@pytest.mark.parametrize("name", ["unigram", "bpe"])
def test_the_space_sign_and_names_of_bytes_are_text(name):
  for text in ("a ▁ b▁c ▁▁", "▁", "<0x41><0xFF> <0x20>", "x<0x0A>\n"):
    ids = TOKENIZERS[name].encode(text).tolist()
    assert JSON[name].encode(text, add_special_tokens=False).ids == ids
    assert JSON[name].decode(ids) == text


@pytest.mark.parametrize("style", OTHERS)
def test_sentencepiece_models_of_others(style):
  tokenizer = SentencePieceTokenizer(trained(**OTHERS[style]), 3)
  made = library.Tokenizer.from_str(converted(tokenizer).to_str())
  texts = [*ODD, *LICENSE.split("\n"), "other northern <sep> soft", "the▁end"]
  if os.environ.get("TFM_DATA_DIR"):
    texts += [line for file in CORPORA[3:] for line in real_lines(file)[:2000]]
  wanted = our_ids(tokenizer, texts)
  different = [i for i, ids in enumerate(library_ids(made, texts)) if ids != wanted[i]]
  ties = [i for i in different if score(tokenizer, wanted[i]) == score(tokenizer, library_ids(made, [texts[i]])[0])]
  assert different == ties and len(ties) <= len(texts) / 1000
  for text in ("the end", "  the  end "):
    ids = tokenizer.encode(text).tolist()
    assert made.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("other", [-10.6, -10.4, -9.8, -9.6, -9.4])
def test_user_defined_pieces_have_the_same_weight(other):
  """a + xxxxxx + b against axxxxxx + b."""
  proto = parse(trained(model_type="unigram", add_dummy_prefix=False))
  rows = [("<unk>", 0, 2), ("a", -10, 1), ("b", -10, 1), ("xxxxxx", 0, 4), ("x", -50, 1), ("axxxxxx", other, 1)]
  del proto.pieces[:], proto.trainer_spec.user_defined_symbols[:]
  for piece, score_, type_ in rows:
    proto.pieces.add(piece=piece, score=score_, type=type_)
  tokenizer = SentencePieceTokenizer(proto.SerializeToString())
  ids = tokenizer.encode("axxxxxxb").tolist()
  assert library_ids(converted(tokenizer), ["axxxxxxb"]) == [ids]
  assert ids == ([1, 3, 2] if other < -9.5 else [5, 2])


def score(tokenizer: SentencePieceTokenizer, ids: list[int]) -> float:
  pieces = parse(tokenizer.model).pieces
  return round(sum(pieces[id].score for id in ids), 3)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"model_type": "char"}, "of words or characters"),
    ({"model_type": "unigram", "treat_whitespace_as_suffix": True}, "with spaces after words"),
    ({"model_type": "bpe", "user_defined_symbols": ["<sep>"]}, "user-defined pieces such as '<sep>'"),
  ],
)
def test_sentencepiece_models_that_cannot_be_written(options, message, tmp_path):
  with pytest.raises(UserError, match=message) as error:
    write_tokenizer(SentencePieceTokenizer(trained(**options)), tmp_path, "bert", 10)
  assert "\n" not in str(error.value)


def test_types_of_pieces_are_those_of_the_format():
  kinds = sentencepiece_json.sentencepiece_model_pb2.ModelProto.SentencePiece.Type
  assert (kinds.Value("NORMAL"), kinds.Value("CONTROL"), kinds.Value("USER_DEFINED")) == (NORMAL, CONTROL, USER_DEFINED)
  assert kinds.Value("BYTE") == sentencepiece_json.BYTE and kinds.Value("UNKNOWN") == sentencepiece_json.UNKNOWN
