"""What each id of a tokenizer is of a text: how it joins its neighbours into words, and whether it ends a sentence."""

import re

import numpy as np

from tfm_jax.objectives.words import CLOSES, ENDS_SENTENCE, INSIDE, JOINS, OPEN, UNSPACED
from tfm_jax.text.tokenizers.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_ENDS = tuple(".!?。！？")
_CLOSING = "\"'”’)]»」』）"
_SCRIPTS = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


def piece_kinds(tokenizer: Tokenizer) -> bytes:
  """`Vocabulary.pieces` of a tokenizer: one byte of the bits of `objectives.words` per id; 0 for special ids."""
  kinds = np.zeros(tokenizer.vocab_size, np.uint8)
  special = np.zeros(tokenizer.vocab_size, bool)
  special[tokenizer.special_ids] = True
  pieces = {int(id): tokenizer.token(int(id)) for id in np.flatnonzero(~special)}
  # Byte-level BPE spells bytes by printable letters, and a space by one that begins no piece of other tokenizers.
  letters = _byte_letters() if any(piece.startswith("Ġ") for piece in pieces.values()) else {}
  hashes = any(piece.startswith("##") and len(piece) > 2 for piece in pieces.values())
  for id, piece in pieces.items():
    if letters and all(letter in letters for letter in piece):
      kinds[id] = _of_bytes(bytes(letters[letter] for letter in piece))
    elif match := _BYTE.fullmatch(piece):
      kinds[id] = _of_bytes(bytes([int(match[1], 16)]))
    elif hashes:
      inside = piece.startswith("##") and len(piece) > 2
      kinds[id] = _of_text(piece[2:], INSIDE) if inside else _of_text(piece) & ~JOINS
    else:
      kinds[id] = _of_text(piece.replace("▁", " "))
  return kinds.tobytes()


def _of_text(text: str, always: int = 0) -> int:
  """The bits of a piece of text."""
  if not text:
    return always
  end = text.rstrip(" ")
  kind = always
  if _in_word(text[0]):
    kind |= JOINS
  if _in_word(text[-1]):
    kind |= OPEN
  if len(text.strip()) == 1 and _unspaced(text.strip()):
    kind |= UNSPACED
  if end.rstrip(_CLOSING).endswith(_ENDS) or "\n" in text:
    kind |= ENDS_SENTENCE
  if end and not end.strip(_CLOSING):
    kind |= CLOSES
  return kind


def _of_bytes(data: bytes) -> int:
  """The bits of a piece that may begin or end inside a character. A character that is cut counts as a letter."""
  text = data.decode("utf-8", "ignore")
  if len(text.encode()) == len(data):
    return _of_text(text)
  kind = _of_text(text) & ENDS_SENTENCE
  if 0x80 <= data[0] < 0xC0:
    kind |= INSIDE
  elif _in_word(text[0]) if data[0] < 0x80 else data[0] < 0xE3:  # 0xE3: characters of scripts without spaces
    kind |= JOINS
  return kind | (OPEN if data[-1] >= 0x80 or _in_word(chr(data[-1])) else 0)


def _in_word(letter: str) -> bool:
  return letter.isalnum() and not _unspaced(letter)


def _unspaced(letter: str) -> bool:
  """Whether a character is of a script that is written without spaces."""
  return any(low <= ord(letter) <= high for low, high in _SCRIPTS)


def _byte_letters() -> dict[str, int]:
  """The letters by which byte-level BPE (Radford et al. 2019) spells bytes."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
