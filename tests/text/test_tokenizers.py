"""Tokenizers: texts survive the round trip, ids stay in range, and training is reproducible."""

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

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers import subwords
from tfm_jax.text.tokenizers.table import TokenizerConfig, from_path, load_tokenizer, train_tokenizer

TEXTS = [
  "The quick brown fox jumps over the lazy dog.\n\n  def fox(x):\n    return x + 1  # 12 foxes\n",
  "A tokenizer turns text into ids, and ids into text again; nothing may be lost on the way.",
  "Träume, naïve cafés and 北京 live in UTF-8.\tTabs do too.",
] * 4
CONFIGS = {
  "unigram": TokenizerConfig(vocab_size=340),
  "unigram sentinels": TokenizerConfig(vocab_size=350, sentinels=10),
  "bpe": TokenizerConfig(algorithm="bpe", vocab_size=400, sentinels=3),
  "char": TokenizerConfig(kind="char", sentinels=4),
  "byte": TokenizerConfig(kind="byte", sentinels=2),
}
TOKENIZERS = {name: train_tokenizer(config, TEXTS) for name, config in CONFIGS.items()}
EVERY = pytest.mark.parametrize("name", CONFIGS)
LOSSLESS = pytest.mark.parametrize("name", [name for name in CONFIGS if name != "char"])

# Spaces, sentencepiece's own signs, names of special pieces, plain words, and arbitrary characters.
awkward = st.sampled_from(
  [" ", "  ", "\n", "\r\n", "\t", "▁", "▅", "\u2047", "\ufffd", "\x00", "<s>", "<mask>", "<extra_id_0>"]
)
any_text = st.lists(awkward | st.sampled_from(["<0x0A>", "fox", "the ", " text"]) | st.text(max_size=8)).map("".join)


@LOSSLESS
@settings(max_examples=150)
@given(text=any_text)
def test_any_text_survives_the_round_trip(name, text):
  tokenizer = TOKENIZERS[name]
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert tokenizer.decode(ids) == text
  assert not np.isin(ids, tokenizer.special_ids).any()
  assert ids.size == 0 or (ids.min() >= 0 and ids.max() < tokenizer.vocab_size)


@given(text=st.text(alphabet=sorted(set("".join(TEXTS)))))
def test_known_characters_survive_and_are_one_id_each(text):
  ids = TOKENIZERS["char"].encode(text)
  assert len(ids) == len(text)
  assert TOKENIZERS["char"].decode(ids) == text


def test_unknown_characters_show():
  tokenizer = TOKENIZERS["char"]
  ids = tokenizer.encode("a€z\U0010ffff")
  assert (ids == tokenizer.unk_id).tolist() == [False, True, False, True]
  assert tokenizer.decode(ids) == "a\ufffdz\ufffd"


def test_character_ids_are_in_code_point_order():
  tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["cab", "é"])
  assert [tokenizer.token(id) for id in range(5, tokenizer.vocab_size)] == ["a", "b", "c", "é"]


def test_byte_ids_are_the_bytes():
  assert TOKENIZERS["byte"].encode("é\n").tolist() == [0xC3 + 5, 0xA9 + 5, 0x0A + 5]
  assert TOKENIZERS["byte"].vocab_size == 5 + 256 + 2


@EVERY
def test_special_ids(name):
  tokenizer, config = TOKENIZERS[name], CONFIGS[name]
  assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (
    0,
    1,
    2,
    3,
    4,
  )
  assert config.vocab_size in (0, tokenizer.vocab_size)
  top = tokenizer.vocab_size - 1
  assert tokenizer.sentinel_ids.tolist() == [top - n for n in range(config.sentinels)]
  assert [tokenizer.token(id) for id in tokenizer.sentinel_ids] == [f"<extra_id_{n}>" for n in range(config.sentinels)]
  assert tokenizer.special_ids.tolist() == sorted({0, 1, 2, 3, 4, *tokenizer.sentinel_ids.tolist()})
  assert [tokenizer.token(id) for id in range(5)] == ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
  assert len({tokenizer.token(id) for id in range(tokenizer.vocab_size)}) == tokenizer.vocab_size


@EVERY
def test_decode_drops_special_ids_and_refuses_foreign_ones(name):
  tokenizer = TOKENIZERS[name]
  special = tokenizer.special_ids[tokenizer.special_ids != tokenizer.unk_id]
  ids = tokenizer.encode("fox")
  assert tokenizer.decode(np.concatenate([special, ids, special])) == "fox"
  assert tokenizer.decode(ids.tolist()) == "fox"
  assert tokenizer.decode([]) == ""
  for foreign in (-1, tokenizer.vocab_size):
    with pytest.raises(ValueError, match="ids must lie in"):
      tokenizer.decode([foreign])
    with pytest.raises(ValueError, match="ids must lie in"):
      tokenizer.token(foreign)


@EVERY
def test_a_batch_is_its_texts(name):
  texts = [*TEXTS, "", "a ▁ sign", "\n"]
  batch = TOKENIZERS[name].encode_batch(texts)
  assert [ids.tolist() for ids in batch] == [TOKENIZERS[name].encode(text).tolist() for text in texts]


