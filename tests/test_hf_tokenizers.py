"""Tokenizers to and from Hugging Face: equal ids in the files we write and in those we read."""

import gzip
import io
import json
import os
import pickle
import random
import re
import subprocess
from pathlib import Path

import pytest
import sentencepiece
import tokenizers as library
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peers import peer_python

from tfm_jax.errors import UserError
from tfm_jax.hf import sentencepiece_json
from tfm_jax.hf.sentencepiece_json import CONTROL, NORMAL, USER_DEFINED, converted, parse
from tfm_jax.hf.tokenizer import read_tokenizer, write_tokenizer
from tfm_jax.text.characters import ByteTokenizer
from tfm_jax.text.pretrained import from_files
from tfm_jax.text.subwords import SentencePieceTokenizer
from tfm_jax.text.tokenizers import TokenizerConfig, load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[1]
LICENSE = (ROOT / "LICENSE").read_text()
ODD = [
  "  two  spaces   three      six \t tab\t\ttabs\n\n\n   indented\r\n",
  "😀👨\u200d👩\u200d👧 北京大学 ナイーブ Träume naïve e\u0301",
  "a <0x41> b <0x0a> <0xZZ> <0x",
  "",
  " ",
  "\n",
  "1234567 + 3.14 = ½ ² ﬁ ａｂｃ",
]
TRAINING = [LICENSE, *ODD] * 2
CONFIGS = {
  "unigram": TokenizerConfig(vocab_size=900, sentinels=6),
  "bpe": TokenizerConfig(algorithm="bpe", vocab_size=900),
  "wordpiece": TokenizerConfig(kind="wordpiece", vocab_size=900, sentinels=2),
  "cased": TokenizerConfig(kind="wordpiece", vocab_size=900, lowercase=False),
  "gpt2": TokenizerConfig(kind="gpt2", vocab_size=900, sentinels=2),
  "char": TokenizerConfig(kind="char", sentinels=3),
  "byte": TokenizerConfig(kind="byte"),
}
TOKENIZERS = {name: train_tokenizer(config, TRAINING) for name, config in CONFIGS.items()}
TOKENIZERS["byt5"] = ByteTokenizer(125, byt5=True)
EVERY = pytest.mark.parametrize("name", TOKENIZERS)
MODEL_TYPES = ["bert", "roberta", "distilbert", "electra", "gpt2", "t5", "modernbert", "llama", "mistral", "qwen2"]
CORPORA = ["wikitext2/valid.raw.txt.gz", "novels/valid.txt.gz", "tinyshakespeare/input.txt.gz"]
CORPORA += ["tatoeba_en_zh/train.tsv.gz", "multi30k/val.de.gz", "multi30k/val.fr.gz"]


def data_folder() -> Path:
  folder = os.environ.get("TFM_DATA_DIR")
  if not folder or not (Path(folder) / "vocab").exists():
    pytest.skip("TFM_DATA_DIR names no folder with vocab/")
  return Path(folder)


def real_lines(name: str) -> list[str]:
  with gzip.open(data_folder() / name, "rt", encoding="utf-8", newline="") as file:
    return file.read().split("\n")


NAMES = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK)\]|</?(s|pad|unk|mask|extra_id_\d+)>")


def plain(texts: list[str]) -> list[str]:
  """Those without names of special tokens: what is trained here takes them as text, transformers reads them."""
  return [text for text in texts if not NAMES.search(text)]


def same(ours, theirs) -> None:
  """But for names of special tokens, which are read in what comes from Hugging Face."""
  assert theirs.reads_names and not ours.reads_names
  theirs.reads_names = False
  assert theirs.fingerprint == ours.fingerprint
  theirs.reads_names = True


def library_ids(made: library.Tokenizer, texts: list[str]) -> list[list[int]]:
  return [encoding.ids for encoding in made.encode_batch(texts, add_special_tokens=False)]


def our_ids(tokenizer, texts: list[str]) -> list[list[int]]:
  return [ids.tolist() for ids in tokenizer.encode_batch(texts)]


def t5_model(pieces: int = 32_000) -> bytes:
  """T5's spiece.model as Hugging Face has it: without the sentinels that the published one ends with."""
  proto = parse((data_folder() / "vocab" / "t5" / "cc_all.32000.100extra.model").read_bytes())
  del proto.pieces[pieces:]
  return proto.SerializeToString()


