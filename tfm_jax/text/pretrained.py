"""Tokenizer files of others, as Hugging Face has them: WordPiece and byte-level BPE.

The ids that they give to a text are those that transformers gives without special tokens.
"""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers as library
from etils import epath
from tokenizers import models, pre_tokenizers

from tfm_jax.errors import UserError
from tfm_jax.text.library import (
  ByteLevelTokenizer,
  LibraryTokenizer,
  WordPieceTokenizer,
  byte_level_content,
  finished,
  parsed,
  wordpiece_content,
)

# A part that a token plays: its keys in Hugging Face's files, and its usual names where they do not say.
_ROLES = {
  "pad": (("pad_token",), ("[PAD]", "<pad>")),
  "unk": (("unk_token",), ("[UNK]", "<unk>")),
  "bos": (("bos_token", "cls_token"), ("[CLS]", "<s>", "<|begin_of_text|>", "<|endoftext|>")),
  "eos": (("eos_token", "sep_token"), ("[SEP]", "</s>", "<|end_of_text|>", "<|endoftext|>")),
  "mask": (("mask_token",), ("[MASK]", "<mask>")),
}
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
_BERT_KEYS = {
  "do_lower_case": "lowercase",
  "strip_accents": "strip_accents",
  "tokenize_chinese_chars": "handle_chinese_chars",
}
_LARGEST_ID = 1 << 22  # beyond is damage, not a vocabulary


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
    content.setdefault("added_tokens", _added_tokens(folder, settings))
    tokenizer, roles = _read(content, settings, path)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
    raise UserError(f"{path} is damaged: {kind}{' '.join(str(error).split())}") from error
  cls = WordPieceTokenizer if isinstance(tokenizer.model, models.WordPiece) else ByteLevelTokenizer
  made = finished(cls, tokenizer, roles, sentinels)
  made.reads_names = True
  return made


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


def _added_tokens(folder: epath.Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
  """What transformers adds to a bare vocabulary, as a tokenizer.json would have it."""
  rows = {int(id): row for id, row in settings.get("added_tokens_decoder", {}).items()}
  if (folder / "added_tokens.json").exists():
    special = {token for token in settings.values() if isinstance(token, str)}
    for token, id in _object(folder / "added_tokens.json").items():
      rows.setdefault(id, {"content": token, "special": token in special, "normalized": token not in special})
  usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
  return [{**usual, **rows[id], "id": id} for id in sorted(rows)]


def _vocab_txt(path: epath.Path, settings: dict[str, Any], owner: str, lowercase: bool) -> dict[str, Any]:
  if owner not in (*_BERT_LIKE, *_NO_MODELS):
    raise UserError(f"{path}: the vocab.txt of a {owner} is not read; a tokenizer.json beside it would be")
  vocab = {token: id for id, token in enumerate(_lines(path))}
  unk = _roles(settings, vocab).get("unk", "")
  if not unk:
    raise UserError(f"{path} has no [UNK]: it is no WordPiece vocabulary")
  content = wordpiece_content(vocab, unk, lowercase)
  _override(content["normalizer"], settings, _BERT_KEYS)
  return content


def _byte_level_files(path: epath.Path, settings: dict[str, Any], owner: str) -> dict[str, Any]:
  if owner not in (*_GPT2_LIKE, *_NO_MODELS):
    raise UserError(f"{path}: the files of a {owner} are not read; a tokenizer.json beside them would be")
  vocab = _object(path)
  rows = _lines(path.parent / _MERGES[path.name])
  if not set(pre_tokenizers.ByteLevel.alphabet()) <= vocab.keys() or any(token.endswith("</w>") for token in vocab):
    raise UserError(f"{path} is no vocabulary of byte-level BPE: only that one and WordPiece are read from their files")
  content = byte_level_content(vocab, [row.split(" ") for row in rows if row and not row.startswith("#version")])
  _override(content["pre_tokenizer"], settings, {"add_prefix_space": "add_prefix_space"})
  return content


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
  for role, (keys, usual) in _ROLES.items():
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
  tokenizer = parsed(json.dumps(content))
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
