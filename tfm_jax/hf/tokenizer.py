"""Tokenizers of Hugging Face model directories: reads them, and writes ours as files that transformers loads."""

import json
from typing import Any

from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.characters import ByteTokenizer
from tfm_jax.text.tokenizers.conversion import as_library
from tfm_jax.text.tokenizers.library import ByteLevelTokenizer, WordPieceTokenizer
from tfm_jax.text.tokenizers.subwords import SentencePieceTokenizer
from tfm_jax.text.tokenizers.table import Tokenizer, read
from tfm_jax.text.tokenizers.tokenizer import CHAT_FILE

_BERT_LIKE = ("bert", "distilbert", "electra", "esm", "modernbert", "roberta")
_TOKEN_TYPES = ("bert", "electra")  # models that take token_type_ids; GPT-2 would read them as token ids
_BOS_FIRST = ("llama", "mistral")

_REMEDY = "remove the tokenizer files to import the weights alone"


def read_tokenizer(source: epath.PathLike) -> Tokenizer | None:
  """The tokenizer of a Hugging Face model directory; None if it has no tokenizer files. No code in them is run.

  Raises:
    UserError: files that are damaged, or of a kind that is not supported.
  """
  try:
    return read(epath.Path(source))
  except UserError as error:
    raise UserError(f"{error}; {_REMEDY}") from error


def write_tokenizer(tokenizer: Tokenizer, out: epath.PathLike, model_type: str, max_length: int) -> None:
  """Writes files from which `transformers.AutoTokenizer.from_pretrained(out)` loads a tokenizer with equal ids.

  Called on a text, it adds the special tokens that are usual for `model_type` in transformers: a first token (<s>,
  [CLS]), a last token (</s>, [SEP]), both or none. A tokenizer that was read from a tokenizer.json is written as that
  file, unchanged, and adds what the file says.

  Args:
    out: the model's directory; its config.json is not touched.
    max_length: largest number of tokens that the model reads.

  Raises:
    UserError: a tokenizer without a counterpart in transformers.
  """
  folder = epath.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  settings = _settings(tokenizer, model_type, max_length)
  files: dict[str, bytes] = {}
  if isinstance(tokenizer, ByteTokenizer) and tokenizer.byt5 and model_type == "t5":
    settings["tokenizer_class"] = "ByT5Tokenizer"
    settings["extra_ids"] = len(tokenizer.sentinel_ids)
  else:
    content = json.loads(as_library(tokenizer).to_str())
    content["post_processor"] = _post_processor(tokenizer, model_type)
    settings |= _class(content, model_type)
    if isinstance(tokenizer, SentencePieceTokenizer):
      files["spiece.model" if model_type == "t5" else "tokenizer.model"] = tokenizer.model
    elif isinstance(tokenizer, WordPieceTokenizer):
      settings |= _bert_settings(content["normalizer"])
      files["vocab.txt"] = _vocab_txt(tokenizer)
    elif isinstance(tokenizer, ByteLevelTokenizer):
      files["vocab.json"] = json.dumps(content["model"]["vocab"], ensure_ascii=False).encode()
      files["merges.txt"] = "\n".join(["#version: 0.2", *map(" ".join, content["model"]["merges"]), ""]).encode()
    files["tokenizer.json"] = tokenizer.source or json.dumps(content, ensure_ascii=False, indent=1).encode()
  if tokenizer.chat_template:
    files[CHAT_FILE] = tokenizer.chat_template.encode()
  files["tokenizer_config.json"] = (json.dumps(settings, ensure_ascii=False, indent=2) + "\n").encode()
  for name, data in files.items():
    (folder / name).write_bytes(data)


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
    settings["fix_mistral_regex"] = False  # its regular expression is not the one of Mistral AI that needs fixing
  return settings


def _class(content: dict[str, Any], model_type: str) -> dict[str, Any]:
  """The class that reads tokenizer.json unchanged. Classes named after models rebuild it by their own rules."""
  if model_type != "qwen2":
    return {"tokenizer_class": "PreTrainedTokenizerFast"}
  # transformers 5 forces its own class on this model type, unless `auto_map` claims that the tokenizer has its own code
  # (which is not run).
  own = '"NFC"' in json.dumps(content["normalizer"]) and _QWEN2_WORDS in json.dumps(content["pre_tokenizer"])
  if own and "<|endoftext|>" in content["model"]["vocab"] | {t["content"]: 0 for t in content["added_tokens"]}:
    return {"tokenizer_class": "Qwen2Tokenizer"}
  name = "PreTrainedTokenizerFast"
  return {"tokenizer_class": name, "auto_map": {"AutoTokenizer": [name, name]}}


_QWEN2_WORDS = json.dumps(
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _post_processor(tokenizer: Tokenizer, model_type: str) -> dict[str, Any]:
  """The special tokens that are added to a text and to a pair of texts."""

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
  """Settings that readers of vocab.txt need."""
  if not normalizer or normalizer["type"] != "BertNormalizer":
    return {}
  names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
  names["tokenize_chinese_chars"] = "handle_chinese_chars"
  return {key: normalizer[name] for key, name in names.items()}


def _vocab_txt(tokenizer: Tokenizer) -> bytes:
  return "".join(f"{tokenizer.token(id)}\n" for id in range(tokenizer.vocab_size)).encode()