def trained(texts=TRAINING, **options) -> bytes:
  """A sentencepiece model with settings of others."""
  model = io.BytesIO()
  lines = (line for text in texts for line in text.split("\n") if line.strip())
  options = {"vocab_size": 600, "hard_vocab_limit": False, "character_coverage": 1.0, "minloglevel": 2} | options
  sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **options)
  return model.getvalue()


# Writing.


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


@pytest.mark.parametrize("name", ["unigram", "bpe"])
@pytest.mark.parametrize("file", CORPORA)
def test_sentencepiece_as_json_on_real_text(name, file):
  lines = real_lines(file)
  config = TokenizerConfig(algorithm=name, vocab_size=3000, sentinels=5)
  wikitext, chinese = real_lines(CORPORA[0])[:1500], real_lines(CORPORA[3])[-500:]
  if config not in MADE:
    MADE[config] = train_tokenizer(config, ["\n".join(wikitext), "\n".join(chinese)])
  assert library_ids(converted(MADE[config]), lines) == our_ids(MADE[config], lines)


MADE: dict[TokenizerConfig, SentencePieceTokenizer] = {}


@pytest.mark.parametrize("file", CORPORA)
def test_t5_as_json_on_real_text(file):
  lines = real_lines(file)
  tokenizer = SentencePieceTokenizer(t5_model(), 100)
  assert library_ids(converted(tokenizer), lines) == our_ids(tokenizer, lines)


@pytest.mark.parametrize("name", ["unigram", "bpe"])
@settings(max_examples=300, deadline=None)
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


OTHERS = {
  "t5 style": {"model_type": "unigram"},
  "albert style": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf", "byte_fallback": True},
  "llama style": {
    "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False, "split_digits": True, "allow_whitespace_only_pieces": True,
  },
  "gemma style": {
    "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False, "add_dummy_prefix": False, "user_defined_symbols": ["▁▁", "▁▁▁", "<sep>", "\n"],
  },
  "user-defined": {"model_type": "unigram", "byte_fallback": True, "user_defined_symbols": ["<sep>", "the", "▁of"]},
}  # fmt: skip


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
  assert our_ids(from_files(_path(tmp_path)), ODD) == our_ids(TOKENIZERS["cased"], ODD)


def test_configuration_of_a_gpt2(tmp_path):
  write_tokenizer(TOKENIZERS["gpt2"], tmp_path, "gpt2", 1024)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert config["model_input_names"] == ["input_ids", "attention_mask"]  # GPT-2 would embed token types
  assert config["additional_special_tokens"] == ["<extra_id_0>", "<extra_id_1>"]
  (tmp_path / "tokenizer.json").unlink()
  assert our_ids(from_files(_path(tmp_path)), ODD) == our_ids(TOKENIZERS["gpt2"], ODD)


def _path(path: Path):
  from etils import epath

  return epath.Path(path)


def test_another_kind_is_an_error_of_ours(tmp_path):
  class Other(ByteTokenizer.__bases__[0]):  # the abstract class itself
    kind = "other"
    vocab_size = 1
    pad_id = unk_id = bos_id = eos_id = mask_id = -1
    sentinel_ids = TOKENIZERS["byte"].sentinel_ids
    encode = restore = _state = _text = _piece = None

  with pytest.raises(TypeError, match="Other"):
    write_tokenizer(Other(), tmp_path, "bert", 10)


# Reading.


def put(folder: Path, **files) -> Path:
  for name, content in files.items():
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name.replace("__", ".")).write_bytes(data)
  return folder


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
  content["model"]["vocab"] = {token: id + 1 for token, id in content["model"]["vocab"].items()}
  return content


