"""A tokenizer.json of any kind: training and imports read it as the `tokenizers` library does, and keep it."""

import json
import pickle
from pathlib import Path

import pytest
import tokenizers as library
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support.hf_tokenizer_cases import LICENSE, ODD, OTHERS, TOKENIZERS, TRAINING, library_ids, our_ids, trained
from tests.support.launching import quick_fit, tiny, write_experiment
from tests.support.plain_tokenizers import put
from tfm_jax.errors import UserError
from tfm_jax.hf.exporting import export_checkpoint
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.hf.tokenizer import read_tokenizer, write_tokenizer
from tfm_jax.text.tokenizers.sentencepiece_json import converted
from tfm_jax.text.tokenizers.subwords import SentencePieceTokenizer
from tfm_jax.text.tokenizers.table import TokenizerConfig, from_path, load_tokenizer, train_tokenizer
from tfm_jax.training.load import load_run

Parts = tuple[library.Tokenizer, trainers.Trainer]


def t5() -> Parts:
  """As in google-t5/t5-small."""
  built = library.Tokenizer(models.Unigram())
  built.normalizer = normalizers.NFKC()
  built.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
  built.decoder = decoders.Metaspace()
  special = ["<pad>", "</s>", "<unk>"]
  return built, trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False)


def llama2() -> Parts:
  """As in meta-llama/Llama-2-7b-hf: byte fallback, no pre-tokenizer."""
  built = library.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
  built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
  steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  built.decoder = decoders.Sequence(steps)
  special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
  return built, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False, max_token_length=8)


def words() -> Parts:
  built = library.Tokenizer(models.WordLevel(unk_token="[UNK]"))
  built.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.StripAccents()])
  built.pre_tokenizer = pre_tokenizers.Whitespace()
  special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
  return built, trainers.WordLevelTrainer(vocab_size=400, special_tokens=special, show_progress=False)


def pieces() -> Parts:
  """WordPiece with another pre-tokenizer than BERT's."""
  built = library.Tokenizer(models.WordPiece(unk_token="<unk>"))
  built.normalizer, built.pre_tokenizer = normalizers.NFKD(), pre_tokenizers.WhitespaceSplit()
  built.decoder = decoders.WordPiece()
  return built, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["<unk>", "<pad>"], show_progress=False)


def ends() -> Parts:
  """BPE as in CLIP, with a mark after each word."""
  built = library.Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
  built.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
  built.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d|[^\s\d]+"), "removed", invert=True)
  built.decoder = decoders.BPEDecoder()
  special = ["<|startoftext|>", "<|endoftext|>"]
  trainer = trainers.BpeTrainer(
    vocab_size=500, special_tokens=special, end_of_word_suffix="</w>", show_progress=False, limit_alphabet=80
  )
  return built, trainer


def byte_level() -> Parts:
  built = library.Tokenizer(models.BPE())
  built.normalizer, built.pre_tokenizer = normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=True)
  built.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  special = ["<|endoftext|>"]
  trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
  return built, trainer


