"""The tokenizers of BERT and GPT-2 in plain Python, as their papers' code has them, and texts to compare on."""

import gzip
import itertools
import json
import os
import re
import unicodedata
from pathlib import Path

import pytest
from etils import epath


def data_folder() -> Path:
  folder = os.environ.get("TFM_DATA_DIR")
  if not folder or not (Path(folder) / "vocab").exists():
    pytest.skip("TFM_DATA_DIR names no folder with vocab/")
  return Path(folder)


def real_lines(name: str) -> list[str]:
  with gzip.open(data_folder() / name, "rt", encoding="utf-8", newline="") as file:
    return file.read().split("\n")


def put(folder: Path, **files) -> epath.Path:
  """Writes files, `__` in a name for its dot: bytes and text as they are, anything else as JSON."""
  for name, content in files.items():
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    (folder / name.replace("__", ".")).write_bytes(text.encode() if isinstance(text, str) else text)
  return epath.Path(folder)


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
