"""What a tokenizer is: text <-> ids, the special ids, and a directory that it can be saved to."""

import abc
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from etils import epath

from tfm_jax.errors import UserError

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
"""The first ids of every vocabulary that is trained here, in order; WordPiece has its own names for them."""


@dataclass(frozen=True)
class TokenizerConfig:
  """The tokenizer: which kind is trained, or which files are read."""

  # sentencepiece, wordpiece (BERT), gpt2 (byte-level BPE), char or byte; huggingface: any other tokenizer.json, only by
  # path. Empty: the kind of the files at path, or else sentencepiece
  kind: str = ""
  algorithm: str = "unigram"  # of sentencepiece: unigram or bpe
  # The most ids to train, with special ids, bytes and sentinels: a small text gives fewer. Not used by char and byte
  vocab_size: int = 0
  # A folder with Hugging Face tokenizer files, a tokenizer.json, a vocab.txt, a sentencepiece .model, or a
  # saved tokenizer's directory; empty: train one on the training text
  path: str = ""
  sentinels: int = 0  # ids reserved at the top of the vocabulary for span corruption; <extra_id_0> is the highest
  lowercase: bool = True  # wordpiece, trained or from a bare vocab.txt: text becomes lower case and loses accents


class Tokenizer(abc.ABC):
  """Text <-> int32 ids. An id of -1 means that the vocabulary has no such token.

  Attributes:
    kind: as in the config.
    vocab_size: number of ids, not padded.
    pad_id, unk_id, bos_id, eos_id, mask_id: 0 to 4 in vocabularies trained here.
    sentinel_ids: int32, in order of use (<extra_id_0> first).
    special_ids: int32, sorted: every id that stands for no text, and the unknown one. Never masked, never
      drawn at random.
    reads_names: whether the name of a special token in a text, such as "[MASK]", is encoded as that token. This is so
      for tokenizers read from Hugging Face files and for WordPiece trained here, as in transformers; elsewhere such a
      name is text like any other.
    source: the tokenizer.json that it was read from, if that file alone decides the ids: an export writes it unchanged.
    chat_template: how conversations are written, in Jinja, as in transformers; empty: there is none.
    training_version: part of the key of trained tokenizers in the cache.
  """

  kind: ClassVar[str]
  model_file: ClassVar[str] = ""  # in a saved directory, beside tokenizer.json
  training_version: ClassVar[tuple[int, ...]] = ()
  vocab_size: int
  pad_id: int = 0
  unk_id: int = 1
  bos_id: int = 2
  eos_id: int = 3
  mask_id: int = 4
  sentinel_ids: np.ndarray
  special_ids: np.ndarray
  reads_names: bool = False
  source: bytes = b""
  chat_template: str = ""

  def encode(self, text: str, reads_names: bool | None = None) -> np.ndarray:
    """The ids of `text`, int32 [n], with no special id added.

    reads_names: whether names of special tokens in the text become these tokens; None: as the tokenizer does it.
    """
    named = self.reads_names if reads_names is None else reads_names
    return (self._encode_named if named else self._encode)([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """`encode` of each text."""
    return self._encode_named(texts) if self.reads_names else self._encode(texts)

  def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The ids of each text [n], and the characters that each stands for: int32 [n, 2], start and end in the text.

    Spans are those of the original text, however the tokenizer normalises it, without white space around a piece.
    Names of special tokens are text like any other.
    """
    encoded = self._encode_with_spans(texts)
    return [(ids, _without_space(text, spans)) for text, (ids, spans) in zip(texts, encoded, strict=True)]

  def _encode_named(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, in which the name of a special token is that token."""
    names = {self.token(id): np.array([id], np.int32) for id in self.special_ids.tolist()}
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
    cut = [pattern.split(text) for text in texts]  # text, name, text, name, ..., text
    between = iter(self._encode([part for parts in cut for part in parts[::2]]))
    return [np.concatenate([names[part] if i % 2 else next(between) for i, part in enumerate(parts)]) for parts in cut]

  def decode(self, ids: Iterable[int] | np.ndarray) -> str:
    """The text of `ids`. Special ids are dropped, except the unknown one."""
    array: np.ndarray = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int32)
    if np.any((array < 0) | (array >= self.vocab_size)):
      raise ValueError(f"ids must lie in [0, {self.vocab_size}), not {np.min(array)} to {np.max(array)}")
    return self._text(array[~np.isin(array, self.special_ids) | (array == self.unk_id)])

  def token(self, id: int) -> str:
    """The readable piece of one id."""
    if not 0 <= id < self.vocab_size:
      raise ValueError(f"ids must lie in [0, {self.vocab_size}), not {id}")
    sentinel = np.flatnonzero(self.sentinel_ids == id)
    return f"<extra_id_{sentinel[0]}>" if sentinel.size else self._piece(int(id))

  @property
  def fingerprint(self) -> str:
    """sha256 over everything that decides the ids of a text."""
    description, model = self._description()
    return hashlib.sha256(json.dumps([self.kind, description], sort_keys=True).encode() + model).hexdigest()

  def _description(self) -> tuple[dict[str, Any], bytes]:
    description, model = self._state()
    return description | ({"reads_names": True} if self.reads_names else {}), model

  def save(self, directory: epath.PathLike) -> None:
    """Writes tokenizer.json, and the model's own file beside it, for `load_tokenizer`."""
    path = epath.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    description, model = self._description()
    if self.model_file:
      (path / self.model_file).write_bytes(model)
    ids = {"vocab_size": self.vocab_size, "pad_id": self.pad_id, "unk_id": self.unk_id, "bos_id": self.bos_id}
    ids |= {"eos_id": self.eos_id, "mask_id": self.mask_id, "sentinel_ids": self.sentinel_ids.tolist()}
    content = {"kind": self.kind, **description, **ids, "fingerprint": self.fingerprint}
    if self.source:
      (path / SOURCE_FILE).write_bytes(self.source)
      content["source_sha256"] = hashlib.sha256(self.source).hexdigest()
    if self.chat_template:
      (path / CHAT_FILE).write_bytes(self.chat_template.encode())
    (path / JSON_FILE).write_text(json.dumps(content, indent=2) + "\n")

  def _settings(self) -> dict[str, Any]:
    """The attributes beside `_state`, for copies in other processes."""
    return {"reads_names": self.reads_names, "source": self.source, "chat_template": self.chat_template}

  def with_sentinels(self, count: int) -> Self:
    """The same vocabulary with `count` sentinels on top. Only for kinds that store the number of sentinels."""
    description, model = self._state()
    return type(self).restore(description | {"sentinels": count}, model)

  @classmethod
  @abc.abstractmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> "Tokenizer":
    """A tokenizer of this kind, trained on the texts; UserError if they are too few or the kind is only read."""

  @classmethod
  @abc.abstractmethod
  def restore(cls, content: Mapping[str, Any], model: bytes) -> Self:
    """The tokenizer from the content of its tokenizer.json and the model file beside it."""

  @abc.abstractmethod
  def _state(self) -> tuple[dict[str, Any], bytes]:
    """The kind's own entries of `tokenizer.json`, and the bytes of the model file (b"" if the kind has none)."""

  @abc.abstractmethod
  def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, in which names of special tokens are text like any other."""

  def _encode_with_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """See `encode_with_spans`; spans may include white space. A kind without it serves no task of tags or answers."""
    raise UserError(f"tokenizer.kind={self.kind} does not tell which characters its tokens stand for")

  @abc.abstractmethod
  def _text(self, ids: np.ndarray) -> str:
    """The text of `ids`, all in range and none special but the unknown one."""

  @abc.abstractmethod
  def _piece(self, id: int) -> str:
    """The readable piece of an id that is in range and not a sentinel."""


JSON_FILE = "tokenizer.json"
SOURCE_FILE = "source.json"
CHAT_FILE = "chat_template.jinja"


def sentinel_number(token: str) -> int | None:
  """N if the token is <extra_id_N> (T5 writes a space before it), otherwise None."""
  match = re.fullmatch(r"[▁ ]?<extra_id_([0-9]{1,9})>", token)
  return int(match[1]) if match else None


def sentinels_on_top(size: int, count: int) -> np.ndarray:
  """The highest `count` ids of a vocabulary of `size` ids, highest first, int32."""
  return np.arange(size - 1, size - 1 - count, -1, dtype=np.int32)


def _without_space(text: str, spans: np.ndarray) -> np.ndarray:
  """Spans without white space at their ends; spans of nothing else stay."""
  space = np.array([letter.isspace() for letter in text], bool)
  # Number of the next (last) character that is no space, for each place.
  places = np.arange(len(text))
  following = np.minimum.accumulate(np.where(space, len(text), places)[::-1])[::-1]
  preceding = np.maximum.accumulate(np.where(space, -1, places))
  start, end = spans[:, 0], spans[:, 1]
  inner = np.flatnonzero(end > start)
  first, last = following[start[inner]], preceding[end[inner] - 1]
  real = first <= last
  trimmed = spans.copy()
  trimmed[inner[real]] = np.stack([first, last + 1], 1)[real]
  return trimmed