def finish(name: str, parts: Parts) -> library.Tokenizer:
  built, trainer = parts
  built.train_from_iterator(TRAINING, trainer)
  if name == "t5":
    built.add_special_tokens([f"<extra_id_{n}>" for n in range(9, -1, -1)])
  if name == "llama2":
    content = json.loads(built.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # names of bytes are text
    built = library.Tokenizer.from_str(json.dumps(content))
  built.add_tokens([AddedToken("<tool>", lstrip=True, normalized=False)])
  first = min(built.get_added_tokens_decoder())
  token = built.id_to_token(first)
  built.post_processor = processors.TemplateProcessing(f"{token} $A", special_tokens=[(token, first)])
  built.enable_truncation(5)
  if name == "words":
    built.enable_padding(length=7, pad_token="[PAD]", pad_id=1)
  return built


MAKERS = {"t5": t5, "llama2": llama2, "words": words, "pieces": pieces, "ends": ends, "byte level": byte_level}
MADE = {name: finish(name, maker()) for name, maker in MAKERS.items()}
KINDS = dict.fromkeys(MADE, "huggingface") | {"pieces": "wordpiece", "byte level": "gpt2"}
# The content of tokenizer_config.json, and the pad, unk, bos, eos and mask that follow from it.
END = {"__type": "AddedToken", "content": "</s>"}
SAID = {
  "t5": ({"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}, ("<pad>", "<unk>", None, "</s>", None)),
  "llama2": (
    {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}},
    (None, "<unk>", "<s>", "</s>", None),
  ),
  "words": ({"cls_token": "[CLS]", "sep_token": "[SEP]"}, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", None)),
  "pieces": ({}, ("<pad>", "<unk>", None, None, None)),
  "ends": ({"bos_token": "<|startoftext|>"}, (None, "<|endoftext|>", "<|startoftext|>", "<|endoftext|>", None)),
  "byte level": ({}, (None, None, "<|endoftext|>", "<|endoftext|>", None)),
}
EVERY = pytest.mark.parametrize("name", MADE)
TEXTS = [*ODD, *LICENSE.split("\n\n"), "</s> a <tool> b<extra_id_3><|endoftext|>[SEP]<unk>", " a", "▁ x <0x41>"]


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
  path = tmp_path / "source"
  path.mkdir()
  put(path, tokenizer__json=MADE[name].to_str(pretty=True), tokenizer_config__json=SAID[name][0])
  return path


@EVERY
def test_ids_are_those_of_the_library_by_both_doors(name, folder):
  expected = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
  expected.no_truncation()
  expected.no_padding()
  tokenizer = read_tokenizer(folder)
  assert tokenizer.kind == KINDS[name]
  assert our_ids(tokenizer, TEXTS) == library_ids(expected, TEXTS)
  assert tokenizer.vocab_size == expected.get_vocab_size()
  for kind in ("", KINDS[name]):
    for path in (folder, folder / "tokenizer.json"):
      assert from_path(TokenizerConfig(kind=kind, path=str(path))).fingerprint == tokenizer.fingerprint
  with pytest.raises(UserError, match=f"holds a {KINDS[name]} tokenizer: set tokenizer.kind={KINDS[name]}, or leave"):
    from_path(TokenizerConfig(kind="char", path=str(folder)))


@EVERY
def test_special_ids_come_from_the_files(name, folder):
  tokenizer = read_tokenizer(folder)
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id)
  assert tuple(None if id < 0 else tokenizer.token(id) for id in ids) == SAID[name][1]
  assert {id for id in ids if id >= 0} <= set(tokenizer.special_ids.tolist())
  assert MADE[name].token_to_id("<tool>") not in tokenizer.special_ids
  sentinels = [f"<extra_id_{n}>" for n in range(10)] if name == "t5" else []
  assert [tokenizer.token(int(id)) for id in tokenizer.sentinel_ids] == sentinels
  text = "The license is free"
  if name in ("llama2", "t5", "byte level"):
    assert tokenizer.decode(tokenizer.encode(text)).strip() == text


@EVERY
def test_saved_loaded_and_exported_it_is_the_same(name, folder, tmp_path):
  tokenizer, source = read_tokenizer(folder), (folder / "tokenizer.json").read_bytes()
  tokenizer.save(tmp_path / "saved")
  loaded = load_tokenizer(tmp_path / "saved")
  for other in (loaded, from_path(TokenizerConfig(path=str(tmp_path / "saved"))), pickle.loads(pickle.dumps(loaded))):
    assert (other.kind, other.fingerprint, other.source) == (tokenizer.kind, tokenizer.fingerprint, source)
    assert our_ids(other, TEXTS) == our_ids(tokenizer, TEXTS)
    assert other.special_ids.tolist() == tokenizer.special_ids.tolist()
  for model_type in ("bert", "llama", "t5"):
    write_tokenizer(loaded, tmp_path / model_type, model_type, 100)
    assert (tmp_path / model_type / "tokenizer.json").read_bytes() == source
    assert read_tokenizer(tmp_path / model_type).fingerprint == tokenizer.fingerprint
  (tmp_path / "saved" / "source.json").write_bytes(source.replace(b"Whitespace", b"Punctuation") + b" ")
  with pytest.raises(UserError, match=r"source\.json is not what was saved"):
    load_tokenizer(tmp_path / "saved")


@EVERY
def test_sentinels_go_on_top_and_into_the_export(name, folder, tmp_path):
  tokenizer = from_path(TokenizerConfig(path=str(folder), sentinels=10))
  size = MADE[name].get_vocab_size()
  if name != "t5":  # which has sentinels
    assert tokenizer.sentinel_ids.tolist() == list(range(size + 9, size - 1, -1)) and not tokenizer.source
  write_tokenizer(tokenizer, tmp_path / "out", "t5", 100)
  again = read_tokenizer(tmp_path / "out")
  assert again.sentinel_ids.tolist() == tokenizer.sentinel_ids.tolist()
  texts = [text for text in TEXTS if "extra" not in text]
  assert our_ids(again, texts) == our_ids(tokenizer, texts)


def test_special_tokens_that_only_the_other_files_have_are_added(tmp_path):
  """In the order of transformers: tokens with ids, then named tokens, then additional ones."""
  content, size = json.loads(MADE["llama2"].to_str()), MADE["llama2"].get_vocab_size()
  rows = {str(size): {"content": "<a>", "special": False}, str(size + 1): {"content": "<b>", "special": True}}
  mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True}
  named = {"pad_token": "[PAD]", "mask_token": mask, "bos_token": "<s>"}
  more = {"additional_special_tokens": ["<extra_id_0>", "<b>"]}
  put(tmp_path, tokenizer__json=content, tokenizer_config__json={"added_tokens_decoder": rows, **named, **more})
  tokenizer = read_tokenizer(tmp_path)
  added = [tokenizer.token(id) for id in range(size, tokenizer.vocab_size)]
  assert added == ["<a>", "<b>", "[PAD]", "<mask>", "<extra_id_0>"]
  assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.sentinel_ids.tolist()) == (size + 2, size + 3, [size + 4])
  assert tokenizer.special_ids.tolist() == [0, 1, 2, *range(size + 1, size + 5)]
  assert tokenizer.encode("x <mask>").tolist() == [*tokenizer.encode("x").tolist(), size + 3]
  assert not tokenizer.source
  old = {"<a>": size, "<b>": size + 1}
  put(tmp_path, tokenizer_config__json=named | more, added_tokens__json=old)
  assert read_tokenizer(tmp_path).vocab_size == tokenizer.vocab_size
  put(tmp_path, added_tokens__json={"<z>": size + 7})
  with pytest.raises(UserError, match="another id than the files beside it say"):
    read_tokenizer(tmp_path)


