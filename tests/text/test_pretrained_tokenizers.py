"""WordPiece and byte-level BPE: ids as the published algorithms give them, and reproducible training."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.plain_tokenizers import Expected, data_folder, real_lines
from tfm_jax.data.encode import CHUNK, Encoder, encode_documents
from tfm_jax.data.prepare import vocabulary_of
from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.characters import ByteTokenizer
from tfm_jax.text.tokenizers.table import TokenizerConfig, from_path, load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
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
EXPECTED = {name: Expected(tokenizer) for name, tokenizer in TOKENIZERS.items()}


# Texts of characters that every version of Unicode has.
old_text = st.text(st.sampled_from("abz AZ\t\n'.,-019éàñßçøÄÖœ中文京カ한д\u00a0\u0301²½€“”"), max_size=40)


@EVERY
@settings(max_examples=150)
@given(text=old_text)
def test_ids_are_those_of_the_published_algorithms(name, text):
  assert TOKENIZERS[name].encode(text).tolist() == EXPECTED[name](text)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("folder", "file"),
  [
    ("bert-base-uncased", "wikitext2/valid.raw.txt.gz"),
    ("bert-base-uncased", "multi30k/val.fr.gz"),
    ("bert-base-chinese", "tatoeba_en_zh/train.tsv.gz"),
    ("gpt2", "wikitext2/valid.raw.txt.gz"),
    ("gpt2", "tatoeba_en_zh/train.tsv.gz"),
  ],
)
def test_ids_of_published_vocabularies_on_real_text(folder, file):
  kind = "gpt2" if folder == "gpt2" else "wordpiece"
  tokenizer = from_path(TokenizerConfig(kind=kind, path=str(data_folder() / "vocab" / folder)))
  lines = real_lines(file)[:4000]
  expected = Expected(tokenizer)
  for line, ids in zip(lines, tokenizer.encode_batch(lines), strict=True):
    assert ids.tolist() == expected(line), line


def test_published_ids():
  vocab = data_folder() / "vocab"
  gpt2 = from_path(TokenizerConfig(kind="gpt2", path=str(vocab / "gpt2")))
  assert gpt2.encode("Hello world").tolist() == [15496, 995]
  assert (gpt2.pad_id, gpt2.unk_id, gpt2.bos_id, gpt2.eos_id, gpt2.mask_id) == (-1, -1, 50256, 50256, -1)
  assert gpt2.special_ids.tolist() == [50256]
  assert vocabulary_of(gpt2).pad_id == 50256  # rows need an id for padding
  bert = from_path(TokenizerConfig(kind="wordpiece", path=str(vocab / "bert-base-uncased" / "vocab.txt")))
  assert bert.encode("Hello world, naïve!").tolist() == [7592, 2088, 1010, 15743, 999]
  assert (bert.pad_id, bert.unk_id, bert.bos_id, bert.eos_id, bert.mask_id) == (0, 100, 101, 102, 103)
  assert bert.vocab_size == 30_522
  chinese = from_path(TokenizerConfig(kind="wordpiece", path=str(vocab / "bert-base-chinese")))
  assert chinese.vocab_size == 21_128  # one of its tokens is a line separator


@pytest.mark.parametrize("name", ["gpt2", "gpt2 sentinels"])
@settings(max_examples=200)
@given(text=any_text)
def test_byte_level_loses_nothing(name, text):
  tokenizer = TOKENIZERS[name]
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert tokenizer.decode(ids) == text
  assert not np.isin(ids, tokenizer.special_ids).any()


@pytest.mark.parametrize("name", ["gpt2", "gpt2 sentinels"])
@settings(max_examples=100)
@given(text=any_text)
def test_special_tokens_in_a_text_are_text(name, text):
  tokenizer = TOKENIZERS[name]
  ids = tokenizer.encode(text + "[MASK] <s> <extra_id_0>")
  special = tokenizer.special_ids[tokenizer.special_ids != tokenizer.unk_id]
  assert not np.isin(ids, special).any()
  assert ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("name", ["wordpiece", "wordpiece cased"])
def test_wordpiece_reads_the_names_of_special_tokens(name, tmp_path):
  """As in transformers. In tokenizers that earlier releases saved, such names stay text."""
  tokenizer = TOKENIZERS[name]
  tokenizer.save(tmp_path / "t")
  for same in (tokenizer, load_tokenizer(tmp_path / "t"), pickle.loads(pickle.dumps(tokenizer))):
    expected = [*tokenizer.encode("the fox"), same.mask_id, *tokenizer.encode("dog"), same.eos_id]
    assert same.encode("the fox [MASK] dog[SEP]").tolist() == expected
    assert same.mask_id not in same.encode("the fox [MASK] dog", reads_names=False)
  content = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
  former = type(tokenizer).restore(content, (tmp_path / "t" / tokenizer.model_file).read_bytes())
  assert former.mask_id not in former.encode("[MASK]") and former.fingerprint != tokenizer.fingerprint


def test_names_are_read_on_request():
  tokenizer = TOKENIZERS["gpt2"]
  assert tokenizer.mask_id not in tokenizer.encode("fox<mask>")
  assert tokenizer.encode("fox<mask>", reads_names=True).tolist() == [*tokenizer.encode("fox"), tokenizer.mask_id]
  assert tokenizer.mask_id not in tokenizer.encode("fox<mask>")


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
  expected = [tokenizer.encode(text).tolist() for text in texts]
  for other in (tokenizer, load_tokenizer(tmp_path / "t"), by_path, pickle.loads(pickle.dumps(tokenizer))):
    assert other.fingerprint == tokenizer.fingerprint
    assert other.special_ids.tolist() == tokenizer.special_ids.tolist()
    assert [ids.tolist() for ids in other.encode_batch(texts)] == expected
  assert len({each.fingerprint for each in TOKENIZERS.values()}) == len(TOKENIZERS)


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


@EVERY
@pytest.mark.parametrize("threads", ["1", "3"])
def test_training_is_deterministic_in_another_process(name, threads):
  config = CONFIGS[name]
  script = (
    "from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer\n"
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
  """Letters come first, sorted, then their ## forms; letters that never continue a word have no ## form."""
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
def test_sizes_below_the_smallest_name_it(kind):
  def train(size):
    return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size, sentinels=3), TEXTS)

  with pytest.raises(UserError, match=r"tokenizer\.vocab_size=1: at least (\d+)") as low:
    train(1)
  least = int(re.search(r"at least (\d+)", str(low.value))[1])
  assert train(least).vocab_size == least
  with pytest.raises(UserError, match="at least"):
    train(least - 1)
  with pytest.raises(UserError, match="no text"):
    train_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), ["", " \n"])


