"""WordPiece (BERT) and byte-level BPE (GPT-2) by the `tokenizers` library, and their training."""

import collections
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import tokenizers as library
from tokenizers import models, normalizers, pre_tokenizers, trainers

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.subwords import sample
from tfm_jax.text.tokenizers.tokenizer import SPECIALS, Tokenizer, TokenizerConfig, sentinel_number

ROLES = ("pad", "unk", "bos", "eos", "mask")
WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_CHUNK = 1 << 16  # characters per text that the trainers are given
_COVERAGE = 0.9999  # share of the text that the characters of a trained WordPiece vocabulary cover

T = TypeVar("T", bound="LibraryTokenizer")


class LibraryTokenizer(Tokenizer):
  """Any tokenizer of the library, with the roles of its special tokens. Ids without a token count as special.

  Attributes:
    model: the library's own JSON.
    roles: pad, unk, bos, eos, mask -> the token that has this role, where one has.
  """

  kind = "huggingface"
  model_file = "model.json"

  def __init__(self, model: str, roles: Mapping[str, str]):
    self.model, self.roles = model, dict(roles)
    self._library = parsed(model)
    ids = self._library.get_vocab(with_added_tokens=True)
    self.vocab_size = max(ids.values()) + 1
    role_ids = (ids.get(self.roles.get(role, ""), -1) for role in ROLES)
    self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.mask_id = role_ids
    numbered = {n: id for n, id in ((sentinel_number(token), id) for token, id in ids.items()) if n is not None}
    self.sentinel_ids = np.array([numbered[n] for n in sorted(numbered)], np.int32)
    special = np.ones(self.vocab_size, bool)
    special[list(ids.values())] = False
    added = self._library.get_added_tokens_decoder()
    special[[id for id, token in added.items() if token.special]] = True
    special[[ids[token] for token in self.roles.values() if token in ids]] = True
    special[self.sentinel_ids] = True
    self.special_ids = np.flatnonzero(special).astype(np.int32)

  @classmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> "LibraryTokenizer":
    raise UserError(f"tokenizer.kind={config.kind} is read from files: name them in tokenizer.path, or leave it empty")

  @classmethod
  def restore(cls, content: Mapping[str, Any], model: bytes) -> Self:
    return cls(model.decode(), content["special_tokens"])

  def _encode_named(self, texts: Sequence[str]) -> list[np.ndarray]:
    return self._by_library(texts, names_are_text=False)  # some names take the space beside them along

  def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return self._by_library(texts, names_are_text=True)

  def _encode_with_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    encodings = self._encodings(texts, names_are_text=True, spans=True)
    return [(np.array(e.ids, np.int32), np.array(e.offsets, np.int32).reshape(-1, 2)) for e in encodings]

  def _by_library(self, texts: Sequence[str], names_are_text: bool) -> list[np.ndarray]:
    return [np.array(encoding.ids, np.int32) for encoding in self._encodings(texts, names_are_text)]

  def _encodings(self, texts: Sequence[str], names_are_text: bool, spans: bool = False) -> list[library.Encoding]:
    self._library.encode_special_tokens = names_are_text
    encode = self._library.encode_batch if spans else self._library.encode_batch_fast
    try:
      return encode(list(texts), add_special_tokens=False)
    except Exception as error:  # the library raises this class for a text that its model has no ids for
      raise UserError(f"the tokenizer cannot encode this text: {' '.join(str(error).split())}") from error

  def _text(self, ids: np.ndarray) -> str:
    return self._library.decode(ids.tolist(), skip_special_tokens=False)

  def _piece(self, id: int) -> str:
    token = self._library.id_to_token(id)
    return f"<no token {id}>" if token is None else token

  def _state(self) -> tuple[dict[str, Any], bytes]:
    return {"special_tokens": self.roles}, self.model.encode()

  def __reduce__(self) -> tuple[Any, ...]:  # for worker processes
    return type(self), (self.model, self.roles), self._settings()


class WordPieceTokenizer(LibraryTokenizer):
  """WordPiece (Schuster & Nakajima 2012) over BERT's words: decoding does not restore the original spaces."""

  kind = "wordpiece"
  training_version = (2,)  # 1 did not read names of special tokens

  @classmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> "WordPieceTokenizer":
    """Learned by pair merges as in BPE, because the library's own WordPiece trainer numbers pieces at random."""
    content = wordpiece_content({}, "[UNK]", config.lowercase)
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    words = pre_tokenizers.BertPreTokenizer()
    chunks = sample(_chunks(texts))
    letters = _letters(chunks, normalizer)
    split = {letter: words.pre_tokenize_str(normalizer.normalize_str(f"a{letter}a")) for letter in letters}
    inner = ["##" + letter for letter in letters if len(split[letter]) == 1]  # not punctuation and Chinese characters
    first = [*WORDPIECE_SPECIALS, *letters, *inner]
    learner = library.Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = normalizer, words
    options = {"continuing_subword_prefix": "##", "initial_alphabet": letters, "limit_alphabet": len(letters)}
    content["model"]["vocab"] = _train(learner, config, chunks, first, **options)["vocab"]
    roles = dict(zip(ROLES, WORDPIECE_SPECIALS, strict=True))
    tokenizer = finished(cls, parsed(json.dumps(content)), roles, config.sentinels)
    tokenizer.reads_names = True
    return tokenizer


