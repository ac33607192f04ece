"""Tokenizers of the `tokenizers` library: WordPiece (BERT) and byte-level BPE (GPT-2 and its kin), read or trained.

The ids that files of others give to a text are those that transformers gives without special tokens.
"""

import collections
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import tokenizers as library
from etils import epath
from tokenizers import models, normalizers, pre_tokenizers, trainers

from tfm_jax.errors import UserError
from tfm_jax.text.subwords import sample
from tfm_jax.text.tokenizer import SPECIALS, Tokenizer, TokenizerConfig, sentinel_number

# A part that a token plays: its keys in Hugging Face's files, and its usual names where they do not say.
ROLES = {
  "pad": (("pad_token",), ("[PAD]", "<pad>")),
  "unk": (("unk_token",), ("[UNK]", "<unk>")),
  "bos": (("bos_token", "cls_token"), ("[CLS]", "<s>", "<|begin_of_text|>", "<|endoftext|>")),
  "eos": (("eos_token", "sep_token"), ("[SEP]", "</s>", "<|end_of_text|>", "<|endoftext|>")),
  "mask": (("mask_token",), ("[MASK]", "<mask>")),
}
WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_LARGEST_ID = 1 << 22  # beyond is damage, not a vocabulary
_CHUNK = 1 << 16  # characters that the trainers get at once
_COVERAGE = 0.9999  # of the text, by the characters of a trained WordPiece vocabulary

Read = TypeVar("Read", bound="LibraryTokenizer")


class LibraryTokenizer(Tokenizer):
  """A tokenizer of the library, with the parts that its special tokens play; ids that no token has are special.

  Attributes:
    model: the library's own JSON.
    roles: pad, unk, bos, eos, mask -> the token, where there is one.
  """

  model_file = "model.json"

  def __init__(self, model: str, roles: Mapping[str, str]):
    self.model, self.roles = model, dict(roles)
    self._library = _parsed(model)
    ids = self._library.get_vocab(with_added_tokens=True)
    self.vocab_size = max(ids.values()) + 1
    parts = (ids.get(self.roles.get(role, ""), -1) for role in ROLES)
    self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.mask_id = parts
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
  def restore(cls, content: Mapping[str, Any], model: bytes) -> Self:
    return cls(model.decode(), content["special_tokens"])

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return self._encode(texts)  # it reads names itself: some take a space along

  def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    self._library.encode_special_tokens = not self.reads_names
    found = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in found]

  def _text(self, ids: np.ndarray) -> str:
    return self._library.decode(ids.tolist(), skip_special_tokens=False)

  def _piece(self, id: int) -> str:
    token = self._library.id_to_token(id)
    return f"<no token {id}>" if token is None else token

  def _state(self) -> tuple[dict[str, Any], bytes]:
    return {"special_tokens": self.roles}, self.model.encode()

  def __reduce__(self) -> tuple[Any, ...]:  # it travels to worker processes
    return type(self), (self.model, self.roles), {"reads_names": self.reads_names}


class WordPieceTokenizer(LibraryTokenizer):
  """WordPiece (Schuster & Nakajima 2012) over BERT's words: what a text's spaces were is lost."""

  kind = "wordpiece"

  @classmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> "WordPieceTokenizer":
    """Learned by pair merges, as the library does it; its own trainer numbers the pieces by chance."""
    content = _wordpiece({}, "[UNK]", config.lowercase)
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    words = pre_tokenizers.BertPreTokenizer()
    chunks = sample(_chunks(texts))
    letters = _letters(chunks, normalizer)
    around = {letter: words.pre_tokenize_str(normalizer.normalize_str(f"a{letter}a")) for letter in letters}
    inner = ["##" + letter for letter in letters if len(around[letter]) == 1]  # punctuation and Chinese stand alone
    first = [*WORDPIECE_SPECIALS, *letters, *inner]
    learner = library.Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = normalizer, words
    options = {"continuing_subword_prefix": "##", "initial_alphabet": letters, "limit_alphabet": len(letters)}
    found = _train(learner, config, chunks, first, **options)
    content["model"]["vocab"] = found["vocab"]
    return _made(cls, _library(content), dict(zip(ROLES, WORDPIECE_SPECIALS, strict=True)), config.sentinels)


