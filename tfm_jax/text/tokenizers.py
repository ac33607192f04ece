"""Tokenizers: train one, load one that was saved, or take one from a file."""

import json
from collections.abc import Iterable

from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.text.characters import ByteTokenizer, CharTokenizer
from tfm_jax.text.subwords import ALGORITHMS, SentencePieceTokenizer
from tfm_jax.text.tokenizer import JSON_FILE, MODEL_FILE, Tokenizer, TokenizerConfig

__all__ = ["Tokenizer", "TokenizerConfig", "from_path", "load_tokenizer", "train_tokenizer"]

KINDS: dict[str, type[CharTokenizer] | type[ByteTokenizer] | type[SentencePieceTokenizer]] = {
  "sentencepiece": SentencePieceTokenizer,
  "char": CharTokenizer,
  "byte": ByteTokenizer,
}


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
  """A tokenizer for `texts`: the same texts give the same one, on any number of cores.

  Raises:
    UserError: an unknown kind or algorithm, or a vocabulary size that these texts cannot have.
  """
  _check(config)
  return KINDS[config.kind].train(config, texts)


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
  """The tokenizer that `Tokenizer.save` wrote to `directory`.

  Raises:
    UserError: there is none, or its files are damaged.
  """
  path = epath.Path(directory)
  try:
    content = json.loads((path / JSON_FILE).read_text())
    tokenizer: Tokenizer
    match content["kind"]:
      case "char":
        tokenizer = CharTokenizer(content["characters"], content["sentinels"])
      case "byte":
        tokenizer = ByteTokenizer(content["sentinels"])
      case "sentencepiece":
        tokenizer = SentencePieceTokenizer((path / MODEL_FILE).read_bytes(), content["sentinels"])
      case kind:
        raise UserError(f"{path / JSON_FILE}: unknown kind of tokenizer {kind!r}, expected one of {', '.join(KINDS)}")
  except FileNotFoundError as error:
    raise UserError(f"no tokenizer at {path}: {JSON_FILE} or {MODEL_FILE} is missing") from error
  except (ValueError, KeyError, TypeError, RuntimeError) as error:
    raise UserError(f"the tokenizer at {path} is damaged: {error}") from error
  if tokenizer.fingerprint != content.get("fingerprint"):
    raise UserError(f"the tokenizer at {path} is damaged: its files do not match their fingerprint")
  return tokenizer


def from_path(config: TokenizerConfig) -> Tokenizer:
  """The tokenizer that `config.path` names: a sentencepiece model, or the directory of a saved tokenizer.

  Its own vocabulary size stands, whatever `config.vocab_size` says. `config.sentinels` are added on top of a
  model file that has none.

  Raises:
    UserError: a missing or damaged file, another kind than `config.kind`, or too few sentinels.
  """
  _check(config)
  path = epath.Path(config.path).expanduser()
  if path.is_dir():
    tokenizer = load_tokenizer(path)
  elif config.kind == "sentencepiece":
    tokenizer = SentencePieceTokenizer.from_file(path, config.sentinels)
  else:
    raise UserError(f"tokenizer.path={config.path}: not the directory of a saved tokenizer")
  if tokenizer.kind != config.kind:
    raise UserError(
      f"tokenizer.path={config.path} holds a {tokenizer.kind} tokenizer: set tokenizer.kind={tokenizer.kind}"
    )
  if len(tokenizer.sentinel_ids) < config.sentinels:
    raise UserError(f"tokenizer.sentinels={config.sentinels}: {config.path} has only {len(tokenizer.sentinel_ids)}")
  return tokenizer


def _check(config: TokenizerConfig) -> None:
  if config.kind not in KINDS:
    raise UserError(f"tokenizer.kind={config.kind}: expected one of {', '.join(KINDS)}")
  if config.algorithm not in ALGORITHMS:
    raise UserError(f"tokenizer.algorithm={config.algorithm}: expected one of {', '.join(ALGORITHMS)}")
  if config.sentinels < 0:
    raise UserError(f"tokenizer.sentinels={config.sentinels}: it cannot be negative")
