"""Tokenizers of Hugging Face model directories: read one, or write ours as files that transformers loads."""

import json
from typing import Any

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers

from tfm_jax.errors import UserError
from tfm_jax.hf.sentencepiece_json import CONTROL, NORMAL, SPACE, USER_DEFINED, converted, parse
from tfm_jax.text.characters import ByteTokenizer, CharTokenizer
from tfm_jax.text.library import LibraryTokenizer, WordPieceTokenizer
from tfm_jax.text.pretrained import from_files
from tfm_jax.text.subwords import SentencePieceTokenizer
from tfm_jax.text.tokenizer import SPECIALS, Tokenizer, sentinel_number

_BERT_LIKE = ("bert", "distilbert", "electra", "modernbert", "roberta")
_TOKEN_TYPES = ("bert", "electra")  # their models take token_type_ids; GPT-2 would add them up as embeddings
_BOS_FIRST = ("llama", "mistral")

# Classes of transformers that take the ids of a sentencepiece model as they are. Others shift or reorder them.
_SENTENCEPIECE_CLASSES = (
  "", "T5Tokenizer", "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizer",
  "TokenizersBackend",
)  # fmt: skip
_MOST_EXTRAS = 1 << 20  # tokens on top of a model; more is damage

_REMEDY = "remove the tokenizer files to import the weights alone"


def read_tokenizer(source: epath.PathLike) -> Tokenizer | None:
  """The tokenizer of a Hugging Face model directory; None if it has no tokenizer files. Their code is never run.

  Raises:
    UserError: files that are damaged, or of a kind that is not supported.
  """
  folder = epath.Path(source)
  settings = _object(folder / "tokenizer_config.json")
  owner = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
  made: Tokenizer | None
  try:
    if owner == "ByT5Tokenizer":
      made = ByteTokenizer(_sentinels(settings, 125, folder), byt5=True)
    elif model := _sentencepiece_file(folder):
      made = _read_sentencepiece(model, settings, owner)
    else:
      made = _own(folder / "tokenizer.json") or from_files(folder)
  except UserError as error:
    raise UserError(f"{error}; {_REMEDY}") from error
  if made is not None:
    made.reads_names = True
  return made


def write_tokenizer(tokenizer: Tokenizer, out: epath.PathLike, model_type: str, max_length: int) -> None:
  """Writes files from which `transformers.AutoTokenizer.from_pretrained(out)` makes a tokenizer with equal ids.

  Called on a text, it adds the special tokens that are usual with `model_type`, as a model of that type in
  transformers expects them: <s> or [CLS] before and </s> or [SEP] behind, one of the two, or none.

  Args:
    out: the model's directory; its config.json is not touched.
    max_length: tokens that the model takes.

  Raises:
    UserError: a tokenizer that transformers cannot have.
  """
  folder = epath.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  settings = _settings(tokenizer, model_type, max_length)
  files: dict[str, bytes] = {}
  if isinstance(tokenizer, ByteTokenizer) and tokenizer.byt5 and model_type == "t5":
    settings["tokenizer_class"] = "ByT5Tokenizer"
    settings["extra_ids"] = len(tokenizer.sentinel_ids)
  else:
    content = json.loads(_library_of(tokenizer).to_str())
    content["post_processor"] = _post_processor(tokenizer, model_type)
    settings |= _class(content, model_type)
    if isinstance(tokenizer, SentencePieceTokenizer):
      files["spiece.model" if model_type == "t5" else "tokenizer.model"] = tokenizer.model
    elif isinstance(tokenizer, WordPieceTokenizer):
      settings |= _bert_settings(content["normalizer"])
      files["vocab.txt"] = _vocab_txt(tokenizer)
    elif isinstance(tokenizer, LibraryTokenizer):
      files["vocab.json"] = json.dumps(content["model"]["vocab"], ensure_ascii=False).encode()
      files["merges.txt"] = "\n".join(["#version: 0.2", *map(" ".join, content["model"]["merges"]), ""]).encode()
    files["tokenizer.json"] = json.dumps(content, ensure_ascii=False, indent=1).encode()
  files["tokenizer_config.json"] = (json.dumps(settings, ensure_ascii=False, indent=2) + "\n").encode()
  for name, data in files.items():
    (folder / name).write_bytes(data)