class ByteLevelTokenizer(LibraryTokenizer):
  """Byte-level BPE (Radford et al. 2019): every text has ids, and comes back from them."""

  kind = "gpt2"

  @classmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> "ByteLevelTokenizer":
    learner = library.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    found = _train(learner, config, sample(_chunks(texts)), first)
    content = _byte_level(found["vocab"], found["merges"])
    return _made(cls, _library(content), dict(zip(ROLES, SPECIALS, strict=True)), config.sentinels)


def from_files(path: epath.Path, lowercase: bool = True, sentinels: int = 0) -> LibraryTokenizer | None:
  """The tokenizer of a vocab.txt, a tokenizer.json, or a folder with Hugging Face's files; None: it has none.

  A tokenizer_config.json and a special_tokens_map.json beside the files stand.

  Args:
    lowercase: of a bare vocab.txt.
    sentinels: added on top where the vocabulary has none.

  Raises:
    UserError: files that are missing, damaged, or of another algorithm.
  """
  folder = path if path.is_dir() else path.parent
  if path.is_dir():
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "encoder.json")
    named = next((folder / name for name in names if (folder / name).exists()), None)
    if named is None:
      return None
    path = named
  settings = _settings(folder)
  owner = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
  try:
    if path.name in _MERGES:
      content = _byte_level_files(path, settings, owner)
    elif path.suffix == ".json":
      content = _configured(_object(path), settings, owner)
    else:
      content = _vocab_txt(path, settings, owner, lowercase)
    tokenizer, roles = _read(content, settings, path)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    reason = str(error).splitlines()[0] if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
    raise UserError(f"{path} is damaged: {reason}") from error
  kind = WordPieceTokenizer if isinstance(tokenizer.model, models.WordPiece) else ByteLevelTokenizer
  made = _made(kind, tokenizer, roles, sentinels)
  made.reads_names = True
  return made


# Reading.

_MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
# Classes of transformers whose bare vocabulary files mean what those of BERT and GPT-2 mean.
_BERT_LIKE = (
  "",
  "BertTokenizer",
  "DistilBertTokenizer",
  "ElectraTokenizer",
  "MobileBertTokenizer",
  "LayoutLMTokenizer",
)
_NO_MODELS = ("PreTrainedTokenizer", "TokenizersBackend")
_GPT2_LIKE = ("", "GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer")


def _settings(folder: epath.Path) -> dict[str, Any]:
  """tokenizer_config.json over special_tokens_map.json. What they would execute is not looked at."""
  found: dict[str, Any] = {}
  for name in ("special_tokens_map.json", "tokenizer_config.json"):
    if (folder / name).exists():
      found |= _object(folder / name)
  return found


def _object(path: epath.Path) -> dict[str, Any]:
  try:
    content = json.loads(_text(path))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} is damaged: it holds no JSON object")
  return content


def _text(path: epath.Path) -> str:
  try:
    return path.read_bytes().decode()
  except FileNotFoundError as error:
    raise UserError(f"{path}: no such file or directory") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 text: it is no vocabulary of this kind") from error


def _lines(path: epath.Path) -> list[str]:
  """The lines of a vocabulary: only line feeds end them, other line separators are tokens."""
  lines = _text(path).replace("\r\n", "\n").split("\n")
  return lines[:-1] if lines[-1] == "" else lines


def _vocab_txt(path: epath.Path, settings: dict[str, Any], owner: str, lowercase: bool) -> dict[str, Any]:
  if owner not in (*_BERT_LIKE, *_NO_MODELS):
    raise UserError(f"{path}: the vocab.txt of a {owner} is not read; a tokenizer.json beside it would be")
  vocab = {token: id for id, token in enumerate(_lines(path))}
  unk = _roles(settings, vocab).get("unk", "")
  if not unk:
    raise UserError(f"{path} has no [UNK]: it is no WordPiece vocabulary")
  content = _wordpiece(vocab, unk, lowercase)
  _override(content["normalizer"], settings, _BERT_KEYS)
  return content