def test_padding_says_which_token_it_is(tmp_path):
  """As in transformers, if no other file names the padding token."""
  content = json.loads(MADE["llama2"].to_str())
  padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2}
  content["padding"] = padding | {"pad_type_id": 0, "pad_token": "</s>"}
  put(tmp_path, tokenizer__json=content)
  assert read_tokenizer(tmp_path).pad_id == 2
  put(tmp_path, tokenizer_config__json={"pad_token": "<s>"})
  assert read_tokenizer(tmp_path).pad_id == 1


def test_what_a_model_has_no_ids_for_is_said_in_one_line(tmp_path):
  content = json.loads(MADE["t5"].to_str())
  content["model"]["unk_id"] = None
  put(tmp_path, tokenizer__json=content)
  with pytest.raises(UserError, match="the tokenizer cannot encode this text") as error:
    read_tokenizer(tmp_path).encode("☃")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("style", ["t5 style", "llama style"])
def test_a_folder_with_both_files(style, tmp_path):
  """Training and imports read the tokenizer.json, except if we exported it: then the sentencepiece model beside it."""
  tokenizer = SentencePieceTokenizer(trained(**OTHERS[style]))
  content = json.loads(converted(tokenizer).to_str())
  config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}
  put(tmp_path, tokenizer__model=tokenizer.model, tokenizer__json=content, tokenizer_config__json=config)
  for read in (read_tokenizer(tmp_path), from_path(TokenizerConfig(path=str(tmp_path)))):
    assert (read.kind, read.model) == ("sentencepiece", tokenizer.model)
  content["normalizer"] = {"type": "Lowercase"}
  put(tmp_path, tokenizer__json=content)
  for read in (read_tokenizer(tmp_path), from_path(TokenizerConfig(path=str(tmp_path)))):
    assert read.kind == "huggingface" and read.bos_id == tokenizer.bos_id
    assert read.encode("THE").tolist() == read.encode("the").tolist()
  assert from_path(TokenizerConfig(path=str(tmp_path / "tokenizer.model"))).kind == "sentencepiece"


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "gpt2", "char", "byte", "byt5"])
def test_both_doors_read_what_was_exported(kind, tmp_path):
  tokenizer = TOKENIZERS[kind]
  write_tokenizer(tokenizer, tmp_path, "t5", 100)
  by_path = from_path(TokenizerConfig(path=str(tmp_path)))
  assert by_path.kind == tokenizer.kind
  assert by_path.fingerprint == read_tokenizer(tmp_path).fingerprint
  if not len(tokenizer.sentinel_ids):
    more = from_path(TokenizerConfig(path=str(tmp_path), sentinels=4))
    assert more.sentinel_ids.tolist() == [tokenizer.vocab_size + n for n in (3, 2, 1, 0)]


