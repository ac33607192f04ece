"""Tokenizer files of others: their settings are followed, and files that cannot be read are named."""

import json
import pickle

import pytest
import tokenizers as library
from etils import epath

from tests.support.plain_tokenizers import byte_letters, put
from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.pretrained import from_files
from tfm_jax.text.tokenizers.table import TokenizerConfig, from_path, load_tokenizer

VOCAB_TXT = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nThe\nfox\n##es\nna\n##ive\n\u2028\n"


def test_names_of_special_tokens_are_read_in_files_of_others(tmp_path):
  """As in transformers; also after saving and pickling."""
  tokenizer = from_files(put(tmp_path, vocab__txt=VOCAB_TXT))
  tokenizer.save(tmp_path / "saved")
  for other in (tokenizer, load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
    assert other.encode("the [MASK] fox[SEP]").tolist() == [5, 4, 7, 3]
    assert other.fingerprint == tokenizer.fingerprint


def test_vocab_txt(tmp_path):
  folder = put(tmp_path, vocab__txt=VOCAB_TXT)
  for path in (folder, folder / "vocab.txt"):
    tokenizer = from_files(path)
    assert tokenizer.encode("The foxes naïve").tolist() == [5, 7, 8, 9, 10]
  assert from_files(put(tmp_path, bert__vocab=VOCAB_TXT) / "bert.vocab").fingerprint == tokenizer.fingerprint
  cased = from_files(folder, lowercase=False)
  assert cased.encode("The the naïve").tolist() == [6, 5, 1]
  assert tokenizer.vocab_size == 12 and tokenizer.token(11) == "\u2028"
  put(tmp_path, vocab__txt=VOCAB_TXT.replace("\n", "\r\n"))
  assert from_files(folder).encode("The foxes").tolist() == [5, 7, 8]


def test_tokenizer_config_stands_above_the_key(tmp_path):
  settings = {"do_lower_case": False, "tokenize_chinese_chars": False, "tokenizer_class": "BertTokenizerFast"}
  folder = put(tmp_path, vocab__txt=VOCAB_TXT, tokenizer_config__json=settings)
  tokenizer = from_files(folder, lowercase=True)
  assert tokenizer.encode("The").tolist() == [6]
  assert json.loads(tokenizer.model)["normalizer"]["handle_chinese_chars"] is False
  put(tmp_path, tokenizer_config__json={"do_lower_case": False, "strip_accents": True})
  assert from_files(folder).encode("naïve The").tolist() == [9, 10, 6]


def test_tokenizer_config_stands_above_tokenizer_json_where_its_class_says_so(tmp_path):
  """As in transformers: a BertTokenizer sets the case; a class that belongs to no model uses the file unchanged."""
  lower = json.loads(from_files(put(tmp_path, vocab__txt=VOCAB_TXT)).model)
  for owner, ids in [("BertTokenizerFast", [6]), ("PreTrainedTokenizerFast", [5]), (None, [6])]:
    config = {"do_lower_case": False, "tokenizer_class": owner}
    folder = put(tmp_path, tokenizer__json=lower, tokenizer_config__json=config)
    assert from_files(folder).encode("The").tolist() == ids
    assert from_files(folder / "vocab.txt").encode("The").tolist() == [6]


def test_roles_are_read_where_the_files_say(tmp_path):
  vocab = {token: id for id, token in enumerate(["<a>", "<b>", "<c>", "[SEP]", "<pad>", *byte_letters()])}
  special_tokens = {"bos_token": "<a>", "eos_token": {"content": "<b>", "lstrip": False}}
  special_tokens |= {"pad_token": None, "mask_token": "<c>"}
  folder = put(tmp_path, vocab__json=vocab, merges__txt="#version: 0.2\n", special_tokens_map__json=special_tokens)
  tokenizer = from_files(folder)
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id)
  assert ids == (-1, -1, 0, 1, 2)
  put(tmp_path, tokenizer_config__json={"bos_token": "<c>"})  # has precedence over the map
  assert from_files(folder).bos_id == 2
  (tmp_path / "special_tokens_map.json").unlink()
  (tmp_path / "tokenizer_config.json").unlink()
  assert (from_files(folder).eos_id, from_files(folder).pad_id) == (3, 4)  # the usual names


def roberta_like(tmp_path) -> epath.Path:
  names = ["<s>", "<pad>", "</s>", "<unk>", *byte_letters(), "he", "Ġt", "Ġthe", "<mask>"]
  vocab = {token: id for id, token in enumerate(names)}
  return put(tmp_path, vocab__json=vocab, merges__txt="#version: 0.2\nh e\nĠ t\nĠt he\n")