def _byte_level_files(path: epath.Path, settings: dict[str, Any], owner: str) -> dict[str, Any]:
  if owner not in (*_GPT2_LIKE, *_NO_MODELS):
    raise UserError(f"{path}: the files of a {owner} are not read; a tokenizer.json beside them would be")
  vocab = _object(path)
  rows = _lines(path.parent / _MERGES[path.name])
  if not set(pre_tokenizers.ByteLevel.alphabet()) <= vocab.keys() or any(token.endswith("</w>") for token in vocab):
    raise UserError(f"{path} is no vocabulary of byte-level BPE: only that one and WordPiece are read from their files")
  content = _byte_level(vocab, [row.split(" ") for row in rows if row and not row.startswith("#version")])
  _override(content["pre_tokenizer"], settings, {"add_prefix_space": "add_prefix_space"})
  return content


_BERT_KEYS = {
  "do_lower_case": "lowercase",
  "strip_accents": "strip_accents",
  "tokenize_chinese_chars": "handle_chinese_chars",
}


def _configured(content: dict[str, Any], settings: dict[str, Any], owner: str) -> dict[str, Any]:
  """A tokenizer.json with the settings that a class of transformers puts above it."""
  for part, name, owners, keys in (
    ("normalizer", "BertNormalizer", _BERT_LIKE, _BERT_KEYS),
    ("pre_tokenizer", "ByteLevel", _GPT2_LIKE, {"add_prefix_space": "add_prefix_space"}),
  ):
    if (content.get(part) or {}).get("type") == name and owner in owners:
      _override(content[part], settings, keys)
  return content


def _override(part: dict[str, Any], settings: dict[str, Any], keys: dict[str, str]) -> None:
  for key, name in keys.items():
    if settings.get(key) is not None:
      part[name] = settings[key]


def _roles(settings: dict[str, Any], vocab: Mapping[str, int]) -> dict[str, str]:
  """Role -> token of the vocabulary: as the files say, or else by the usual names."""
  found: dict[str, str] = {}
  for role, (keys, usual) in ROLES.items():
    said = [settings[key] for key in keys if key in settings]
    tokens = [token["content"] if isinstance(token, dict) else token for token in said]
    for token in (token for token in tokens if token) if said else usual:
      if token in vocab:
        found[role] = token
        break
  return found


def _read(
  content: dict[str, Any], settings: dict[str, Any], path: epath.Path
) -> tuple[library.Tokenizer, dict[str, str]]:
  """The tokenizer of a tokenizer.json's content, and its roles."""
  content["truncation"] = content["padding"] = content["post_processor"] = None  # what is around a text is not ours
  if content["model"].get("dropout"):
    content["model"]["dropout"] = None  # the same text has the same ids
  tokenizer = _library(content)
  wrong = [t["content"] for t in content["added_tokens"] if tokenizer.token_to_id(t["content"]) != t["id"]]
  if wrong:
    raise UserError(f"{path}: the library gives {wrong[0]!r} another id than the file says")
  ids = tokenizer.get_vocab(with_added_tokens=True)
  if len(set(ids.values())) < len(ids) or max(ids.values(), default=_LARGEST_ID) >= _LARGEST_ID:
    raise UserError(f"{path} is damaged: it has no tokens, or some share an id, or an id is {_LARGEST_ID} or more")
  roles = _roles(settings, ids)
  if isinstance(tokenizer.model, models.WordPiece):
    roles["unk"] = tokenizer.model.unk_token
    if roles["unk"] not in ids:
      raise UserError(f"{path} is damaged: its unknown token {roles['unk']!r} is not in its vocabulary")
    return tokenizer, roles
  parts = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
  if not isinstance(tokenizer.model, models.BPE) or '"ByteLevel"' not in parts:
    raise UserError(
      f"{path} is a {type(tokenizer.model).__name__} tokenizer without byte level: of a tokenizer.json, WordPiece and "
      "byte-level BPE are read; for others bring the sentencepiece model"
    )
  if roles.get("unk") in (roles.get("bos"), roles.get("eos")):
    roles.pop("unk", None)  # GPT-2 names one for form's sake
  return tokenizer, roles


