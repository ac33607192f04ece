"""Tokenizers to and from Hugging Face: equal ids in the files we write, and in those we read."""

import json
import pickle
import random
import re

import pytest
import tokenizers as library
from etils import epath

from tests.support.hf_tokenizer_cases import (
  EVERY,
  LICENSE,
  MODEL_TYPES,
  ODD,
  TOKENIZERS,
  library_ids,
  our_ids,
  plain,
  same,
  trained,
)
from tests.support.plain_tokenizers import put
from tfm_jax.errors import UserError
from tfm_jax.hf.tokenizer import read_tokenizer, write_tokenizer
from tfm_jax.text.tokenizers.characters import ByteTokenizer
from tfm_jax.text.tokenizers.pretrained import from_files
from tfm_jax.text.tokenizers.sentencepiece_json import converted
from tfm_jax.text.tokenizers.subwords import SentencePieceTokenizer
from tfm_jax.text.tokenizers.table import TokenizerConfig, load_tokenizer, train_tokenizer


@EVERY
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_written_files_give_the_same_ids_and_are_read_back(name, model_type, tmp_path):
  tokenizer = TOKENIZERS[name]
  write_tokenizer(tokenizer, tmp_path, model_type, 77)
  texts = plain([*ODD, *LICENSE.split("\n\n")])
  if (name, model_type) != ("byt5", "t5"):  # that one is code in transformers
    made = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library_ids(made, texts) == our_ids(tokenizer, texts)
    assert made.get_vocab_size() == tokenizer.vocab_size
    assert all(made.id_to_token(int(id)) == f"<extra_id_{n}>" for n, id in enumerate(tokenizer.sentinel_ids))
  assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 77
  same(tokenizer, read_tokenizer(tmp_path))


def test_half_a_surrogate_cannot_be_written(tmp_path):
  with pytest.raises(UserError, match="surrogate"):
    write_tokenizer(train_tokenizer(TokenizerConfig(kind="char"), ["a\ud800"]), tmp_path, "bert", 10)


@pytest.mark.parametrize(
  ("model_type", "one", "two", "types"),
  [
    ("bert", [2, 7, 3], [2, 7, 3, 8, 3], [0, 0, 0, 1, 1]),
    ("modernbert", [2, 7, 3], [2, 7, 3, 8, 3], [0, 0, 0, 1, 1]),
    ("roberta", [2, 7, 3], [2, 7, 3, 3, 8, 3], [0] * 6),
    ("t5", [7, 3], [7, 3, 8, 3], [0] * 4),
    ("gpt2", [7], [7, 8], [0] * 2),
    ("qwen2", [7], [7, 8], [0] * 2),
    ("llama", [2, 7], [2, 7, 2, 8], [0] * 4),
    ("mistral", [2, 7], [2, 7, 2, 8], [0] * 4),
    ("unheard-of", [7], [7, 8], [0] * 2),
  ],
)
def test_special_tokens_around_a_text(model_type, one, two, types, tmp_path):
  write_tokenizer(train_tokenizer(TokenizerConfig(kind="char"), ["...abcdefg"]), tmp_path, model_type, 10)
  made = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  assert made.encode("b").ids == one
  assert (made.encode("b", "c").ids, made.encode("b", "c").type_ids) == (two, types)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_tokens_that_are_missing_are_not_added(model_type, tmp_path):
  write_tokenizer(SentencePieceTokenizer(trained(bos_id=-1, eos_id=-1, model_type="bpe")), tmp_path, model_type, 10)
  made = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  assert made.encode("the").ids == made.encode("the", add_special_tokens=False).ids
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert not {"bos_token", "eos_token", "cls_token", "sep_token", "pad_token"} & config.keys()