def test_roberta_and_its_spaces(tmp_path):
  folder = roberta_like(tmp_path)
  tokenizer = from_files(folder)
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id)
  assert ids == (1, 3, 0, 2, 263)
  assert [tokenizer.token(id) for id in tokenizer.encode("the the")] == ["t", "he", "Ġthe"]
  put(tmp_path, tokenizer_config__json={"add_prefix_space": True, "tokenizer_class": "RobertaTokenizer"})
  assert [tokenizer.token(id) for id in from_files(folder).encode("the the")] == ["Ġthe", "Ġthe"]
  marks = {token.content: token.lstrip for token in _library(tokenizer).get_added_tokens_decoder().values()}
  assert marks["<mask>"] and not marks["<s>"]


def _library(tokenizer) -> library.Tokenizer:
  return library.Tokenizer.from_str(tokenizer.model)


def llama3_like(tmp_path) -> epath.Path:
  """With its own pattern, whole words first, special tokens above the vocabulary, and settings that we ignore."""
  vocab = {letter: id for id, letter in enumerate([*byte_letters(), "he", "Ġt", "Ġthe", "Ġwhole"])}
  built = library.Tokenizer(library.models.BPE(vocab, [("h", "e"), ("Ġ", "t"), ("Ġt", "he")], ignore_merges=True))
  split = library.pre_tokenizers.Split(library.Regex(r" ?[^\s]+|\s+"), "isolated")
  level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  built.pre_tokenizer = library.pre_tokenizers.Sequence([split, level])
  built.decoder = library.decoders.ByteLevel()
  built.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
  built.add_tokens(["<tool>"])
  built.post_processor = library.processors.TemplateProcessing(
    "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 260)]
  )
  built.enable_truncation(3)
  built.enable_padding(length=9)
  content = json.loads(built.to_str())
  content["model"]["dropout"] = 0.5
  return put(tmp_path, tokenizer__json=content)


