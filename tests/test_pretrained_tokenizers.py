"""WordPiece and byte-level BPE: the ids of the published algorithms, files of others, the same vocabulary each time."""

import gzip
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers as library
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_jax.data.encode import CHUNK, Encoder, encode_documents
from tfm_jax.data.prepare import vocabulary_of
from tfm_jax.errors import UserError
from tfm_jax.text.characters import ByteTokenizer
from tfm_jax.text.pretrained import from_files
from tfm_jax.text.tokenizers import TokenizerConfig, from_path, load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[1]
TEXTS = [
  "The quick brown fox jumps over the lazy dog.\n\n  def fox(x):\n    return x + 1  # 12 foxes\n",
  "A tokenizer turns text into ids, and ids into text again; nothing may be lost on the way, it's said.",
  "Träume, naïve cafés and 北京 live in UTF-8.\tTabs do too. We'll see what they've got.",
] * 4
CONFIGS = {
  "wordpiece": TokenizerConfig(kind="wordpiece", vocab_size=170),
  "wordpiece cased": TokenizerConfig(kind="wordpiece", vocab_size=180, lowercase=False, sentinels=3),
  "gpt2": TokenizerConfig(kind="gpt2", vocab_size=330),
  "gpt2 sentinels": TokenizerConfig(kind="gpt2", vocab_size=340, sentinels=10),
}
TOKENIZERS = {name: train_tokenizer(config, TEXTS) for name, config in CONFIGS.items()}
EVERY = pytest.mark.parametrize("name", CONFIGS)
SPECIALS = {"wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]}
SPECIALS["gpt2"] = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]

awkward = st.sampled_from(
  [" ", "  ", "\n", "\r\n", "\t", "\x00", "'ll", "'S", "<s>", "[MASK]", "<|endoftext|>", "北京"]
)
any_text = st.lists(awkward | st.sampled_from(["fox", "the ", " text", "12", "é"]) | st.text(max_size=8)).map("".join)


def data_folder() -> Path:
  folder = os.environ.get("TFM_DATA_DIR")
  if not folder or not (Path(folder) / "vocab").exists():
    pytest.skip("TFM_DATA_DIR names no folder with vocab/")
  return Path(folder)


def real_text(name: str, most: int = 300_000) -> str:
  with gzip.open(data_folder() / name, "rt", encoding="utf-8", newline="") as file:
    return file.read(most)


# The algorithms as their papers' code has them, in plain Python.


def bert_words(text: str, lowercase: bool) -> list[str]:
  """google-research/bert, BasicTokenizer."""
  words: list[str] = []
  spaced = ""
  for c in text:
    category = unicodedata.category(c)
    if c in "\t\n\r" or category == "Zs":
      spaced += " "
    elif ord(c) in (0, 0xFFFD) or category.startswith("C"):
      continue
    else:
      spaced += f" {c} " if is_chinese(ord(c)) else c
  for word in spaced.split():
    if lowercase:
      word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
    for c in word:
      ascii_mark = 33 <= ord(c) <= 47 or 58 <= ord(c) <= 64 or 91 <= ord(c) <= 96 or 123 <= ord(c) <= 126
      if ascii_mark or unicodedata.category(c).startswith("P"):
        words += [c, ""]
      elif words and words[-1] != "\n":
        words[-1] += c
      else:
        words.append(c)
    words.append("\n")  # the next word starts anew
  return [word for word in words if word not in ("", "\n")]