def test_both_doors_read_a_saved_one(tmp_path):
  TOKENIZERS["bpe"].save(tmp_path)
  for path in (tmp_path, tmp_path / "tokenizer.json"):
    by_path = from_path(TokenizerConfig(path=str(path)))
    assert read_tokenizer(tmp_path).fingerprint == by_path.fingerprint == TOKENIZERS["bpe"].fingerprint


def test_it_cannot_be_trained():
  with pytest.raises(UserError, match=r"tokenizer\.kind=huggingface is read from files: name them in tokenizer\.path"):
    train_tokenizer(TokenizerConfig(kind="huggingface"), TRAINING)


@pytest.mark.slow
def test_a_run_keeps_it_from_training_to_the_export_and_back(tmp_path):
  """The run also resumes, whether or not tokenizer.kind is set."""
  experiment, source = write_experiment(tmp_path / "experiment"), tmp_path / "source"
  source.mkdir()
  put(source, tokenizer__json=MADE["llama2"].to_str(), tokenizer_config__json=SAID["llama2"][0])
  settings = {"tokenizer__path": str(source), "train__steps": 1, "eval__every": 0, "model__dropout": 0.0}
  quick_fit(tiny(experiment, **settings, tokenizer__kind=""), tmp_path / "run")
  more = settings | {"train__steps": 2}
  quick_fit(tiny(experiment, **more, tokenizer__kind="huggingface"), tmp_path / "run")
  run = load_run(tmp_path / "run")
  assert run.step == 2 and run.model.vocab_size == MADE["llama2"].get_vocab_size()
  export_checkpoint(tmp_path / "run", tmp_path / "out")
  assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
  import_checkpoint(tmp_path / "out", tmp_path / "imported")
  again = load_run(tmp_path / "imported")
  assert (again.tokenizer.fingerprint, again.config.tokenizer.kind) == (run.tokenizer.fingerprint, "huggingface")