def test_configuration_of_a_bert(tmp_path):
  write_tokenizer(TOKENIZERS["cased"], tmp_path, "bert", 512)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert (config["cls_token"], config["sep_token"], config["mask_token"]) == ("[CLS]", "[SEP]", "[MASK]")
  assert config["do_lower_case"] is False and "bos_token" not in config
  assert config["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]
  (tmp_path / "tokenizer.json").unlink()  # older readers take vocab.txt
  assert our_ids(from_files(epath.Path(tmp_path)), ODD) == our_ids(TOKENIZERS["cased"], ODD)


def test_configuration_of_a_gpt2(tmp_path):
  write_tokenizer(TOKENIZERS["gpt2"], tmp_path, "gpt2", 1024)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert config["model_input_names"] == ["input_ids", "attention_mask"]  # GPT-2 would embed token types
  assert config["additional_special_tokens"] == ["<extra_id_0>", "<extra_id_1>"]
  (tmp_path / "tokenizer.json").unlink()
  assert our_ids(from_files(epath.Path(tmp_path)), ODD) == our_ids(TOKENIZERS["gpt2"], ODD)


def test_another_kind_is_an_error_of_ours(tmp_path):
  class Other(ByteTokenizer.__bases__[0]):  # the abstract class itself
    kind = "other"
    vocab_size = 1
    pad_id = unk_id = bos_id = eos_id = mask_id = -1
    sentinel_ids = TOKENIZERS["byte"].sentinel_ids
    encode = restore = _state = _text = _piece = None

  with pytest.raises(TypeError, match="Other"):
    write_tokenizer(Other(), tmp_path, "bert", 10)


def test_no_tokenizer_files(tmp_path):
  put(tmp_path, config__json={"model_type": "bert"}, model__safetensors=b"")
  assert read_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
  ("config", "sentinels"),
  [
    ({"tokenizer_class": "T5Tokenizer"}, 100),
    ({"tokenizer_class": "T5TokenizerFast", "extra_ids": 7}, 7),
    ({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}, 0),
    ({"tokenizer_class": "T5Tokenizer", "additional_special_tokens": [f"<extra_id_{n}>" for n in range(9)]}, 9),
    (
      {
        "tokenizer_class": "T5Tokenizer",
        "added_tokens_decoder": {
          "0": {"content": "<pad>", "special": True},
          **{str(600 + n): {"content": f"<extra_id_{4 - n}>", "special": True} for n in range(5)},
        },
      },
      5,
    ),
    ({}, 100),
  ],
)
def test_sentinels_of_t5(config, sentinels, tmp_path):
  model = trained(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=True, model_type="bpe")
  put(tmp_path, spiece__model=model, tokenizer_config__json=config, config__json={"model_type": "t5"})
  tokenizer = read_tokenizer(tmp_path)
  assert tokenizer.sentinel_ids.tolist() == list(range(599 + sentinels, 599, -1))
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.bos_id) == (0, 1, 2, -1)
  assert tokenizer.model == model


def test_tokens_added_to_a_sentencepiece_model(tmp_path):
  """They become pieces of it; ids that no token has become control pieces."""
  model = trained(model_type="bpe", hard_vocab_limit=True, bos_id=1, eos_id=2, unk_id=0, pad_id=-1)
  added = {"600": {"content": "<pad>", "special": True}, "602": {"content": "<|im_start|>", "special": True}}
  added["603"] = {"content": "<tool>", "special": False}
  config = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added}
  put(tmp_path, tokenizer__model=model, tokenizer_config__json=config)
  tokenizer = read_tokenizer(tmp_path)
  assert (tokenizer.vocab_size, tokenizer.pad_id) == (604, 600)
  assert [tokenizer.token(id) for id in (600, 602, 603)] == ["<pad>", "<|im_start|>", "<tool>"]
  assert set(tokenizer.special_ids.tolist()) == {0, 1, 2, 600, 601, 602}
  assert tokenizer.encode("the <tool>").tolist()[-1] == 603
  plain = SentencePieceTokenizer(model)
  assert our_ids(tokenizer, ODD) == our_ids(plain, ODD)


def renumbered(model: bytes) -> dict:
  content = json.loads(converted(SentencePieceTokenizer(model)).to_str())
  content["model"]["vocab"] = {token: id + 1 for token, id in content["model"]["vocab"].items()} | {"<zero>": 0}
  for token in content["added_tokens"]:
    token["id"] += 1
  return content