def unigram_json() -> dict:
  return json.loads(converted(TOKENIZERS["unigram"]).to_str())


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (lambda m: {"sentencepiece__bpe__model": m}, "shifted by fairseq"),
    (lambda m: {"tokenizer__model": m, "tokenizer_config__json": {"tokenizer_class": "XLMRobertaTokenizer"}}, "XLMRob"),
    (lambda m: {"tokenizer__model": m, "tokenizer__json": renumbered(m)}, "numbers its pieces in another way"),
    (lambda m: {"tokenizer__model": m[:-5]}, "tokenizer.model is damaged, or not a sentencepiece model"),
    (lambda m: {"tokenizer__model": b"IQ== 0\nIg== 1\n"}, "not a sentencepiece model"),
    (lambda m: {"tokenizer__model": m, "tokenizer__json": b"{"}, "tokenizer.json is damaged"),
    (lambda m: {"tokenizer__model": m, "tokenizer__json": [1]}, "holds no JSON object"),
    (lambda m: {"tokenizer__model": m, "tokenizer__json": {"model": 1}}, "files beside .* are damaged"),
    (lambda m: {"tokenizer__model": m, "added_tokens__json": {"x": 2**40}}, "an id is 1099511627776"),
    (lambda m: {"tokenizer__model": m, "added_tokens__json": {"<s>": 600}}, "do not go with it"),
    (lambda m: {"tokenizer__model": m, "tokenizer_config__json": {"added_tokens_decoder": {"x": {}}}}, "are damaged"),
    (lambda m: {"tokenizer_config__json": {"tokenizer_class": "ByT5Tokenizer", "extra_ids": -1}}, "extra_ids is -1"),
    (
      lambda m: {"spiece__model": m, "tokenizer_config__json": {"tokenizer_class": "T5Tokenizer", "extra_ids": "x"}},
      "extra_ids is 'x'",
    ),
    (lambda m: {"tokenizer__json": unigram_json()}, "a Unigram tokenizer without byte level.*bring the sentencepiece"),
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


def test_types_of_pieces_are_those_of_the_format():
  kinds = sentencepiece_json.sentencepiece_model_pb2.ModelProto.SentencePiece.Type
  assert (kinds.Value("NORMAL"), kinds.Value("CONTROL"), kinds.Value("USER_DEFINED")) == (NORMAL, CONTROL, USER_DEFINED)
  assert kinds.Value("BYTE") == sentencepiece_json.BYTE and kinds.Value("UNKNOWN") == sentencepiece_json.UNKNOWN


# Against transformers itself.

ASK = """
import json, sys, warnings
warnings.simplefilter("error")
import transformers
with open(sys.argv[1]) as file:
  question = json.load(file)
answers = {}
for name, (folder, kind) in question["folders"].items():
  t = getattr(transformers, kind).from_pretrained(folder)
  ids = [t(text, add_special_tokens=False)["input_ids"] for text in question["texts"]]
  answers[name] = {"ids": ids, "one": t("a")["input_ids"], "two": t("a", "b")["input_ids"], "size": len(t)}
  answers[name] |= {"keys": sorted(t("a")), "most": t.model_max_length, "special": t.special_tokens_map}
  answers[name] |= {"decoded": [t.decode(row) for row in ids[:20]], "sentinels": t.convert_tokens_to_ids(SENTINELS)}
  if question["save"]:
    t.save_pretrained(question["save"] + "/" + name)
with open(sys.argv[2], "w") as file:
  json.dump(answers, file)
""".replace("SENTINELS", repr([f"<extra_id_{n}>" for n in range(3)]))


def ask(folders: dict[str, tuple[Path, str]], texts: list[str], tmp_path: Path, save: Path | None = None) -> dict:
  """What transformers makes of the folders; a warning is an error."""
  python = peer_python()
  if python is None:
    pytest.skip("no transformers: TFM_PEERS_PYTHON names no interpreter that has it")
  named = {name: (str(folder), kind) for name, (folder, kind) in folders.items()}
  question, answer = tmp_path / "question.json", tmp_path / "answer.json"
  question.write_text(json.dumps({"folders": named, "texts": texts, "save": str(save or "")}))
  (tmp_path / "ask.py").write_text(ASK)
  environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
  result = subprocess.run(
    [python, tmp_path / "ask.py", question, answer], capture_output=True, text=True, env=environment
  )
  assert (result.returncode, result.stderr) == (0, "")
  return json.loads(answer.read_text())


