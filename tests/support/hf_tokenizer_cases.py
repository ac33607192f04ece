"""Tokenizers of every kind, and texts, for the tests of Hugging Face files."""

import io
import re
from pathlib import Path

import pytest
import sentencepiece
import tokenizers as library

from tests.support.plain_tokenizers import data_folder
from tfm_jax.text.tokenizers.characters import ByteTokenizer
from tfm_jax.text.tokenizers.sentencepiece_json import parse
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer

ROOT = Path(__file__).parents[2]
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
NAMES = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK)\]|</?(s|pad|unk|mask|extra_id_\d+)>")


def plain(texts: list[str]) -> list[str]:
  """Those without names of special tokens, which transformers reads and some tokenizers trained here take as text."""
  return [text for text in texts if not NAMES.search(text)]


def same(ours, theirs) -> None:
  """The same vocabulary. All imported tokenizers read names of special tokens; of those trained here, WordPiece."""
  assert theirs.reads_names and ours.reads_names == (ours.kind == "wordpiece")
  theirs.reads_names = ours.reads_names
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


OTHERS = {
  "t5 style": {"model_type": "unigram"},
  "albert style": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf", "byte_fallback": True},
  "llama style": {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
  },
  "gemma style": {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "user_defined_symbols": ["▁▁", "▁▁▁", "<sep>", "\n"],
  },
  "user-defined": {"model_type": "unigram", "byte_fallback": True, "user_defined_symbols": ["<sep>", "the", "▁of"]},
}