def is_chinese(code: int) -> bool:
  blocks = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F))
  more = ((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
  return any(low <= code <= high for low, high in (*blocks, *more))


def wordpieces(word: str, vocab: dict[str, int], unk: int) -> list[int]:
  """The longest piece first; a word with a part that is no piece is unknown as a whole."""
  found, begin = [], 0
  while begin < len(word):
    ends = range(len(word), begin, -1)
    piece = next((p for p in (("##" if begin else "") + word[begin:end] for end in ends) if p in vocab), None)
    if piece is None or len(word) > 100:
      return [unk]
    found.append(vocab[piece])
    begin += len(piece) - (2 if begin else 0)
  return found


def gpt2_words(text: str) -> list[str]:
  """openai/gpt-2, encoder.py: its pattern over one letter a character: l(etter), n(umber), space, s(pace), o(ther)."""
  kinds = {"L": "l", "N": "n"}
  classes = "".join(
    kinds.get(unicodedata.category(c)[0], " " if c == " " else "s" if is_space(c) else "o") for c in text
  )
  pattern = re.compile(" ?l+| ?n+| ?o+|[ s]+(?![lno])|[ s]+")
  words, begin = [], 0
  while begin < len(text):
    short = next((s for s in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(s, begin)), None)
    match = pattern.match(classes, begin)
    assert match
    end = begin + len(short) if short else match.end()
    words.append(text[begin:end])
    begin = end
  return words


def is_space(c: str) -> bool:
  return c.isspace() and c not in "\x1c\x1d\x1e\x1f"  # Unicode's White_Space, unlike Python, has not these


def byte_pairs(word: str, vocab: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
  letters = byte_letters()
  parts = [letters[byte] for byte in word.encode()]
  while True:
    pairs = [pair for pair in itertools.pairwise(parts) if pair in ranks]
    if not pairs:
      return [vocab[part] for part in parts]
    best = min(pairs, key=ranks.__getitem__)
    merged, i = [], 0
    while i < len(parts):
      double = tuple(parts[i : i + 2]) == best
      merged.append("".join(parts[i : i + 2]) if double else parts[i])
      i += 2 if double else 1
    parts = merged


def byte_letters() -> list[str]:
  """openai/gpt-2, bytes_to_unicode."""
  shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  letters = {byte: chr(byte) for byte in shown}
  for byte in range(256):
    letters.setdefault(byte, chr(256 + len(letters) - len(shown)))
  return [letters[byte] for byte in range(256)]


class Expected:
  """The ids of texts by the plain algorithms."""

  def __init__(self, tokenizer):
    content = json.loads(tokenizer.model)
    self.vocab, self.unk = content["model"]["vocab"], tokenizer.unk_id
    self.ranks = {tuple(pair): rank for rank, pair in enumerate(content["model"].get("merges", ()))}
    self.lowercase = (content["normalizer"] or {}).get("lowercase")
    self.known: dict[str, list[int]] = {}  # words met before

  def __call__(self, text: str) -> list[int]:
    words = gpt2_words(text) if self.ranks else bert_words(text, self.lowercase)
    return [id for word in words for id in self.known.get(word) or self.known.setdefault(word, self.word(word))]

  def word(self, word: str) -> list[int]:
    return byte_pairs(word, self.vocab, self.ranks) if self.ranks else wordpieces(word, self.vocab, self.unk)


EXPECTED = {name: Expected(tokenizer) for name, tokenizer in TOKENIZERS.items()}
# Of characters that are known to every version of Unicode.
old_text = st.text(st.sampled_from("abz AZ\t\n'.,-019éàñßçøÄÖœ中文京カ한д\u00a0\u0301²½€“”"), max_size=40)


@EVERY
@settings(max_examples=150, deadline=None)
@given(text=old_text)
def test_ids_are_those_of_the_published_algorithms(name, text):
  assert TOKENIZERS[name].encode(text).tolist() == EXPECTED[name](text)


@pytest.mark.parametrize("file", ["wikitext2/valid.raw.txt.gz", "tatoeba_en_zh/train.tsv.gz", "multi30k/val.fr.gz"])
@pytest.mark.parametrize("folder", ["bert-base-uncased", "bert-base-chinese", "gpt2"])
def test_ids_of_published_vocabularies_on_real_text(folder, file):
  kind = "gpt2" if folder == "gpt2" else "wordpiece"
  tokenizer = from_path(TokenizerConfig(kind=kind, path=str(data_folder() / "vocab" / folder)))
  lines = real_text(file).split("\n")
  expected = Expected(tokenizer)
  for line, ids in zip(lines, tokenizer.encode_batch(lines), strict=True):
    assert ids.tolist() == expected(line), line


def test_published_ids():
  vocab = data_folder() / "vocab"
  gpt2 = from_path(TokenizerConfig(kind="gpt2", path=str(vocab / "gpt2")))
  assert gpt2.encode("Hello world").tolist() == [15496, 995]
  assert (gpt2.pad_id, gpt2.unk_id, gpt2.bos_id, gpt2.eos_id, gpt2.mask_id) == (-1, -1, 50256, 50256, -1)
  assert gpt2.special_ids.tolist() == [50256]
  assert vocabulary_of(gpt2).pad_id == 0  # what fills rows is an id all the same
  bert = from_path(TokenizerConfig(kind="wordpiece", path=str(vocab / "bert-base-uncased" / "vocab.txt")))
  assert bert.encode("Hello world, naïve!").tolist() == [7592, 2088, 1010, 15743, 999]
  assert (bert.pad_id, bert.unk_id, bert.bos_id, bert.eos_id, bert.mask_id) == (0, 100, 101, 102, 103)
  assert bert.vocab_size == 30_522
  chinese = from_path(TokenizerConfig(kind="wordpiece", path=str(vocab / "bert-base-chinese")))
  assert chinese.vocab_size == 21_128  # one of its tokens is a line separator


@pytest.mark.parametrize("name", ["gpt2", "gpt2 sentinels"])
@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_byte_level_loses_nothing(name, text):
  tokenizer = TOKENIZERS[name]
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert tokenizer.decode(ids) == text
  assert not np.isin(ids, tokenizer.special_ids).any()


@EVERY
@settings(max_examples=100, deadline=None)
@given(text=any_text)
def test_special_tokens_in_a_text_are_text(name, text):
  tokenizer = TOKENIZERS[name]
  ids = tokenizer.encode(text + "[MASK] <s> <extra_id_0>")
  special = tokenizer.special_ids[tokenizer.special_ids != tokenizer.unk_id]
  assert not np.isin(ids, special).any()
  assert ids.max() < tokenizer.vocab_size


@EVERY
def test_special_ids(name):
  tokenizer, config = TOKENIZERS[name], CONFIGS[name]
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id)
  assert ids == (0, 1, 2, 3, 4)
  assert tokenizer.vocab_size == config.vocab_size
  top = tokenizer.vocab_size - 1
  assert tokenizer.sentinel_ids.tolist() == [top - n for n in range(config.sentinels)]
  assert [tokenizer.token(id) for id in tokenizer.sentinel_ids] == [f"<extra_id_{n}>" for n in range(config.sentinels)]
  assert tokenizer.special_ids.tolist() == sorted({0, 1, 2, 3, 4, *tokenizer.sentinel_ids.tolist()})
  assert [tokenizer.token(id) for id in range(5)] == SPECIALS[tokenizer.kind]
  assert len({tokenizer.token(id) for id in range(tokenizer.vocab_size)}) == tokenizer.vocab_size
  mixed = np.concatenate([tokenizer.special_ids[tokenizer.special_ids != 1], tokenizer.encode("fox"), [0, 4]])
  assert tokenizer.decode(mixed) == "fox"


@EVERY
def test_saved_loaded_pickled_and_in_batches(name, tmp_path):
  tokenizer = TOKENIZERS[name]
  tokenizer.save(tmp_path / "t")
  by_path = from_path(TokenizerConfig(kind=tokenizer.kind, path=str(tmp_path / "t")))
  texts = [*TEXTS, "", "\n", "naïve"]
  wanted = [tokenizer.encode(text).tolist() for text in texts]
  for other in (tokenizer, load_tokenizer(tmp_path / "t"), by_path, pickle.loads(pickle.dumps(tokenizer))):
    assert other.fingerprint == tokenizer.fingerprint
    assert other.special_ids.tolist() == tokenizer.special_ids.tolist()
    assert [ids.tolist() for ids in other.encode_batch(texts)] == wanted
  assert len({made.fingerprint for made in TOKENIZERS.values()}) == len(TOKENIZERS)


def test_damage_to_a_saved_one_is_found(tmp_path):
  TOKENIZERS["gpt2"].save(tmp_path)
  model = (tmp_path / "model.json").read_bytes()
  for damaged in (model[:-9], b"", b"[]", model.replace(b'"lazy"', b'"hazy"').replace(b"vocab", b"vocap")):
    (tmp_path / "model.json").write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
      load_tokenizer(tmp_path)
  (tmp_path / "model.json").write_bytes(model + b" ")
  with pytest.raises(UserError, match="fingerprint"):
    load_tokenizer(tmp_path)
  (tmp_path / "model.json").unlink()
  with pytest.raises(UserError, match="no tokenizer at"):
    load_tokenizer(tmp_path)


# Training.


@EVERY
@pytest.mark.parametrize("threads", ["1", "3"])
def test_training_is_deterministic_in_another_process(name, threads):
  config = CONFIGS[name]
  script = (
    "from tfm_jax.text.tokenizers import TokenizerConfig, train_tokenizer\n"
    f"print(train_tokenizer({config!r}, {TEXTS!r}).fingerprint)\n"
  )
  environment = {**os.environ, "PYTHONHASHSEED": threads, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
  result = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
  )
  assert result.stdout.strip() == TOKENIZERS[name].fingerprint
  assert result.stderr == ""


def test_lower_case_is_a_choice():
  lower, cased = TOKENIZERS["wordpiece"], TOKENIZERS["wordpiece cased"]
  assert lower.encode("Träume THE").tolist() == lower.encode("traume the").tolist()
  assert cased.encode("The").tolist() != cased.encode("the").tolist()
  assert cased.decode(cased.encode("The naïve dog")) == "The naïve dog"


def test_wordpiece_letters():
  """Letters come first, sorted, then their ## forms; what never continues a word has none."""
  tokenizer = train_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=5 + 7 + 4), ["abc ab 北京 . cab é"] * 3)
  tokens = [tokenizer.token(id) for id in range(5, tokenizer.vocab_size)]
  assert tokens == [".", "a", "b", "c", "e", "京", "北", "##a", "##b", "##c", "##e"]
  assert tokenizer.encode("zebra").tolist() == [tokenizer.unk_id]
  assert tokenizer.decode(tokenizer.encode("zebra cab")) == "[UNK] cab"