@EVERY
def test_saved_and_loaded(name, tmp_path):
  tokenizer = TOKENIZERS[name]
  tokenizer.save(tmp_path / "tokenizer")
  pickled = pickle.loads(pickle.dumps(tokenizer))
  by_path = from_path(TokenizerConfig(kind=tokenizer.kind, path=str(tmp_path / "tokenizer")))
  for other in (load_tokenizer(tmp_path / "tokenizer"), pickled, by_path):
    assert other.fingerprint == tokenizer.fingerprint
    assert other.vocab_size == tokenizer.vocab_size
    assert other.sentinel_ids.tolist() == tokenizer.sentinel_ids.tolist()
    assert other.encode(TEXTS[0]).tolist() == tokenizer.encode(TEXTS[0]).tolist()


def test_fingerprints_differ():
  assert len({tokenizer.fingerprint for tokenizer in TOKENIZERS.values()}) == len(TOKENIZERS)


@pytest.mark.parametrize("algorithm", subwords.ALGORITHMS)
def test_training_is_deterministic_in_another_process_on_one_core(algorithm, tmp_path):
  config = TokenizerConfig(algorithm=algorithm, vocab_size=345)
  (tmp_path / "train.py").write_text(
    "import os, sys\n"
    "if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    "from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer\n"
    f"print(train_tokenizer({config!r}, {TEXTS!r}).fingerprint)\n"
  )
  environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
  result = subprocess.run(
    [sys.executable, tmp_path / "train.py"], capture_output=True, text=True, check=True, env=environment
  )
  assert result.stdout.strip() == train_tokenizer(config, TEXTS).fingerprint
  assert result.stderr == ""  # the trainer prints nothing


def test_frequent_words_become_pieces():
  """A word that always stands between spaces becomes one piece, not only its fragments."""
  words = ["chapter", "shows", "that", "transformers", "learn", "language", "from", "text", "nothing", "else"]
  tokenizer = train_tokenizer(TokenizerConfig(vocab_size=295), _shuffled(words))
  assert {f"▁{word}" for word in words} <= {tokenizer.token(id) for id in range(tokenizer.vocab_size)}


def test_pieces_mix_letters_and_punctuation_only_if_the_vocabulary_needs_them():
  heads, tails = (
    ["array", "matrix", "vector", "tensor", "kernel", "sparse"],
    ["sum", "mean", "reshape", "astype", "transpose"],
  )
  texts = _shuffled([f"{head}.{tail}(axis={n})," for head in heads for tail in tails for n in range(3)])

  def mixed(size: int) -> list[str]:
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=size), texts)
    assert tokenizer.vocab_size == size
    pieces = [tokenizer.token(id) for id in range(5 + 256, size)]
    return [p for p in pieces if any(c.isascii() and c.isalpha() for c in p) and any(c in ".,()=" for c in p)]

  strict, loose = _limit(texts, subwords._STRICT), _limit(texts, subwords._LOOSE)
  assert strict < loose
  assert not mixed(strict)
  assert mixed(loose)


def _shuffled(words: list[str]) -> list[str]:
  """Thirty lines of these words in random order."""
  rng = np.random.default_rng(0)
  return [" ".join(rng.choice(words, 40)) for _ in range(30)]


def _limit(texts: list[str], words: re.Pattern[str]) -> int:
  """The largest vocabulary that one of the two word patterns can give."""
  with pytest.raises(RuntimeError) as error:
    subwords._fit(TokenizerConfig(vocab_size=5_000), subwords._sample(texts), words)
  return subwords._limit(error.value) or 0


@pytest.mark.parametrize("algorithm", subwords.ALGORITHMS)
def test_a_small_text_gives_the_vocabulary_that_it_has(algorithm):
  def train(size: int, sentinels: int = 7):
    return train_tokenizer(TokenizerConfig(algorithm=algorithm, vocab_size=size, sentinels=sentinels), TEXTS)

  largest = train(9_000)
  assert 300 < largest.vocab_size < 900
  assert largest.sentinel_ids.tolist() == [largest.vocab_size - 1 - n for n in range(7)]
  assert largest.decode(largest.encode(TEXTS[1])) == TEXTS[1]
  assert largest.fingerprint == train(9_000).fingerprint == train(30_000).fingerprint
  assert train(largest.vocab_size).vocab_size == largest.vocab_size == train(largest.vocab_size + 1).vocab_size
  assert train(largest.vocab_size - 1).vocab_size == largest.vocab_size - 1


@pytest.mark.parametrize("algorithm", subwords.ALGORITHMS)
@pytest.mark.parametrize("text", ["a", "a b", "北京", "!!!", "😀", "  x  ", "a\tb\n\n", "the cat sat " * 9])
def test_the_smallest_texts_give_a_vocabulary(algorithm, text):
  tokenizer = train_tokenizer(TokenizerConfig(algorithm=algorithm, vocab_size=32_128, sentinels=2), [text])
  assert 263 < tokenizer.vocab_size < 300
  assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("algorithm", subwords.ALGORITHMS)
