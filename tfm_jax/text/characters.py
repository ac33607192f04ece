"""Vocabularies without learning: the characters of the training text, or the 256 bytes of UTF-8."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from tfm_jax.text.tokenizer import SPECIALS, Tokenizer, TokenizerConfig, check_found_size, sentinels_on_top

_REPLACEMENT = ord("\ufffd")


class CharTokenizer(Tokenizer):
  """One id a character (Unicode code point), in their order after the special ids; others are unknown."""

  kind = "char"

  def __init__(self, characters: str, sentinels: int = 0):
    first = len(SPECIALS)
    self._characters = characters
    self.vocab_size = first + len(characters) + sentinels
    self.sentinel_ids = sentinels_on_top(self.vocab_size, sentinels)
    self.special_ids = np.concatenate([np.arange(first, dtype=np.int32), self.sentinel_ids[::-1]])
    codes = _codes(characters)
    self._code_of_id = np.full(self.vocab_size, _REPLACEMENT, np.uint32)
    self._code_of_id[first : first + len(codes)] = codes
    # One row beyond the highest known code serves all the codes above it.
    self._id_of_code = np.full(int(codes.max(initial=0)) + 2, self.unk_id, np.int32)
    self._id_of_code[codes] = np.arange(first, first + len(codes))

  @classmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> "CharTokenizer":
    characters: set[str] = set()
    for text in texts:
      characters.update(text)
    tokenizer = cls("".join(sorted(characters)), config.sentinels)
    check_found_size(config, tokenizer.vocab_size)
    return tokenizer

  def encode(self, text: str) -> np.ndarray:
    return self._id_of_code[np.minimum(_codes(text), len(self._id_of_code) - 1)]

  def _text(self, ids: np.ndarray) -> str:
    return self._code_of_id[ids].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

  def _piece(self, id: int) -> str:
    return SPECIALS[id] if id < len(SPECIALS) else chr(self._code_of_id[id])

  def _state(self) -> tuple[dict[str, Any], bytes]:
    return {"characters": self._characters, "sentinels": len(self.sentinel_ids)}, b""


class ByteTokenizer(Tokenizer):
  """One id a byte of UTF-8: byte b is id 5 + b, after the special ids."""

  kind = "byte"

  def __init__(self, sentinels: int = 0):
    first = len(SPECIALS)
    self.vocab_size = first + 256 + sentinels
    self.sentinel_ids = sentinels_on_top(self.vocab_size, sentinels)
    self.special_ids = np.concatenate([np.arange(first, dtype=np.int32), self.sentinel_ids[::-1]])

  @classmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str] = ()) -> "ByteTokenizer":
    tokenizer = cls(config.sentinels)
    check_found_size(config, tokenizer.vocab_size)
    return tokenizer

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + len(SPECIALS)

  def _text(self, ids: np.ndarray) -> str:
    known = ids[ids >= len(SPECIALS)]  # no text is unknown here
    return (known - len(SPECIALS)).astype(np.uint8).tobytes().decode("utf-8", "replace")

  def _piece(self, id: int) -> str:
    byte = id - len(SPECIALS)
    if byte < 0:
      return SPECIALS[id]
    return chr(byte) if 32 < byte < 127 else f"<0x{byte:02X}>"

  def _state(self) -> tuple[dict[str, Any], bytes]:
    return {"sentinels": len(self.sentinel_ids)}, b""


def _codes(text: str) -> np.ndarray:
  """The code points of `text`, uint32."""
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