def test_a_tokenizer_json_of_byte_level(tmp_path):
  folder = llama3_like(tmp_path)
  for path in (folder, folder / "tokenizer.json"):
    tokenizer = from_files(path)
    assert (tokenizer.kind, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == ("gpt2", 260, 261, -1)
    expected = ["Ġwhole", "Ġthe", "<tool>", "Ġ", "s", "o"]
    assert [tokenizer.token(id) for id in tokenizer.encode(" whole the<tool> so")] == expected
    assert tokenizer.special_ids.tolist() == [260, 261]
    assert tokenizer.decode(tokenizer.encode(" the <tool> é")) == " the <tool> é"
  by_key = from_path(TokenizerConfig(kind="gpt2", path=str(folder), sentinels=2))
  assert by_key.sentinel_ids.tolist() == [264, 263] and by_key.token(264) == "<extra_id_0>"


def test_holes_are_special_and_never_sentinels(tmp_path):
  vocab = {letter: id for id, letter in enumerate(byte_letters())} | {"he": 300}
  folder = put(tmp_path, vocab__json=vocab, merges__txt="h e\n")
  tokenizer = from_files(folder)
  assert tokenizer.vocab_size == 301
  assert tokenizer.special_ids.tolist() == list(range(256, 300))
  assert tokenizer.decode([300, 299, 256]) == "he"
  assert tokenizer.token(299) == "<no token 299>"
  with pytest.raises(UserError, match=r"tokenizer\.sentinels=2: .* unused ids"):
    from_files(folder, sentinels=2)


def test_tokens_added_to_bare_files(tmp_path):
  """As transformers 4's slow tokenizers wrote them: in added_tokens.json, later in tokenizer_config.json."""
  old = {"pad_token": "<pad>"}
  folder = put(
    tmp_path, vocab__txt=VOCAB_TXT, added_tokens__json={"<tool>": 13, "<pad>": 12}, tokenizer_config__json=old
  )
  first = from_files(folder)
  decoder = {"12": {"content": "<pad>"}, "13": {"content": "<tool>", "special": False, "normalized": True}}
  (tmp_path / "added_tokens.json").unlink()
  put(tmp_path, tokenizer_config__json=old | {"added_tokens_decoder": decoder})
  for tokenizer in (first, from_files(folder)):
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (14, 12)
    assert tokenizer.encode("the <TOOL> fox<pad>").tolist() == [5, 13, 7, 12]
    assert tokenizer.special_ids.tolist() == [1, 2, 3, 4, 12]
  put(tmp_path, tokenizer_config__json={"added_tokens_decoder": {"14": {"content": "<pad>"}}})
  with pytest.raises(UserError, match="another id"):
    from_files(folder)


def test_sentinels_of_a_file_stand(tmp_path):
  folder = put(tmp_path, vocab__txt=VOCAB_TXT + "<extra_id_1>\n<extra_id_0>\n")
  tokenizer = from_path(TokenizerConfig(kind="wordpiece", path=str(folder), sentinels=2))
  assert tokenizer.sentinel_ids.tolist() == [13, 12] and tokenizer.vocab_size == 14
  with pytest.raises(UserError, match=r"tokenizer\.sentinels=3: .* has only 2"):
    from_path(TokenizerConfig(kind="wordpiece", path=str(folder), sentinels=3))


def letters(**changes) -> dict:
  return {letter: id for id, letter in enumerate(byte_letters())} | changes


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
WORDPIECE = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
WORDPIECE |= {"max_input_chars_per_word": 100, "vocab": {"a": 0}}
WORDLEVEL = {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}}
ADDED = {"id": 77, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False}
ADDED |= {"normalized": False, "special": True}


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({"vocab__txt": "the\nfox\n"}, r"vocab.txt has no \[UNK\]"),
    ({"vocab__txt": b"[UNK]\n\xff\xfe"}, "vocab.txt is not UTF-8 text"),
    ({"vocab__txt": VOCAB_TXT, "tokenizer_config__json": {"tokenizer_class": "EsmTokenizer"}}, "of a EsmTokenizer"),
    ({"vocab__txt": VOCAB_TXT, "tokenizer_config__json": "{"}, "tokenizer_config.json is damaged"),
    ({"vocab__txt": VOCAB_TXT, "tokenizer_config__json": [1]}, "holds no JSON object"),
    ({"vocab__txt": VOCAB_TXT, "tokenizer_config__json": {"do_lower_case": "yes"}}, "vocab.txt is damaged"),
    ({"vocab__txt": VOCAB_TXT, "tokenizer_config__json": {"mask_token": [1]}}, "vocab.txt is damaged: TypeError"),
    ({"vocab__json": letters()}, "merges.txt: no such file"),
    ({"vocab__json": {"a": 0}, "merges__txt": ""}, "not a vocabulary of byte-level BPE"),
    ({"vocab__json": letters(**{"a</w>": 256}), "merges__txt": ""}, "not a vocabulary of byte-level BPE"),
    ({"vocab__json": letters(), "merges__txt": "h e\n"}, "vocab.json is damaged: .*`he`"),
    ({"vocab__json": letters(), "merges__txt": "h\n"}, "vocab.json is damaged"),
    ({"vocab__json": letters(he=1 << 22), "merges__txt": "h e\n"}, "an id is 4194304 or more"),
    ({"vocab__json": letters(he=1), "merges__txt": "h e\n"}, "some share an id"),
    ({"vocab__json": letters(he=-1), "merges__txt": "h e\n"}, "vocab.json is damaged"),
    (
      {"tokenizer__json": {"model": UNIGRAM, "added_tokens": []}},
      "holds a huggingface tokenizer: set tokenizer.kind=huggingface, or leave it empty",
    ),
    ({"tokenizer__json": {"model": {**UNIGRAM, "unk_id": 7}, "added_tokens": []}}, "tokenizer.json is damaged"),
    ({"tokenizer__json": {"model": WORDLEVEL, "added_tokens": []}}, r"unknown token '\[UNK\]' is not in its"),
    ({"tokenizer__json": {"model": WORDPIECE, "added_tokens": []}}, r"unknown token '\[UNK\]' is not in its"),
    ({"tokenizer__json": {"model": {**WORDPIECE, "unk_token": "a"}, "added_tokens": [ADDED]}}, "another id"),
    ({"tokenizer__json": {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}}, "no tokens"),
    ({"tokenizer__json": {"model": [], "added_tokens": []}}, "tokenizer.json is damaged"),
    ({"tokenizer__json": "[" * 100_000}, "is damaged: maximum recursion depth"),
    ({"README": "nothing"}, "no tokenizer at .*: expected a Hugging Face folder with tokenizer.json"),
  ],
)
def test_files_that_cannot_be_read(files, message, tmp_path):
  put(tmp_path, **files)
  with pytest.raises(UserError, match=message) as error:
    from_path(TokenizerConfig(kind="gpt2", path=str(tmp_path)))
  assert "\n" not in str(error.value)


def test_paths_that_cannot_be_read(tmp_path):
  put(tmp_path, vocab__txt=VOCAB_TXT)
  for config, message in [
    (TokenizerConfig(kind="wordpiece", path=str(tmp_path / "none.txt")), "none.txt: no such file"),
    (TokenizerConfig(kind="gpt2", path=str(tmp_path)), "holds a wordpiece tokenizer: set tokenizer.kind=wordpiece"),
    (TokenizerConfig(kind="sentencepiece", path=str(tmp_path)), "holds a wordpiece tokenizer: .* or leave it empty"),
    (TokenizerConfig(kind="char", path=str(tmp_path)), "holds a wordpiece tokenizer"),
    (TokenizerConfig(path=str(tmp_path / "none")), "none: no such file"),
  ]:
    with pytest.raises(UserError, match=message):
      from_path(config)
