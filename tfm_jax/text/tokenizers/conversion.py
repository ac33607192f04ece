"""Tokenizers trained here, converted to a tokenizer.json of the `tokenizers` library and back."""

import json
from typing import Any

import tokenizers as library
from tokenizers import decoders, models, pre_tokenizers

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.characters import ByteTokenizer, CharTokenizer
from tfm_jax.text.tokenizers.library import LibraryTokenizer, parsed
from tfm_jax.text.tokenizers.sentencepiece_json import converted
from tfm_jax.text.tokenizers.subwords import SentencePieceTokenizer
from tfm_jax.text.tokenizers.tokenizer import SPECIALS, Tokenizer, sentinel_number


def as_library(tokenizer: Tokenizer) -> library.Tokenizer:
  """The library's tokenizer with the same ids, without a post-processor. Raises UserError if there is none."""
  if isinstance(tokenizer, LibraryTokenizer):
    return parsed(tokenizer.model)
  if isinstance(tokenizer, SentencePieceTokenizer):
    return converted(tokenizer)
  if isinstance(tokenizer, CharTokenizer):
    if any("\ud800" <= letter <= "\udfff" for letter in tokenizer.characters):
      raise UserError("a vocabulary with halves of surrogate pairs cannot be written as a tokenizer.json")
    names: tuple[str, ...] = SPECIALS
    result = _letters([*names, *tokenizer.characters], unknown="<unk>")
    result.decoder = decoders.Fuse()
  elif isinstance(tokenizer, ByteTokenizer):
    names = tokenizer.names
    result = _letters([*names, *_byte_letters()])
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.decoder = decoders.ByteLevel()
  else:
    raise TypeError(f"no tokenizer.json for a {type(tokenizer).__name__}")
  sentinels = [tokenizer.token(int(id)) for id in sorted(tokenizer.sentinel_ids)]
  result.add_special_tokens([*names, *sentinels])
  return result


def original(content: dict[str, Any], model: bytes | None) -> Tokenizer | None:
  """Inverse of `as_library` for tokenizers of characters, bytes or sentencepiece; None if the file is another's.

  Args:
    content: the parsed tokenizer.json.
    model: the sentencepiece model beside it.
  """
  try:
    if model is not None:
      sentinels = _sentinels(content)
      candidate: Tokenizer = SentencePieceTokenizer(model, sentinels)
    elif content["model"].get("type", "BPE") != "BPE" or content["model"].get("merges"):
      return None
    else:
      # In the form that this release of the library writes: transformers may have rewritten the file.
      content = json.loads(parsed(json.dumps(content)).to_str())
      sentinels, vocab = _sentinels(content), content["model"]["vocab"]
      letters = sorted(vocab, key=vocab.__getitem__)
      if content["pre_tokenizer"]:
        candidate = ByteTokenizer(sentinels, byt5=letters[1:2] == ["</s>"])
      else:
        candidate = CharTokenizer("".join(letters[len(SPECIALS) :]), sentinels)
    expected = json.loads(as_library(candidate).to_str())
    same = all(content[part] == expected[part] for part in ("added_tokens", "normalizer", "pre_tokenizer", "model"))
  except (UserError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
    return None  # the next reader of the file reports the damage
  return candidate if same else None


def _sentinels(content: dict[str, Any]) -> int:
  return sum(sentinel_number(token["content"]) is not None for token in content["added_tokens"])


def _letters(tokens: list[str], unknown: str | None = None) -> library.Tokenizer:
  """One id per character: BPE without merges."""
  vocab = {token: id for id, token in enumerate(tokens)}
  return library.Tokenizer(models.BPE(vocab, [], unk_token=unknown, fuse_unk=False))


def _byte_letters() -> list[str]:
  """The letter of each byte in byte-level vocabularies: its own if it is printable, otherwise one from U+0100 on."""
  printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
  others = [byte for byte in range(256) if byte not in printable]
  return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]