def test_sizes_below_the_smallest_name_it(algorithm):
  def train(size: int, sentinels: int = 7):
    return train_tokenizer(TokenizerConfig(algorithm=algorithm, vocab_size=size, sentinels=sentinels), TEXTS)

  with pytest.raises(UserError, match=r"tokenizer\.vocab_size=275.* at least (\d+)") as low:
    train(275)
  least = int(str(low.value).split("at least ")[1].split()[0])
  with pytest.raises(UserError, match="at least"):
    train(least - 1)
  assert train(least + 1).vocab_size == least + 1
  with pytest.raises(UserError, match=r"tokenizer\.vocab_size=0"):
    train(0)


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize("size", [9, 32_128])
def test_characters_and_bytes_have_a_size_of_their_own(kind, size):
  tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size, sentinels=3), TEXTS)
  assert tokenizer.fingerprint == train_tokenizer(TokenizerConfig(kind=kind, sentinels=3), TEXTS).fingerprint


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (TokenizerConfig(kind="words"), "tokenizer.kind=words"),
    (TokenizerConfig(algorithm="wordpiece", vocab_size=300), "tokenizer.algorithm=wordpiece"),
    (TokenizerConfig(kind="bpe", vocab_size=300), "tokenizer.kind=bpe.*set tokenizer.algorithm=bpe"),
    (TokenizerConfig(kind="unigram", vocab_size=300), "set tokenizer.algorithm=unigram"),
    (TokenizerConfig(kind="huggingface", vocab_size=300), "read from files: name them in tokenizer.path"),
    (TokenizerConfig(), "tokenizer.vocab_size=0: set the number of pieces to train"),
    (TokenizerConfig(kind="byte", sentinels=-1), "tokenizer.sentinels=-1"),
  ],
)
def test_config_mistakes(config, message):
  with pytest.raises(UserError, match=message):
    train_tokenizer(config, TEXTS)


def test_no_text():
  with pytest.raises(UserError, match="no text"):
    train_tokenizer(TokenizerConfig(vocab_size=300), ["", "\n\t"])


def test_path_mistakes(tmp_path):
  TOKENIZERS["char"].save(tmp_path / "char")
  (tmp_path / "noise.model").write_bytes(b"not a model")
  (tmp_path / "empty").mkdir()
  for config, message in [
    (TokenizerConfig(path=str(tmp_path / "none.model")), "none.model: no such file"),
    (TokenizerConfig(path=str(tmp_path / "noise.model")), "not a sentencepiece model"),
    (TokenizerConfig(path=str(tmp_path)), r"noise\.model is damaged, or not a sentencepiece model"),
    (TokenizerConfig(path=str(tmp_path / "empty")), "no tokenizer at"),
    (TokenizerConfig(kind="byte", path=str(tmp_path / "char")), "set tokenizer.kind=char, or leave it empty"),
    (TokenizerConfig(kind="char", path=str(tmp_path / "char"), sentinels=5), "tokenizer.sentinels=5"),
    (
      TokenizerConfig(kind="char", path=str(tmp_path / "noise.model")),
      "not a sentencepiece model",
    ),
  ]:
    with pytest.raises(UserError, match=message):
      from_path(config)


def test_a_damaged_tokenizer_is_refused(tmp_path):
  TOKENIZERS["bpe"].save(tmp_path)
  model = (tmp_path / "spm.model").read_bytes()
  for damaged in (model[:-9], model[: len(model) // 2], b"", model.replace(b"fox", b"fux")):
    assert damaged != model
    (tmp_path / "spm.model").write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
      load_tokenizer(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(UserError, match="damaged"):
    load_tokenizer(tmp_path)


def test_a_sample_of_long_texts_is_spread_over_them(monkeypatch):
  monkeypatch.setattr(subwords, "_SAMPLE", 1000)
  lines = [f"{n:09}" for n in range(1000)]
  numbers = [int(line) for line in subwords._sample(["\n".join(lines[:500]), "\n".join(lines[500:])])]
  assert 50 <= len(numbers) <= 112
  assert set(np.diff(numbers)) == {numbers[1] - numbers[0]}
  assert max(numbers) > 980


def test_t5_vocabulary():
  """The published model of T5: its ids, its sentinels, no bos and no mask."""
  folder = os.environ.get("TFM_DATA_DIR")
  path = Path(folder or "") / "vocab" / "t5" / "cc_all.32000.100extra.model"
  if not folder or not path.exists():
    pytest.skip("TFM_DATA_DIR names no folder with vocab/t5")
  tokenizer = from_path(TokenizerConfig(path=str(path), vocab_size=32_128, sentinels=100))
  assert tokenizer.encode("Hello world").tolist() == [8774, 296]
  assert tokenizer.decode([8774, 296, 1]) == "Hello world"
  ids = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.mask_id)
  assert ids == (0, 1, 2, -1, -1)
  assert tokenizer.vocab_size == 32_100
  assert tokenizer.sentinel_ids.tolist() == list(range(32_099, 31_999, -1))
  assert set(tokenizer.special_ids.tolist()) == {0, 1, 2, *range(32_000, 32_100)}