# Reading.


def _object(path: epath.Path) -> dict[str, Any]:
  """A JSON file's object; empty where there is no file."""
  if not path.exists():
    return {}
  try:
    content = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} is damaged: it holds no JSON object")
  return content


def _sentinels(settings: dict[str, Any], default: int, folder: epath.Path) -> int:
  """How many sentinels the classes of T5 and ByT5 put on top of a vocabulary."""
  named = settings.get("additional_special_tokens") or settings.get("extra_special_tokens")
  if isinstance(named, list):
    return sum("<extra_id_" in str(token) for token in named)
  count = settings.get("extra_ids", default)
  if not isinstance(count, int) or not 0 <= count <= _MOST_EXTRAS:
    raise UserError(f"{folder / 'tokenizer_config.json'} is damaged: extra_ids is {count!r}")
  return count


def _sentencepiece_file(folder: epath.Path) -> epath.Path | None:
  """The model file of sentencepiece; None if there is none, or only one of tiktoken beside a tokenizer.json."""
  names = sorted(path.name for path in folder.glob("*.model"))
  name = next((name for name in ("spiece.model", "tokenizer.model") if name in names), names[0] if names else None)
  if name is None:
    return None
  if name == "sentencepiece.bpe.model":
    raise UserError(f"{folder / name}: the ids of this kind of model are shifted by fairseq, which is not supported")
  try:
    parse((folder / name).read_bytes())
    SentencePieceTokenizer((folder / name).read_bytes())
  except (RuntimeError, ValueError) as error:
    if (folder / "tokenizer.json").exists():
      return None
    raise UserError(f"{folder / name} is damaged, or not a sentencepiece model") from error
  return folder / name


def _read_sentencepiece(path: epath.Path, settings: dict[str, Any], owner: str) -> SentencePieceTokenizer:
  """The model, with the tokens that transformers has on top of it: sentinels, or others as pieces of their own."""
  if owner not in _SENTENCEPIECE_CLASSES:
    raise UserError(f"{path}: a {owner} may number the pieces in its own way, which is not supported")
  model, folder = path.read_bytes(), path.parent
  pieces = parse(model).pieces
  try:
    ids, special = _all_tokens(folder, settings)
  except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
    raise UserError(f"the tokenizer files beside {path} are damaged: {type(error).__name__} {error}") from error
  if (folder / "tokenizer.json").exists():
    for id, piece in enumerate(pieces):
      name = piece.piece
      if piece.type == NORMAL and ids.get(name, ids.get(name.replace(SPACE, " "))) != id:
        raise UserError(f"{path}: tokenizer.json numbers its pieces in another way ({name!r}), which is not supported")
  elif not ids and (owner == "T5Tokenizer" or _object(folder / "config.json").get("model_type") in ("t5", "mt5")):
    return SentencePieceTokenizer(model, _sentinels(settings, 100, folder))
  extras = {id: token for token, id in ids.items() if id >= len(pieces)}
  if max(extras, default=0) > len(pieces) + _MOST_EXTRAS:
    raise UserError(f"the tokenizer files beside {path} are damaged: an id is {max(extras)}")
  if sorted(extras.items()) == [(len(pieces) + n, f"<extra_id_{len(extras) - 1 - n}>") for n in range(len(extras))]:
    return SentencePieceTokenizer(model, len(extras))
  proto = parse(model)
  try:
    for id in range(len(pieces), max(extras) + 1):
      token = extras.get(id, f"<no token {id}>")
      proto.pieces.add(piece=token, score=0.0, type=USER_DEFINED if token in ids and token not in special else CONTROL)
    return SentencePieceTokenizer(proto.SerializeToString())
  except (RuntimeError, ValueError) as error:
    raise UserError(f"{path}: the tokens added to it do not go with it: {' '.join(str(error).split())}") from error


