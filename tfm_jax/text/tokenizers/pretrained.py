"""Reads tokenizer files in Hugging Face's formats: one function decides which tokenizer a folder holds.

The first of these that is present decides, as in transformers:

  tokenizer_class ByT5Tokenizer   bytes
  tokenizer.json                  its content, read by the `tokenizers` library
  *.model                         sentencepiece
  vocab.txt                       WordPiece, as in BERT
  vocab.json, encoder.json        byte-level BPE, as in GPT-2

So a sentencepiece model beside a tokenizer.json is not read, unless `as_library` wrote that tokenizer.json from it:
what was exported is imported as the same tokenizer. The ids of a text are those that transformers gives without special
tokens. The classes of transformers that are named after Llama and T5 read only the vocabulary of a tokenizer.json and
build the rest by their own rules; with the published files, Llama's then differs for texts that begin with a space.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers as library
from etils import epath
from tokenizers import models, pre_tokenizers

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.characters import ByteTokenizer
from tfm_jax.text.tokenizers.conversion import original
from tfm_jax.text.tokenizers.library import (
  ByteLevelTokenizer,
  LibraryTokenizer,
  WordPieceTokenizer,
  add_sentinels,
  byte_level_content,
  finished,
  parsed,
  wordpiece_content,
)
from tfm_jax.text.tokenizers.sentencepiece_files import model_file, read_model, sentinel_count
from tfm_jax.text.tokenizers.subwords import SentencePieceTokenizer
from tfm_jax.text.tokenizers.tokenizer import CHAT_FILE, Tokenizer

# Role of a token -> its keys in Hugging Face's files, and its usual names for files without these keys.
_ROLES = {
  "pad": (("pad_token",), ("[PAD]", "<pad>")),
  "unk": (("unk_token",), ("[UNK]", "<unk>")),
  "bos": (("bos_token", "cls_token"), ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>")),
  "eos": (("eos_token", "sep_token"), ("[SEP]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")),
  "mask": (("mask_token",), ("[MASK]", "<mask>")),
}
_MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
# Classes of transformers whose bare vocabulary files are read like those of BERT and GPT-2.
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
# Properties of an added token for which a file gives no value.
_USUAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_LARGEST_ID = 1 << 22  # a file with larger ids is damaged


def from_files(path: epath.Path, lowercase: bool = True, sentinels: int = 0) -> Tokenizer | None:
  """The tokenizer of a folder with Hugging Face's files, or of one such file; None if the folder has none.

  A tokenizer_config.json, a special_tokens_map.json and a chat_template.jinja beside the files are read too, except if
  `path` names a sentencepiece model itself instead of its folder.

  Args:
    path: a folder or a file.
    lowercase: whether a bare vocab.txt is of lower case.
    sentinels: added on top if the vocabulary has none.

  Raises:
    UserError: files that are missing or damaged, or of an algorithm that is only read from a tokenizer.json.
  """
  if not path.is_dir() and path.suffix not in (".json", ".txt") and not _is_vocabulary(path):
    return SentencePieceTokenizer.from_file(path, sentinels)
  folder = path if path.is_dir() else path.parent
  settings = _settings(folder)
  owner = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
  named = _decide(folder) if path.is_dir() else path
  try:
    if path.is_dir() and owner == "ByT5Tokenizer":
      tokenizer: Tokenizer = ByteTokenizer(sentinel_count(settings, 125, folder), byt5=True)
    elif named is None:
      return None
    elif named.suffix == ".model":
      config = _object(folder / "config.json") if (folder / "config.json").exists() else {}
      t5 = config.get("model_type") in ("t5", "mt5")
      tokenizer = read_model(named, settings, owner, _added_tokens(folder, settings), t5, sentinels)
    elif named.name in _MERGES:
      tokenizer = _bare(_byte_level_files(named, settings, owner), settings, named, sentinels)
    elif named.suffix == ".json":
      tokenizer = _tokenizer_json(named, settings, owner, sentinels)
    else:
      tokenizer = _bare(_vocab_txt(named, settings, owner, lowercase), settings, named, sentinels)
  except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
    raise UserError(f"{named} is damaged: {kind}{' '.join(str(error).split())}") from error
  tokenizer.reads_names = True
  tokenizer.chat_template = _chat_template(folder, settings)
  return tokenizer


def _chat_template(folder: epath.Path, settings: dict[str, Any]) -> str:
  """The chat template of a folder, of several that with the name "default"; empty: it has none."""
  if (folder / CHAT_FILE).exists():
    return _text(folder / CHAT_FILE)
  found = settings.get("chat_template") or ""
  if isinstance(found, list):
    found = {row.get("name"): row.get("template") for row in found if isinstance(row, dict)}
  found = found.get("default", "") if isinstance(found, dict) else found
  if not isinstance(found, str):
    raise UserError(f"{folder / 'tokenizer_config.json'} is damaged: its chat_template is no text")
  return found


def _is_vocabulary(path: epath.Path) -> bool:
  """Whether a file, whatever its name, holds the tokens of a WordPiece vocabulary, one per line."""
  return path.suffix != ".model" and path.exists() and b"[UNK]" in path.read_bytes().splitlines()


def _decide(folder: epath.Path) -> epath.Path | None:
  """The file from which a folder's tokenizer is read."""
  first, *others = (folder / name for name in ("tokenizer.json", "vocab.txt", "vocab.json", "encoder.json"))
  return next((path for path in (first, model_file(folder), *others) if path is not None and path.exists()), None)


