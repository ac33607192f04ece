"""Vocabularies that need no learning: the characters of the training text, or the 256 bytes of UTF-8."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from tfm_jax.text.tokenizers.tokenizer import SPECIALS, Tokenizer, TokenizerConfig, sentinels_on_top

_REPLACEMENT = ord("\ufffd")


class CharTokenizer(Tokenizer):
  """One id per character (Unicode code point), in code point order after the special ids; others are unknown.

  Attributes:
    characters: all of them, in the order of their ids.
  """

  kind = "char"

  def __init__(self, characters: str, sentinels: int = 0):
    first = len(SPECIALS)
    self.characters = characters
    self.vocab_size = first + len(characters) + sentinels
    self.sentinel_ids = sentinels_on_top(self.vocab_size, sentinels)
    self.special_ids = np.concatenate([np.arange(first, dtype=np.int32), self.sentinel_ids[::-1]])
    codes = _codes(characters)
    self._code_of_id = np.full(self.vocab_size, _REPLACEMENT, np.uint32)
    self._code_of_id[first : first + len(codes)] = codes
    # One entry beyond the highest known code stands for all codes above it.
    self._id_of_code = np.full(int(codes.max(initial=0)) + 2, self.unk_id, np.int32)
    self._id_of_code[codes] = np.arange(first, first + len(codes))

  @classmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> "CharTokenizer":
    characters: set[str] = set()
    for text in texts:
      characters.update(text)
    return cls("".join(sorted(characters)), config.sentinels)

  @classmethod
  def restore(cls, content: Mapping[str, Any], model: bytes) -> Self:
    return cls(content["characters"], content["sentinels"])

  def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self._id_of_code[np.minimum(_codes(text), len(self._id_of_code) - 1)] for text in texts]

  def _encode_with_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    starts = [np.arange(len(text), dtype=np.int32) for text in texts]
    return [(ids, np.stack([start, start + 1], 1)) for ids, start in zip(self._encode(texts), starts, strict=True)]

  def _text(self, ids: np.ndarray) -> str:
    return self._code_of_id[ids].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

  def _piece(self, id: int) -> str:
    return SPECIALS[id] if id < len(SPECIALS) else chr(self._code_of_id[id])

  def _state(self) -> tuple[dict[str, Any], bytes]:
    return {"characters": self.characters, "sentinels": len(self.sentinel_ids)}, b""


class ByteTokenizer(Tokenizer):
  """One id per byte of UTF-8: byte b is id 5 + b, after the special ids.

  Attributes:
    names: names of the ids before that of byte 0.
    byt5: the ids are those of ByT5 in transformers: <pad> </s> <unk>, byte b is id 3 + b, and sentinels count upwards
      from <extra_id_0>.
  """

  kind = "byte"

  def __init__(self, sentinels: int = 0, byt5: bool = False):
    self.byt5 = byt5
    self.names = ("<pad>", "</s>", "<unk>") if byt5 else SPECIALS
    if byt5:
      self.pad_id, self.eos_id, self.unk_id, self.bos_id, self.mask_id = 0, 1, 2, -1, -1
    self.first = len(self.names)
    self.vocab_size = self.first + 256 + sentinels
    rising = np.arange(self.first + 256, self.vocab_size, dtype=np.int32)
    self.sentinel_ids = rising if byt5 else rising[::-1]
    self.special_ids = np.concatenate([np.arange(self.first, dtype=np.int32), rising])

  @classmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str] = ()) -> "ByteTokenizer":
    return cls(config.sentinels)

  @classmethod
  def restore(cls, content: Mapping[str, Any], model: bytes) -> Self:
    return cls(content["sentinels"], content.get("byt5", False))

  def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.first for text in texts]

  def _encode_with_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    starts = [np.repeat(np.arange(len(t), dtype=np.int32), [len(c.encode()) for c in t]) for t in texts]
    return [(ids, np.stack([start, start + 1], 1)) for ids, start in zip(self._encode(texts), starts, strict=True)]

  def _text(self, ids: np.ndarray) -> str:
    known = ids[ids >= self.first]  # every text has ids: none is unknown
    return (known - self.first).astype(np.uint8).tobytes().decode("utf-8", "replace")

  def _piece(self, id: int) -> str:
    byte = id - self.first
    if byte < 0:
      return self.names[id]
    return chr(byte) if 32 < byte < 127 else f"<0x{byte:02X}>"

  def _state(self) -> tuple[dict[str, Any], bytes]:
    layout = {"byt5": True} if self.byt5 else {}
    return {"sentinels": len(self.sentinel_ids), **layout}, b""


def _codes(text: str) -> np.ndarray:
  """The code points of `text`, uint32."""
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