def test_rare_characters_are_left_to_the_unknown_token():
  texts = ["the quick brown fox jumps over the lazy dog " * 20_000 + "☃"]
  tokenizer = train_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=60), texts)
  assert tokenizer.encode("☃ dog").tolist()[0] == tokenizer.unk_id
  assert "☃" not in {tokenizer.token(id) for id in range(60)}


def test_byte_level_learns_across_line_ends_and_long_texts():
  """Blank lines and indentation are pieces, as in GPT-2's own vocabulary; long texts are cut at line ends."""
  text = "def f(x):\n    return x\n\n\n\n" * 20_000
  tokenizer = train_tokenizer(TokenizerConfig(kind="gpt2", vocab_size=278), [text])
  assert {"ĊĊ", "ĊĠĠĠ"} <= {tokenizer.token(id) for id in range(tokenizer.vocab_size)}


@pytest.mark.parametrize("kind", ["wordpiece", "gpt2"])
def test_impossible_sizes_name_the_possible_ones(kind):
  def train(size):
    return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size, sentinels=3), TEXTS)

  with pytest.raises(UserError, match=r"tokenizer\.vocab_size=0: (\d+) at least") as low:
    train(0)
  least = int(re.search(r": (\d+) at least", str(low.value))[1])
  assert train(least).vocab_size == least
  with pytest.raises(UserError, match="at least"):
    train(least - 1)
  with pytest.raises(UserError, match=r"tokenizer\.vocab_size=9000: .* (\d+) at most") as high:
    train(9000)
  most = int(re.search(r"(\d+) at most", str(high.value))[1])
  assert train(most).vocab_size == most
  with pytest.raises(UserError, match="at most"):
    train(most + 1)
  with pytest.raises(UserError, match="no text"):
    train_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), ["", " \n"])