class ByteLevelTokenizer(LibraryTokenizer):
  """Byte-level BPE (Radford et al. 2019): every text has ids, and decoding restores it exactly."""

  kind = "gpt2"

  @classmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> "ByteLevelTokenizer":
    learner = library.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    model = _train(learner, config, sample(_chunks(texts)), first)
    content = byte_level_content(model["vocab"], model["merges"])
    return finished(cls, parsed(json.dumps(content)), dict(zip(ROLES, SPECIALS, strict=True)), config.sentinels)


def parsed(model: str) -> library.Tokenizer:
  """The library's tokenizer from its JSON. Raises ValueError, where the library raises Exception or panics."""
  try:
    return library.Tokenizer.from_str(model)
  except BaseException as error:
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
      raise ValueError(str(error)) from error
    raise


def finished(cls: type[T], tokenizer: library.Tokenizer, roles: Mapping[str, str], sentinels: int) -> T:
  """The tokenizer with its special tokens marked as such, and sentinels on top if it has none."""
  ids = tokenizer.get_vocab(with_added_tokens=True)
  marked = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
  for token in sorted(set(roles.values()) - marked, key=ids.__getitem__):
    # <mask> replaces a word together with the space before it, as in RoBERTa.
    strips = token == "<mask>" and cls is ByteLevelTokenizer
    tokenizer.add_special_tokens([library.AddedToken(token, lstrip=strips, normalized=False)])
  add_sentinels(tokenizer, sentinels)
  return cls(tokenizer.to_str(), roles)


def add_sentinels(tokenizer: library.Tokenizer, count: int) -> None:
  """Puts sentinels on top of a vocabulary that has none."""
  ids = tokenizer.get_vocab(with_added_tokens=True)
  if count and not any(sentinel_number(token) is not None for token in ids):
    first = max(ids.values()) + 1
    for id in range(first, first + count):
      name = f"<extra_id_{first + count - 1 - id}>"
      tokenizer.add_special_tokens([name])
      if tokenizer.token_to_id(name) != id:
        raise UserError(f"tokenizer.sentinels={count}: this vocabulary has unused ids, so none can be added")


def wordpiece_content(vocab: dict[str, int], unk: str, lowercase: bool) -> dict[str, Any]:
  """The content of BERT's tokenizer.json."""
  normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
  model = {"type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
  return {
    "normalizer": normalizer | {"strip_accents": None, "lowercase": lowercase},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": model | {"vocab": vocab},
  }


def byte_level_content(vocab: dict[str, int], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
  """The content of GPT-2's tokenizer.json."""
  part = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
  model = {"type": "BPE", "continuing_subword_prefix": "", "end_of_word_suffix": "", "vocab": vocab, "merges": merges}
  return {"pre_tokenizer": part, "decoder": part, "model": model}


def _train(
  learner: library.Tokenizer, config: TokenizerConfig, chunks: list[str], first: list[str], **options: Any
) -> dict[str, Any]:
  """`vocab` and `merges` learned on top of the `first` ids; fewer than asked for if the text has no more pairs."""
  smallest = len(first) + config.sentinels
  setting = f"tokenizer.vocab_size={config.vocab_size}"
  if not any(chunk.strip() for chunk in chunks):
    raise UserError("there is no text to train a tokenizer on")
  if config.vocab_size < smallest:
    raise UserError(f"{setting}: at least {smallest} are needed for special ids, {config.kind}'s letters and sentinels")
  size = config.vocab_size - config.sentinels
  trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=first, show_progress=False, **options)
  learner.train_from_iterator(chunks, trainer)
  return json.loads(learner.to_str())["model"]


def _chunks(texts: Iterable[str]) -> Iterator[str]:
  """The texts, long ones cut after line ends."""
  for text in texts:
    begin = 0
    while begin < len(text):
      end = begin + _CHUNK
      if end < len(text):
        end = text.rfind("\n", begin, end) + 1 or end
      yield text[begin:end]
      begin = end


def _letters(chunks: list[str], normalizer: normalizers.Normalizer) -> list[str]:
  """The most frequent characters that together cover `_COVERAGE` of the text, sorted."""
  counts: collections.Counter[str] = collections.Counter()
  for chunk in chunks:
    counts.update(normalizer.normalize_str(chunk))
  ranked = sorted((-count, letter) for letter, count in counts.items() if not letter.isspace())
  reached = itertools.accumulate(-count for count, _ in ranked)
  limit = _COVERAGE * -sum(count for count, _ in ranked)
  return sorted(letter for (count, letter), total in zip(ranked, reached, strict=True) if total + count < limit)