def _library(content: dict[str, Any]) -> library.Tokenizer:
  return _parsed(json.dumps(content))


def _parsed(model: str) -> library.Tokenizer:
  """Raises ValueError: the library raises Exception itself, and panics beside."""
  try:
    return library.Tokenizer.from_str(model)
  except BaseException as error:
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
      raise ValueError(str(error)) from error
    raise


def _made(cls: type[Read], tokenizer: library.Tokenizer, roles: Mapping[str, str], sentinels: int) -> Read:
  """The tokenizer with its special tokens marked as such, and sentinels on top if it has none."""
  ids = tokenizer.get_vocab(with_added_tokens=True)
  marked = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
  for token in sorted(set(roles.values()) - marked, key=ids.__getitem__):
    # <mask> stands for a word with its space, as RoBERTa has it.
    strips = token == "<mask>" and cls is ByteLevelTokenizer
    tokenizer.add_special_tokens([library.AddedToken(token, lstrip=strips, normalized=False)])
  if sentinels and not any(sentinel_number(token) is not None for token in ids):
    first = max(ids.values()) + 1
    for id in range(first, first + sentinels):
      name = f"<extra_id_{first + sentinels - 1 - id}>"
      tokenizer.add_special_tokens([name])
      if tokenizer.token_to_id(name) != id:
        raise UserError(f"tokenizer.sentinels={sentinels}: this vocabulary has unused ids, so none can be added")
  return cls(tokenizer.to_str(), roles)


def _wordpiece(vocab: dict[str, int], unk: str, lowercase: bool) -> dict[str, Any]:
  """The content of BERT's tokenizer.json."""
  normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
  model = {"type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
  return {
    "added_tokens": [],
    "normalizer": normalizer | {"strip_accents": None, "lowercase": lowercase},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": model | {"vocab": vocab},
  }


def _byte_level(vocab: dict[str, int], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
  """The content of GPT-2's tokenizer.json."""
  part = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
  model = {"type": "BPE", "continuing_subword_prefix": "", "end_of_word_suffix": "", "vocab": vocab, "merges": merges}
  return {"added_tokens": [], "pre_tokenizer": part, "decoder": part, "model": model}


# Training.


def _train(
  learner: library.Tokenizer, config: TokenizerConfig, chunks: list[str], first: list[str], **options: Any
) -> dict[str, Any]:
  """The model that pair merges give on top of the `first` ids: `vocab` and `merges`."""
  smallest = len(first) + config.sentinels
  setting = f"tokenizer.vocab_size={config.vocab_size}"
  if not any(chunk.strip() for chunk in chunks):
    raise UserError("there is no text to train a tokenizer on")
  if config.vocab_size < smallest:
    raise UserError(f"{setting}: {smallest} at least are needed for special ids, {config.kind}'s letters and sentinels")
  size = config.vocab_size - config.sentinels
  trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=first, show_progress=False, **options)
  learner.train_from_iterator(chunks, trainer)
  found = json.loads(learner.to_str())["model"]
  if len(found["vocab"]) < size:
    most = len(found["vocab"]) + config.sentinels
    raise UserError(f"{setting}: this text has pieces for {most} at most; lower it, or bring more text")
  return found


def _chunks(texts: Iterable[str]) -> Iterator[str]:
  """Texts, the long ones cut after line ends."""
  for text in texts:
    begin = 0
    while begin < len(text):
      end = begin + _CHUNK
      if end < len(text):
        end = text.rfind("\n", begin, end) + 1 or end
      yield text[begin:end]
      begin = end


def _letters(chunks: list[str], normalizer: normalizers.Normalizer) -> list[str]:
  """The most frequent characters, sorted: they cover the text but for one in ten thousand."""
  counts: collections.Counter[str] = collections.Counter()
  for chunk in chunks:
    counts.update(normalizer.normalize_str(chunk))
  ranked = sorted((-count, letter) for letter, count in counts.items() if not letter.isspace())
  reached = itertools.accumulate(-count for count, _ in ranked)
  limit = _COVERAGE * -sum(count for count, _ in ranked)
  return sorted(letter for (count, letter), total in zip(ranked, reached, strict=True) if total + count < limit)