# Workers.


def test_workers_give_the_same_in_silence(tmp_path):
  """Spawned workers reload the tokenizer from its directory, and use one thread each."""
  script = tmp_path / "work.py"
  script.write_text(
    "import os, sys\n"
    "from pathlib import Path\n"
    "from tfm_jax.data.encode import Encoder, encode_documents\n"
    "from tfm_jax.text.tokenizers import load_tokenizer\n"
    "if __name__ == '__main__':\n"
    "  directory = Path(sys.argv[1])\n"
    "  encoder = Encoder(load_tokenizer(directory), True, True)\n"
    "  texts = [(f'The quick brown fox number {n} jumps. ' * 2000,) for n in range(20)]\n"
    "  encoder.tokenizer.encode_batch([text for text, in texts])\n"
    "  made = [[a[0].tokens.tobytes() for a in encode_documents(texts, encoder, directory, w)] for w in (0, 2)]\n"
    "  assert len(made[0]) > 3 and made[0] == made[1]\n"
    "  assert 'TOKENIZERS_PARALLELISM' not in os.environ\n"
    "  os.system('true')\n"
    "  if os.fork() == 0: os._exit(0)\n"
    "  os.wait()\n"
  )
  for name in ("wordpiece", "gpt2"):
    TOKENIZERS[name].save(tmp_path / name)
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    result = subprocess.run(
      [sys.executable, "-W", "error", script, tmp_path / name],
      capture_output=True, text=True, env={**environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")


def test_a_worker_is_told_to_use_one_thread(monkeypatch, tmp_path):
  from tfm_jax.data import encode

  monkeypatch.setattr(encode.signal, "signal", lambda *_: None)
  monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
  TOKENIZERS["gpt2"].save(tmp_path)
  encode._start_worker(str(tmp_path), bos=False, eos=True)
  assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_long_documents_go_through_the_encoder(tmp_path):
  text = "The quick brown fox.\n" * (3 * CHUNK // 21)
  TOKENIZERS["gpt2"].save(tmp_path)
  encoded = list(encode_documents([(text,)], Encoder(TOKENIZERS["gpt2"], False, True), tmp_path, 0))
  ids = np.concatenate([side.tokens for (side,) in encoded])
  assert len(encoded) > 1 and ids[-1] == TOKENIZERS["gpt2"].eos_id
  assert TOKENIZERS["gpt2"].decode(ids.astype(np.int32)) == text


# Files of others.


def write(folder: Path, **files) -> epath.Path:
  for name, content in files.items():
    name = name.replace("__", ".")
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  return epath.Path(folder)


VOCAB_TXT = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nThe\nfox\n##es\nna\n##ive\n\u2028\n"


def test_names_of_special_tokens_are_read_in_files_of_others(tmp_path):
  """As transformers does; saved and pickled too."""
  tokenizer = from_files(write(tmp_path, vocab__txt=VOCAB_TXT))
  tokenizer.save(tmp_path / "saved")
  for other in (tokenizer, load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
    assert other.encode("the [MASK] fox[SEP]").tolist() == [5, 4, 7, 3]
    assert other.fingerprint == tokenizer.fingerprint


def test_vocab_txt(tmp_path):
  folder = write(tmp_path, vocab__txt=VOCAB_TXT)
  for path in (folder, folder / "vocab.txt"):
    tokenizer = from_files(path)
    assert tokenizer.encode("The foxes naïve").tolist() == [5, 7, 8, 9, 10]
  cased = from_files(folder, lowercase=False)
  assert cased.encode("The the naïve").tolist() == [6, 5, 1]
  assert tokenizer.vocab_size == 12 and tokenizer.token(11) == "\u2028"
  write(tmp_path, vocab__txt=VOCAB_TXT.replace("\n", "\r\n"))
  assert from_files(folder).encode("The foxes").tolist() == [5, 7, 8]


def test_tokenizer_config_stands_above_the_key(tmp_path):
  settings = {"do_lower_case": False, "tokenize_chinese_chars": False, "tokenizer_class": "BertTokenizerFast"}
  folder = write(tmp_path, vocab__txt=VOCAB_TXT, tokenizer_config__json=settings)
  tokenizer = from_files(folder, lowercase=True)
  assert tokenizer.encode("The").tolist() == [6]
  assert json.loads(tokenizer.model)["normalizer"]["handle_chinese_chars"] is False
  write(tmp_path, tokenizer_config__json={"do_lower_case": False, "strip_accents": True})
  assert from_files(folder).encode("naïve The").tolist() == [9, 10, 6]


def test_roles_are_read_where_the_files_say(tmp_path):
  vocab = {token: id for id, token in enumerate(["<a>", "<b>", "<c>", "[SEP]", "<pad>", *byte_letters()])}
  said = {"bos_token": "<a>", "eos_token": {"content": "<b>", "lstrip": False}, "pad_token": None, "mask_token": "<c>"}
  folder = write(tmp_path, vocab__json=vocab, merges__txt="#version: 0.2\n", special_tokens_map__json=said)
  tokenizer = from_files(folder)
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id)
  assert ids == (-1, -1, 0, 1, 2)
  write(tmp_path, tokenizer_config__json={"bos_token": "<c>"})  # above the map
  assert from_files(folder).bos_id == 2
  (tmp_path / "special_tokens_map.json").unlink()
  (tmp_path / "tokenizer_config.json").unlink()
  assert (from_files(folder).eos_id, from_files(folder).pad_id) == (3, 4)  # the usual names


def roberta_like(tmp_path) -> epath.Path:
  names = ["<s>", "<pad>", "</s>", "<unk>", *byte_letters(), "he", "Ġt", "Ġthe", "<mask>"]
  vocab = {token: id for id, token in enumerate(names)}
  return write(tmp_path, vocab__json=vocab, merges__txt="#version: 0.2\nh e\nĠ t\nĠt he\n")


def test_roberta_and_its_spaces(tmp_path):
  folder = roberta_like(tmp_path)
  tokenizer = from_files(folder)
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id)
  assert ids == (1, 3, 0, 2, 263)
  assert [tokenizer.token(id) for id in tokenizer.encode("the the")] == ["t", "he", "Ġthe"]
  write(tmp_path, tokenizer_config__json={"add_prefix_space": True, "tokenizer_class": "RobertaTokenizer"})
  assert [tokenizer.token(id) for id in from_files(folder).encode("the the")] == ["Ġthe", "Ġthe"]
  marks = {token.content: token.lstrip for token in _library(tokenizer).get_added_tokens_decoder().values()}
  assert marks["<mask>"] and not marks["<s>"]


def _library(tokenizer) -> library.Tokenizer:
  return library.Tokenizer.from_str(tokenizer.model)


def llama3_like(tmp_path) -> epath.Path:
  """A pattern of its own, whole words first, special tokens above the vocabulary, and settings that are not ours."""
  vocab = {letter: id for id, letter in enumerate([*byte_letters(), "he", "Ġt", "Ġthe", "Ġwhole"])}
  made = library.Tokenizer(library.models.BPE(vocab, [("h", "e"), ("Ġ", "t"), ("Ġt", "he")], ignore_merges=True))
  split = library.pre_tokenizers.Split(library.Regex(r" ?[^\s]+|\s+"), "isolated")
  level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.pre_tokenizer = library.pre_tokenizers.Sequence([split, level])
  made.decoder = library.decoders.ByteLevel()
  made.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
  made.add_tokens(["<tool>"])
  made.post_processor = library.processors.TemplateProcessing(
    "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 260)]
  )
  made.enable_truncation(3)
  made.enable_padding(length=9)
  content = json.loads(made.to_str())
  content["model"]["dropout"] = 0.5
  return write(tmp_path, tokenizer__json=content)


def test_a_tokenizer_json_of_byte_level(tmp_path):
  folder = llama3_like(tmp_path)
  for path in (folder, folder / "tokenizer.json"):
    tokenizer = from_files(path)
    assert (tokenizer.kind, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == ("gpt2", 260, 261, -1)
    wanted = ["Ġwhole", "Ġthe", "<tool>", "Ġ", "s", "o"]
    assert [tokenizer.token(id) for id in tokenizer.encode(" whole the<tool> so")] == wanted
    assert tokenizer.special_ids.tolist() == [260, 261]
    assert tokenizer.decode(tokenizer.encode(" the <tool> é")) == " the <tool> é"
  by_key = from_path(TokenizerConfig(kind="gpt2", path=str(folder), sentinels=2))
  assert by_key.sentinel_ids.tolist() == [264, 263] and by_key.token(264) == "<extra_id_0>"


def test_holes_are_special_and_never_sentinels(tmp_path):
  vocab = {letter: id for id, letter in enumerate(byte_letters())} | {"he": 300}
  folder = write(tmp_path, vocab__json=vocab, merges__txt="h e\n")
  tokenizer = from_files(folder)
  assert tokenizer.vocab_size == 301
  assert tokenizer.special_ids.tolist() == list(range(256, 300))
  assert tokenizer.decode([300, 299, 256]) == "he"
  assert tokenizer.token(299) == "<no token 299>"
  with pytest.raises(UserError, match=r"tokenizer\.sentinels=2: .* unused ids"):
    from_files(folder, sentinels=2)


def test_sentinels_of_a_file_stand(tmp_path):
  folder = write(tmp_path, vocab__txt=VOCAB_TXT + "<extra_id_1>\n<extra_id_0>\n")
  tokenizer = from_path(TokenizerConfig(kind="wordpiece", path=str(folder), sentinels=2))
  assert tokenizer.sentinel_ids.tolist() == [13, 12] and tokenizer.vocab_size == 14
  with pytest.raises(UserError, match=r"tokenizer\.sentinels=3: .* has only 2"):
    from_path(TokenizerConfig(kind="wordpiece", path=str(folder), sentinels=3))


def letters(**changes) -> dict:
  return {letter: id for id, letter in enumerate(byte_letters())} | changes


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
WORDPIECE = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
WORDPIECE |= {"max_input_chars_per_word": 100, "vocab": {"a": 0}}
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
    ({"vocab__json": {"a": 0}, "merges__txt": ""}, "no vocabulary of byte-level BPE"),
    ({"vocab__json": letters(**{"a</w>": 256}), "merges__txt": ""}, "no vocabulary of byte-level BPE"),
    ({"vocab__json": letters(), "merges__txt": "h e\n"}, "vocab.json is damaged: .*`he`"),
    ({"vocab__json": letters(), "merges__txt": "h\n"}, "vocab.json is damaged"),
    ({"vocab__json": letters(he=1 << 22), "merges__txt": "h e\n"}, "an id is 4194304 or more"),
    ({"vocab__json": letters(he=1), "merges__txt": "h e\n"}, "some share an id"),
    ({"vocab__json": letters(he=-1), "merges__txt": "h e\n"}, "vocab.json is damaged"),
    ({"tokenizer__json": {"model": UNIGRAM, "added_tokens": []}}, "a Unigram tokenizer without byte level"),
    ({"tokenizer__json": {"model": WORDPIECE, "added_tokens": []}}, r"unknown token '\[UNK\]' is not in its"),
    ({"tokenizer__json": {"model": {**WORDPIECE, "unk_token": "a"}}}, "damaged: KeyError 'added_tokens'"),
    ({"tokenizer__json": {"model": {**WORDPIECE, "unk_token": "a"}, "added_tokens": [ADDED]}}, "another id"),
    ({"tokenizer__json": {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}}, "no tokens"),
    ({"tokenizer__json": {"model": [], "added_tokens": []}}, "tokenizer.json is damaged"),
    ({"tokenizer__json": "[" * 100_000}, "is damaged: maximum recursion depth"),
    ({"README": "nothing"}, "no tokenizer at .* for tokenizer.kind=gpt2: it reads tokenizer.json"),
  ],
)
def test_files_that_cannot_be_read(files, message, tmp_path):
  write(tmp_path, **files)
  with pytest.raises(UserError, match=message) as error:
    from_path(TokenizerConfig(kind="gpt2", path=str(tmp_path)))
  assert "\n" not in str(error.value)


def test_paths_that_cannot_be_read(tmp_path):
  write(tmp_path, vocab__txt=VOCAB_TXT)
  for config, message in [
    (TokenizerConfig(kind="wordpiece", path=str(tmp_path / "none.txt")), "none.txt: no such file"),
    (TokenizerConfig(kind="gpt2", path=str(tmp_path)), "holds a wordpiece tokenizer: set tokenizer.kind=wordpiece"),
    (TokenizerConfig(path=str(tmp_path)), "for tokenizer.kind=sentencepiece: it reads a .model file"),
    (TokenizerConfig(kind="char", path=str(tmp_path)), "for tokenizer.kind=char: it reads the directory"),
  ]:
    with pytest.raises(UserError, match=message):
      from_path(config)


# ByT5.


def test_the_layout_of_byt5(tmp_path):
  tokenizer = ByteTokenizer(125, byt5=True)
  assert tokenizer.encode("é\n").tolist() == [0xC3 + 3, 0xA9 + 3, 0x0A + 3]
  assert tokenizer.vocab_size == 384
  ids = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.mask_id)
  assert ids == (0, 1, 2, -1, -1)
  assert tokenizer.sentinel_ids.tolist() == list(range(259, 384))
  assert tokenizer.special_ids.tolist() == [0, 1, 2, *range(259, 384)]
  assert [tokenizer.token(id) for id in (0, 1, 2, 3 + ord("a"), 259)] == ["<pad>", "</s>", "<unk>", "a", "<extra_id_0>"]
  assert tokenizer.decode([*tokenizer.encode("né"), 1, 0, 383]) == "né"
  tokenizer.save(tmp_path)
  loaded = load_tokenizer(tmp_path)
  assert loaded.fingerprint == tokenizer.fingerprint != ByteTokenizer(125).fingerprint
  assert loaded.encode("x").tolist() == tokenizer.encode("x").tolist()
  assert pickle.loads(pickle.dumps(tokenizer)).eos_id == 1