def _bare(content: dict[str, Any], settings: dict[str, Any], path: epath.Path, sentinels: int) -> LibraryTokenizer:
  """The tokenizer of a bare vocabulary file, which does not say which tokens are special."""
  content["added_tokens"] = _added_tokens(path.parent, settings)
  tokenizer = _read(content, path)
  missing = [row["content"] for row in _named(settings) if tokenizer.token_to_id(row["content"]) is None]
  tokenizer.add_special_tokens(missing)
  return finished(_class_of(content), tokenizer, _roles(settings, tokenizer, content), sentinels)


def _tokenizer_json(path: epath.Path, settings: dict[str, Any], owner: str, sentinels: int) -> Tokenizer:
  """The tokenizer of a tokenizer.json, with the settings and special tokens of the files beside it."""
  content, model = _object(path), model_file(path.parent)
  own = original(content, None if model is None else model.read_bytes())
  if own is not None:
    return own if len(own.sentinel_ids) or not sentinels else own.with_sentinels(sentinels)
  pad = (content.get("padding") or {}).get("pad_token")
  original_steps = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
  _configured(content, settings, owner)
  unchanged = original_steps == json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
  tokenizer = _read(content, path)
  if pad and tokenizer.token_to_id(pad) is not None:
    settings = {"pad_token": pad} | settings
  before = tokenizer.to_str()
  _add_tokens(tokenizer, content, settings, path)
  add_sentinels(tokenizer, sentinels)
  result = _class_of(content)(tokenizer.to_str(), _roles(settings, tokenizer, content))
  if unchanged and result.model == before:
    result.source = path.read_bytes()
  return result


def _add_tokens(
  tokenizer: library.Tokenizer, content: dict[str, Any], settings: dict[str, Any], path: epath.Path
) -> None:
  """Adds the special tokens that only the files beside a tokenizer.json have, as transformers does."""
  present = {token["content"] for token in content["added_tokens"]}
  tokens = _added_tokens(path.parent, settings)
  if "added_tokens_decoder" not in settings:
    tokens = [token for token in tokens if token["content"] not in present]
  present |= {token["content"] for token in tokens}
  tokens += [token for token in _named(settings) if token["content"] not in present]
  for token in tokens:
    name = token["content"]
    tokenizer.add_tokens([library.AddedToken(**{key: token[key] for key in ("content", *_USUAL)})])
    if tokenizer.token_to_id(name) != token.get("id", tokenizer.token_to_id(name)):
      raise UserError(f"{path}: the library gives {name!r} another id than the files beside it say")