@pytest.mark.parametrize("kind", ["wordpiece", "gpt2"])
def test_a_small_text_gives_the_vocabulary_that_it_has(kind):
  def train(size):
    return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size, sentinels=3), TEXTS)

  largest = train(9000)
  assert 150 < largest.vocab_size < 500
  assert largest.sentinel_ids.tolist() == [largest.vocab_size - 1 - n for n in range(3)]
  assert largest.fingerprint == train(9000).fingerprint == train(30_000).fingerprint
  assert train(largest.vocab_size).fingerprint == largest.fingerprint
  assert train(largest.vocab_size - 1).vocab_size == largest.vocab_size - 1


@pytest.mark.slow
def test_workers_give_the_same_in_silence(tmp_path):
  """Spawned workers load the tokenizer from its directory and use one thread each."""
  script = tmp_path / "work.py"
  script.write_text(
    "import os, sys\n"
    "from pathlib import Path\n"
    "from tfm_jax.data.encode import Encoder, encode_documents\n"
    "from tfm_jax.text.tokenizers.table import load_tokenizer\n"
    "if __name__ == '__main__':\n"
    "  directory = Path(sys.argv[1])\n"
    "  encoder = Encoder(load_tokenizer(directory), True, True)\n"
    "  texts = [(f'The quick brown fox number {n} jumps. ' * 2000,) for n in range(20)]\n"
    "  encoder.tokenizer.encode_batch([text for text, in texts])\n"
    "  encoded = [[a[0].tokens.tobytes() for a in encode_documents(texts, encoder, directory, w)] for w in (0, 2)]\n"
    "  assert len(encoded[0]) > 3 and encoded[0] == encoded[1]\n"
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
      capture_output=True,
      text=True,
      env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_worker_is_told_to_use_one_thread(monkeypatch, tmp_path):
  from tfm_jax.data import encode

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