def test_a_tokenizer_json_wins_over_the_sentencepiece_model_beside_it(tmp_path):
  """As in transformers: here it numbers the pieces in another way. One of ours is known again as what it was."""
  model = trained(model_type="bpe", hard_vocab_limit=True)
  put(tmp_path, tokenizer__model=model, tokenizer__json=renumbered(model))
  tokenizer = read_tokenizer(tmp_path)
  assert tokenizer.kind == "huggingface"
  assert our_ids(tokenizer, ODD) == [[id + 1 for id in ids] for ids in our_ids(SentencePieceTokenizer(model), ODD)]
  put(tmp_path, tokenizer__json=converted(SentencePieceTokenizer(model)).to_str())
  again = read_tokenizer(tmp_path)
  assert (again.kind, again.model) == ("sentencepiece", model)


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (lambda m: {"sentencepiece__bpe__model": m}, "shifted by fairseq"),
    (lambda m: {"tokenizer__model": m, "tokenizer_config__json": {"tokenizer_class": "XLMRobertaTokenizer"}}, "XLMRob"),
    (lambda m: {"tokenizer__model": m[:-5]}, "tokenizer.model is damaged, or not a sentencepiece model"),
    (lambda m: {"tokenizer__model": b"IQ== 0\nIg== 1\n"}, "not a sentencepiece model"),
    (lambda m: {"tokenizer__model": m, "tokenizer__json": b"{"}, "tokenizer.json is damaged"),
    (lambda m: {"tokenizer__model": m, "tokenizer__json": [1]}, "holds no JSON object"),
    (lambda m: {"tokenizer__model": m, "tokenizer__json": {"model": 1}}, "tokenizer.json is damaged"),
    (lambda m: {"tokenizer__model": m, "added_tokens__json": {"x": 2**40}}, "an id is 1099511627776"),
    (lambda m: {"tokenizer__model": m, "added_tokens__json": {"<s>": 600}}, "do not go with it"),
    (lambda m: {"tokenizer__model": m, "tokenizer_config__json": {"added_tokens_decoder": {"x": {}}}}, "are damaged"),
    (lambda m: {"tokenizer_config__json": {"tokenizer_class": "ByT5Tokenizer", "extra_ids": -1}}, "extra_ids is -1"),
    (
      lambda m: {"spiece__model": m, "tokenizer_config__json": {"tokenizer_class": "T5Tokenizer", "extra_ids": "x"}},
      "extra_ids is 'x'",
    ),
    (lambda m: {"tokenizer__json": b"\xff"}, "tokenizer.json is"),
    (lambda m: {"vocab__json": {"a": 0}, "source__spm": m}, "merges.txt: no such file"),
  ],
)
def test_files_that_cannot_be_read(files, message, tmp_path):
  model = trained(model_type="bpe", hard_vocab_limit=True)
  put(tmp_path, **files(model))
  with pytest.raises(UserError, match=message) as error:
    read_tokenizer(tmp_path)
  assert "\n" not in str(error.value)
  if "extra_ids" not in message:
    assert "remove the tokenizer files to import the weights alone" in str(error.value)


def test_a_tiktoken_model_beside_a_tokenizer_json(tmp_path):
  write_tokenizer(TOKENIZERS["gpt2"], tmp_path, "llama", 10)
  put(tmp_path, tokenizer__model=b"IQ== 0\nIg== 1\n")
  same(TOKENIZERS["gpt2"], read_tokenizer(tmp_path))


def test_code_of_others_is_never_run(tmp_path):
  write_tokenizer(TOKENIZERS["gpt2"], tmp_path, "gpt2", 10)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  config |= {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "EvilTokenizer"}
  put(tmp_path, tokenizer_config__json=config, evil__py=b"raise SystemExit('it was run')")
  same(TOKENIZERS["gpt2"], read_tokenizer(tmp_path))


def test_names_of_special_tokens_are_read_in_what_is_imported(tmp_path):
  """In trained ones they are text; once they come from Hugging Face's files, they are read as transformers does."""
  for name, text in [
    ("unigram", "a <extra_id_0> b</s>"),
    ("char", "a<mask>b</s>"),
    ("byte", "<s>a"),
    ("byt5", "a</s>"),
  ]:
    write_tokenizer(TOKENIZERS[name], tmp_path / name, "t5", 10)
    tokenizer = read_tokenizer(tmp_path / name)
    tokenizer.save(tmp_path / name / "saved")
    for other in (tokenizer, load_tokenizer(tmp_path / name / "saved"), pickle.loads(pickle.dumps(tokenizer))):
      ids = other.encode(text)
      assert [other.token(id) for id in ids if id in other.special_ids] == re.findall("<[^>]+>", text)
      assert other.decode(ids) == re.sub("<[^>]+>", "", text)
      assert [a.tolist() for a in other.encode_batch(["", text])] == [[], ids.tolist()]
    assert TOKENIZERS[name].decode(TOKENIZERS[name].encode(text)) == text or name == "char"


def test_damaged_files_end_in_one_line(tmp_path):
  """Random damage: a tokenizer or a user's error, never anything else."""
  rng = random.Random(0)
  for name in ("unigram", "gpt2", "wordpiece", "char"):
    write_tokenizer(TOKENIZERS[name], tmp_path / name, "bert", 10)
    files = {path: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}
    for _ in range(40):
      path = rng.choice(list(files))
      data = bytearray(files[path])
      for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
      path.write_bytes(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]))
      try:
        tokenizer = read_tokenizer(tmp_path / name)
        assert tokenizer.decode(tokenizer.encode("the fox")) is not None
      except UserError as error:
        assert "\n" not in str(error)
      path.write_bytes(files[path])