def _settings(folder: epath.Path) -> dict[str, Any]:
  """The entries of tokenizer_config.json and, below them, special_tokens_map.json. No code that they name is run."""
  settings: dict[str, Any] = {}
  for name in ("special_tokens_map.json", "tokenizer_config.json"):
    if (folder / name).exists():
      settings |= _object(folder / name)
  return settings


def _object(path: epath.Path) -> dict[str, Any]:
  """The JSON object in a file. Raises UserError."""
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
    raise UserError(f"{path} is not UTF-8 text, so it is not a vocabulary of this kind") from error


def _lines(path: epath.Path) -> list[str]:
  """The lines of a vocabulary. Only line feeds end a line; other line separators are tokens."""
  lines = _text(path).replace("\r\n", "\n").split("\n")
  return lines[:-1] if lines[-1] == "" else lines


def _added_tokens(folder: epath.Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
  """The tokens that the files beside a vocabulary add to it, with their ids, in the form of a tokenizer.json."""
  try:
    tokens = {int(id): token for id, token in settings.get("added_tokens_decoder", {}).items()}
    if (folder / "added_tokens.json").exists():
      special = {token["content"] for token in _named(settings)}
      for name, id in _object(folder / "added_tokens.json").items():
        tokens.setdefault(id, {"content": name, "special": name in special, "normalized": name not in special})
    return [{**_USUAL, **tokens[id], "id": id} for id in sorted(tokens) if tokens[id]["content"]]
  except (LookupError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f"the tokenizer files in {folder} are damaged: {type(error).__name__} {error}") from error


def _named(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """The special tokens that the settings name under the keys "..._token" and in lists of additional tokens."""
  values = [value for key, value in settings.items() if key.endswith("_token")]
  for key in ("additional_special_tokens", "extra_special_tokens"):
    more = settings.get(key) or []
    values += more.values() if isinstance(more, dict) else more
  for value in values:
    token = value if isinstance(value, dict) else {"content": value}
    if isinstance(token.get("content"), str) and token["content"]:
      yield {**_USUAL, **token, "special": True}


def _vocab_txt(path: epath.Path, settings: dict[str, Any], owner: str, lowercase: bool) -> dict[str, Any]:
  """The content of a tokenizer.json for a vocab.txt. Raises UserError."""
  if owner not in (*_BERT_LIKE, *_NO_MODELS):
    raise UserError(f"{path}: the vocab.txt of a {owner} is not read; put a tokenizer.json beside it")
  vocab = {token: id for id, token in enumerate(_lines(path))}
  unk = _role("unk", settings, vocab)
  if not unk:
    raise UserError(f"{path} has no [UNK], so it is not a WordPiece vocabulary")
  content = wordpiece_content(vocab, unk, lowercase)
  _override(content["normalizer"], settings, _BERT_KEYS)
  return content


def _byte_level_files(path: epath.Path, settings: dict[str, Any], owner: str) -> dict[str, Any]:
  """The content of a tokenizer.json for a vocabulary and its merges. Raises UserError."""
  if owner not in (*_GPT2_LIKE, *_NO_MODELS):
    raise UserError(f"{path}: the files of a {owner} are not read; put a tokenizer.json beside them")
  vocab = _object(path)
  lines = _lines(path.parent / _MERGES[path.name])
  if not set(pre_tokenizers.ByteLevel.alphabet()) <= vocab.keys() or any(token.endswith("</w>") for token in vocab):
    raise UserError(f"{path} is not a vocabulary of byte-level BPE: only BPE and WordPiece are read from such files")
  content = byte_level_content(vocab, [line.split(" ") for line in lines if line and not line.startswith("#version")])
  _override(content["pre_tokenizer"], settings, {"add_prefix_space": "add_prefix_space"})
  return content


def _configured(content: dict[str, Any], settings: dict[str, Any], owner: str) -> dict[str, Any]:
  """The content of a tokenizer.json after a class of transformers has overridden it with its settings."""
  for part, name, owners, keys in (
    ("normalizer", "BertNormalizer", _BERT_LIKE, _BERT_KEYS),
    ("pre_tokenizer", "ByteLevel", _GPT2_LIKE, {"add_prefix_space": "add_prefix_space"}),
  ):
    if (content.get(part) or {}).get("type") == name and owner in owners:
      _override(content[part], settings, keys)
  return content


def _override(part: dict[str, Any], settings: dict[str, Any], keys: dict[str, str]) -> None:
  """Sets `part[name]` to `settings[key]` for each (key, name) in `keys` that is set."""
  for key, name in keys.items():
    if settings.get(key) is not None:
      part[name] = settings[key]


def _roles(settings: dict[str, Any], tokenizer: library.Tokenizer, content: dict[str, Any]) -> dict[str, str]:
  """Role -> token: as the files say, otherwise by the usual names. The unknown token is the one that the model has."""
  vocab = tokenizer.get_vocab(with_added_tokens=True)
  roles = {role: token for role in _ROLES if (token := _role(role, settings, vocab))}
  unknown = _unknown(tokenizer, content)
  if unknown in vocab:
    roles["unk"] = unknown
  if _class_of(content) is ByteLevelTokenizer and roles.get("unk") in (roles.get("bos"), roles.get("eos")):
    roles.pop("unk", None)  # GPT-2's files name an unknown token that is never used
  return roles


def _role(role: str, settings: dict[str, Any], vocab: Mapping[str, int]) -> str | None:
  """The token of the vocabulary that has this role, or None."""
  keys, usual = _ROLES[role]
  values = [settings[key] for key in keys if key in settings]
  tokens = [token["content"] if isinstance(token, dict) else token for token in values]
  return next((token for token in (tokens if values else usual) if token and token in vocab), None)


def _unknown(tokenizer: library.Tokenizer, content: dict[str, Any]) -> str | None:
  """The model's unknown token, or None."""
  if isinstance(tokenizer.model, models.Unigram):
    id = content["model"].get("unk_id")
    return None if id is None else tokenizer.id_to_token(id)
  return tokenizer.model.unk_token


def _read(content: dict[str, Any], path: epath.Path) -> library.Tokenizer:
  """The library's tokenizer of the content of a tokenizer.json. Raises UserError."""
  content.setdefault("added_tokens", [])
  content |= {
    "truncation": None,
    "padding": None,
    "post_processor": None,
  }  # these concern what surrounds a text, which objectives decide
  if content["model"].get("dropout"):
    content["model"]["dropout"] = None  # so that a text always has the same ids
  tokenizer = parsed(json.dumps(content))
  wrong = [t["content"] for t in content["added_tokens"] if tokenizer.token_to_id(t["content"]) != t["id"]]
  if wrong:
    raise UserError(f"{path}: the library gives {wrong[0]!r} another id than the file says")
  ids = tokenizer.get_vocab(with_added_tokens=True)
  if len(set(ids.values())) < len(ids) or max(ids.values(), default=_LARGEST_ID) >= _LARGEST_ID:
    raise UserError(f"{path} is damaged: it has no tokens, or some share an id, or an id is {_LARGEST_ID} or more")
  unknown = _unknown(tokenizer, content)
  if isinstance(tokenizer.model, models.WordPiece | models.WordLevel) and unknown not in ids:
    raise UserError(f"{path} is damaged: its unknown token {unknown!r} is not in its vocabulary")
  return tokenizer


def _class_of(content: dict[str, Any]) -> type[LibraryTokenizer]:
  """Our class for the content of a tokenizer.json: WordPiece and byte-level BPE have their own."""
  model = content["model"].get("type") or ("BPE" if "merges" in content["model"] else "")
  if model == "WordPiece":
    return WordPieceTokenizer
  parts = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
  return ByteLevelTokenizer if model == "BPE" and '"ByteLevel"' in parts else LibraryTokenizer