@pytest.mark.peers
def test_published_vocabularies_as_in_transformers(tmp_path):
  vocab = data_folder() / "vocab"
  folders: dict[str, tuple[Path, str]] = {}

  def folder(name: str, kind: str, config: dict, files: dict[str, bytes]) -> None:
    (tmp_path / name).mkdir()
    put(tmp_path / name, tokenizer_config__json={"model_max_length": 10**9, **config})
    for file, data in files.items():
      (tmp_path / name / file).write_bytes(data)
    folders[name] = tmp_path / name, kind

  uncased, chinese = ((vocab / f"bert-base-{name}" / "vocab.txt").read_bytes() for name in ("uncased", "chinese"))
  gpt2 = {"vocab.json": (vocab / "gpt2" / "encoder.json").read_bytes()}
  gpt2["merges.txt"] = (vocab / "gpt2" / "vocab.bpe").read_bytes()
  folder("uncased", "BertTokenizer", {}, {"vocab.txt": uncased})
  folder("chinese", "BertTokenizer", {"do_lower_case": False}, {"vocab.txt": chinese})
  folder("chinese lower", "BertTokenizer", {"tokenize_chinese_chars": False}, {"vocab.txt": chinese})
  folder("gpt2", "GPT2Tokenizer", {}, gpt2)
  folder("gpt2 prefix", "GPT2Tokenizer", {"add_prefix_space": True}, gpt2)
  folder("t5", "T5Tokenizer", {"tokenizer_class": "T5Tokenizer"}, {"spiece.model": t5_model()})
  lines = [line for file in CORPORA for line in real_lines(file)]
  answers = ask(folders, lines, tmp_path, save=tmp_path / "saved")
  for name, (path, _) in folders.items():
    # Bare files, and those that transformers writes; it writes no sentencepiece model.
    for source in (path, tmp_path / "saved" / name)[: 1 if name == "t5" else 2]:
      tokenizer = read_tokenizer(source)
      ids = our_ids(tokenizer, lines)
      wrong = sum(ours != theirs for ours, theirs in zip(ids, answers[name]["ids"], strict=True))
      print(f"{name} from {source.parent.name}: {len(ids)} lines, {sum(map(len, ids))} tokens, {wrong} lines differ")
      assert wrong == 0
      assert tokenizer.vocab_size == answers[name]["size"]
      if name == "t5":
        assert answers[name]["sentinels"] == tokenizer.sentinel_ids[:3].tolist() == [32099, 32098, 32097]


@pytest.mark.peers
def test_byt5_as_in_transformers(tmp_path):
  write_tokenizer(TOKENIZERS["byt5"], tmp_path / "ours", "t5", 10**9)
  put(tmp_path / "ours", config__json={"model_type": "t5"})
  answer = ask({"byt5": (tmp_path / "ours", "AutoTokenizer")}, ODD, tmp_path, save=tmp_path / "saved")["byt5"]
  assert answer["ids"] == our_ids(TOKENIZERS["byt5"], ODD)
  assert (answer["one"], answer["size"], answer["sentinels"]) == ([100, 1], 384, [259, 260, 261])
  same(TOKENIZERS["byt5"], read_tokenizer(tmp_path / "saved" / "byt5"))


@pytest.mark.peers
def test_auto_tokenizer_on_what_we_write(tmp_path):
  made = dict(TOKENIZERS)
  texts = [*ODD, *LICENSE.split("\n\n"), "a ▁ b"]
  if os.environ.get("TFM_DATA_DIR"):
    vocab = data_folder() / "vocab"
    made["published bert"] = from_files(_path(vocab / "bert-base-uncased"))
    made["published gpt2"] = from_files(_path(vocab / "gpt2"))
    made["published t5"] = SentencePieceTokenizer(t5_model(), 100)
    texts += [line for file in CORPORA for line in real_lines(file)[:300]]
  texts = plain(texts)
  folders = {}
  for name, tokenizer in made.items():
    for model_type in MODEL_TYPES:
      folder = tmp_path / f"{name}-{model_type}"
      write_tokenizer(tokenizer, folder, model_type, 100_000)
      put(folder, config__json={"model_type": model_type})
      folders[folder.name] = folder, "AutoTokenizer"
  answers = ask(folders, texts, tmp_path)
  wanted = {name: our_ids(tokenizer, texts) for name, tokenizer in made.items()}
  for key, answer in answers.items():
    name, model_type = key.rsplit("-", 1)
    tokenizer = made[name]
    assert answer["ids"] == wanted[name], key
    assert (answer["size"], answer["most"]) == (tokenizer.vocab_size, 100_000)
    assert ("token_type_ids" in answer["keys"]) == (model_type in ("bert", "electra"))
    count = min(3, len(tokenizer.sentinel_ids))
    assert answer["sentinels"][:count] == tokenizer.sentinel_ids[:count].tolist()
    ids = [tokenizer.encode(text).tolist() for text in ("a", "b")]
    bos = [tokenizer.bos_id] * (tokenizer.bos_id >= 0)
    around = {"gpt2": ([], []), "qwen2": ([], []), "t5": ([], [tokenizer.eos_id])}
    around |= {"llama": (bos, []), "mistral": (bos, [])}
    before, behind = around.get(model_type, (bos, [tokenizer.eos_id]))
    assert answer["one"] == before + ids[0] + behind, key
    if "mask_token" in answer["special"]:
      assert answer["special"]["mask_token"] == tokenizer.token(tokenizer.mask_id)
  tokens = sum(len(ids) for answer in answers.values() for ids in answer["ids"])
  print(f"{len(answers)} exports, {len(texts)} texts each, {tokens} tokens, no difference")