def _all_tokens(folder: epath.Path, settings: dict[str, Any]) -> tuple[dict[str, int], set[str]]:
  """Token -> id, as far as the JSON files tell, and those that stand for no text."""
  content = _object(folder / "tokenizer.json")
  vocab = content["model"]["vocab"] if content else {}
  ids = {row[0]: id for id, row in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
  rows = [(row["id"], row) for row in content.get("added_tokens", ())]
  if not content:
    rows = [(int(id), row) for id, row in settings.get("added_tokens_decoder", {}).items()]
    rows += [(id, {"content": token}) for token, id in _object(folder / "added_tokens.json").items()]
  ids |= {str(row["content"]): int(id) for id, row in rows}
  return ids, {row["content"] for _, row in rows if row.get("special", True)}


def _own(path: epath.Path) -> CharTokenizer | ByteTokenizer | None:
  """The tokenizer of characters or bytes whose tokenizer.json this is, if `write_tokenizer` made it of one."""
  model = _object(path).get("model")
  if not isinstance(model, dict) or model.get("merges") or not isinstance(model.get("vocab"), dict):
    return None
  try:
    found = json.loads(tokenizers.Tokenizer.from_str(path.read_bytes().decode()).to_str())
  except Exception:  # the library's own class; whoever reads the file next names the damage
    return None
  letters = sorted(found["model"]["vocab"], key=found["model"]["vocab"].__getitem__)
  sentinels = sum(sentinel_number(token["content"]) is not None for token in found["added_tokens"])
  made: CharTokenizer | ByteTokenizer
  if found["pre_tokenizer"]:
    made = ByteTokenizer(sentinels, byt5=letters[1:2] == ["</s>"])
  else:
    made = CharTokenizer("".join(letters[len(SPECIALS) :]), sentinels)
  content = json.loads(_library_of(made).to_str())
  parts = ("added_tokens", "normalizer", "pre_tokenizer", "model")
  return made if all(content[part] == found[part] for part in parts) else None


# Writing.


def _settings(tokenizer: Tokenizer, model_type: str, max_length: int) -> dict[str, Any]:
  """tokenizer_config.json."""
  types = ["token_type_ids"] if model_type in _TOKEN_TYPES else []
  settings: dict[str, Any] = {
    "model_max_length": max_length,
    "model_input_names": ["input_ids", *types, "attention_mask"],
    "clean_up_tokenization_spaces": False,
  }
  ids = {"pad": tokenizer.pad_id, "unk": tokenizer.unk_id, "mask": tokenizer.mask_id}
  if model_type in _BERT_LIKE:
    ids |= {"cls": tokenizer.bos_id, "sep": tokenizer.eos_id}
  if model_type not in _BERT_LIKE or model_type == "roberta":
    ids |= {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
  settings |= {f"{name}_token": tokenizer.token(id) for name, id in ids.items() if id >= 0}
  if len(tokenizer.sentinel_ids):
    settings["additional_special_tokens"] = [tokenizer.token(int(id)) for id in tokenizer.sentinel_ids]
  if model_type == "mistral":
    settings["fix_mistral_regex"] = False  # it is no tokenizer of Mistral AI, whose regex needs mending
  return settings


def _class(content: dict[str, Any], model_type: str) -> dict[str, Any]:
  """The class that takes tokenizer.json as it stands: those named after models would rebuild it by their own rules."""
  if model_type != "qwen2":
    return {"tokenizer_class": "PreTrainedTokenizerFast"}
  # transformers 5 forces its own class on this model type, unless the tokenizer claims to have code of its own,
  # which is ignored then.
  own = '"NFC"' in json.dumps(content["normalizer"]) and _QWEN2_WORDS in json.dumps(content["pre_tokenizer"])
  if own and "<|endoftext|>" in content["model"]["vocab"] | {t["content"]: 0 for t in content["added_tokens"]}:
    return {"tokenizer_class": "Qwen2Tokenizer"}
  name = "PreTrainedTokenizerFast"
  return {"tokenizer_class": name, "auto_map": {"AutoTokenizer": [name, name]}}


_QWEN2_WORDS = json.dumps(
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _post_processor(tokenizer: Tokenizer, model_type: str) -> dict[str, Any]:
  """What is added to one text and to a pair."""

  def special(id: int, type_id: int = 0) -> list[dict[str, Any]]:
    return [{"SpecialToken": {"id": tokenizer.token(id), "type_id": type_id}}] if id >= 0 else []

  def text(name: str, type_id: int = 0) -> list[dict[str, Any]]:
    return [{"Sequence": {"id": name, "type_id": type_id}}]

  bos = tokenizer.bos_id if model_type in (*_BERT_LIKE, *_BOS_FIRST) else -1
  eos = tokenizer.eos_id if model_type in (*_BERT_LIKE, "t5") else -1
  second = 1 if model_type in _BERT_LIKE and model_type != "roberta" else 0
  between = special(eos) if model_type == "roberta" else special(bos, second) if model_type in _BOS_FIRST else []
  single = special(bos) + text("A") + special(eos)
  pair = single + between + text("B", second) + special(eos, second)
  used = {tokenizer.token(id): id for id in (bos, eos) if id >= 0}
  tokens = {token: {"id": token, "ids": [id], "tokens": [token]} for token, id in used.items()}
  return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def _bert_settings(normalizer: dict[str, Any] | None) -> dict[str, Any]:
  """What readers of vocab.txt need to know."""
  if not normalizer or normalizer["type"] != "BertNormalizer":
    return {}
  names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
  names["tokenize_chinese_chars"] = "handle_chinese_chars"
  return {key: normalizer[name] for key, name in names.items()}


def _vocab_txt(tokenizer: Tokenizer) -> bytes:
  return "".join(f"{tokenizer.token(id)}\n" for id in range(tokenizer.vocab_size)).encode()


def _library_of(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
  """The same tokenizer by the library."""
  if isinstance(tokenizer, LibraryTokenizer):
    return tokenizers.Tokenizer.from_str(tokenizer.model)
  if isinstance(tokenizer, SentencePieceTokenizer):
    return converted(tokenizer)
  if isinstance(tokenizer, CharTokenizer):
    if any("\ud800" <= letter <= "\udfff" for letter in tokenizer.characters):
      raise UserError("a vocabulary with halves of surrogate pairs cannot be written as a tokenizer.json")
    names: tuple[str, ...] = SPECIALS
    made = _letters([*names, *tokenizer.characters], unknown="<unk>")
    made.decoder = decoders.Fuse()
  elif isinstance(tokenizer, ByteTokenizer):
    names = tokenizer.names
    made = _letters([*names, *_byte_letters()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
  else:
    raise TypeError(f"no tokenizer.json for a {type(tokenizer).__name__}")
  sentinels = [tokenizer.token(int(id)) for id in sorted(tokenizer.sentinel_ids)]
  made.add_special_tokens([*names, *sentinels])
  return made


def _letters(tokens: list[str], unknown: str | None = None) -> tokenizers.Tokenizer:
  """One id a character: BPE that has learned no merge."""
  vocab = {token: id for id, token in enumerate(tokens)}
  return tokenizers.Tokenizer(models.BPE(vocab, [], unk_token=unknown, fuse_unk=False))


def _byte_letters() -> list[str]:
  """The letter of each byte in byte-level vocabularies: itself where it can be seen, the others from U+0100 on."""
  seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
  unseen = [byte for byte in range(256) if byte not in seen]
  return [chr(byte if byte in seen else 256 + unseen.index(byte)) for byte in range(256)]