@pytest.mark.peers
def test_tokenizers_of_others_as_in_transformers(tmp_path):
  """Byte-level files of RoBERTa, Llama 3, Qwen 2 and ModernBERT, and sentencepiece files of Llama 2, in small."""
  alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())

  def byte_level(pattern: str | None, special: list[str], **parts) -> dict:
    made = library.Tokenizer(library.models.BPE())
    level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [library.pre_tokenizers.Split(library.Regex(pattern), "isolated")] if pattern else []
    made.pre_tokenizer = library.pre_tokenizers.Sequence([*split, level])
    trainer = library.trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TRAINING, trainer)
    made.decoder = library.decoders.ByteLevel()
    made.add_special_tokens(special)
    return json.loads(made.to_str()) | parts

  qwen = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  )
  llama = qwen.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
  cases = {
    "llama": (
      byte_level(llama, ["<|begin_of_text|>", "<|end_of_text|>"]),
      {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    ),
    "qwen2": (
      byte_level(qwen, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer={"type": "NFC"}),
      {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "modernbert": (
      byte_level(None, ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], normalizer={"type": "NFC"}),
      {"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    ),
  }  # fmt: skip
  folders = {}
  for name, (content, config) in cases.items():
    (tmp_path / name).mkdir()
    put(tmp_path / name, tokenizer__json=content, tokenizer_config__json=config, config__json={"model_type": name})
    folders[name] = tmp_path / name, "AutoTokenizer"
  model = content["model"]
  (tmp_path / "roberta").mkdir()
  names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(model["vocab"], key=model["vocab"].__getitem__), "<mask>"]
  merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])]).encode()
  put(tmp_path / "roberta", vocab__json={token: id for id, token in enumerate(names)}, merges__txt=merges)
  put(tmp_path / "roberta", config__json={"model_type": "roberta"})
  folders["roberta"] = tmp_path / "roberta", "AutoTokenizer"
  (tmp_path / "llama2").mkdir()
  options = OTHERS["llama style"] | {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
  put(tmp_path / "llama2", tokenizer__model=trained(**options), config__json={"model_type": "llama"})
  put(tmp_path / "llama2", tokenizer_config__json={"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
  folders["llama2"] = tmp_path / "llama2", "AutoTokenizer"
  texts = [text for text in (*ODD, *LICENSE.split("\n")) if text and text == text.lstrip(" ")]
  answers = ask(folders, texts, tmp_path, save=tmp_path / "saved")
  again = {}
  for name, (folder, kind) in folders.items():
    for source in (folder, tmp_path / "saved" / name)[: 1 if name == "llama2" else 2]:  # as for T5
      tokenizer = read_tokenizer(source)
      assert our_ids(tokenizer, texts) == answers[name]["ids"], (name, source)
    model_type = "llama" if name == "llama2" else name
    write_tokenizer(tokenizer, tmp_path / f"{name} again", model_type, 100)
    put(tmp_path / f"{name} again", config__json={"model_type": model_type})
    again[name] = tmp_path / f"{name} again", kind
  for name, answer in ask(again, texts, tmp_path).items():
    assert answer["ids"] == answers[name]["ids"], name
    assert answer["one"] == answers[name]["one"] or name in ("llama", "modernbert"), name  # these said nothing
