"""Tokenizers: train one, load one that was saved, or take one from a file."""

import json
from collections.abc import Iterable

from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.text.characters import ByteTokenizer, CharTokenizer
from tfm_jax.text.library import ByteLevelTokenizer, WordPieceTokenizer
from tfm_jax.text.pretrained import from_files
from tfm_jax.text.subwords import ALGORITHMS, SentencePieceTokenizer
from tfm_jax.text.tokenizer import JSON_FILE, Tokenizer, TokenizerConfig

__all__ = ["Tokenizer", "TokenizerConfig", "from_path", "load_tokenizer", "train_tokenizer"]

Trained = SentencePieceTokenizer | WordPieceTokenizer | ByteLevelTokenizer | CharTokenizer | ByteTokenizer

KINDS: dict[str, type[Trained]] = {
  "sentencepiece": SentencePieceTokenizer,
  "wordpiece": WordPieceTokenizer,
  "gpt2": ByteLevelTokenizer,
  "char": CharTokenizer,
  "byte": ByteTokenizer,
}


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
  """A tokenizer for `texts`: the same texts give the same one, on any number of cores.

  It has `config.vocab_size` ids, or fewer if the texts have no more pieces.

  Raises:
    UserError: an unknown kind or algorithm, or a vocabulary too small for the characters of these texts.
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
    if content["kind"] not in KINDS:
      raise UserError(
        f"{path / JSON_FILE}: unknown kind of tokenizer {content['kind']!r}, expected one of {', '.join(KINDS)}"
      )
    kind: type[Tokenizer] = KINDS[content["kind"]]
    tokenizer = kind.restore(content, (path / kind.model_file).read_bytes() if kind.model_file else b"")
    tokenizer.reads_names = content.get("reads_names") is True
  except FileNotFoundError as error:
    raise UserError(f"no tokenizer at {path}: {JSON_FILE} or its model file is missing") from error
  except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
    raise UserError(f"the tokenizer at {path} is damaged: {error}") from error
  if tokenizer.fingerprint != content.get("fingerprint"):
    raise UserError(f"the tokenizer at {path} is damaged: its files do not match their fingerprint")
  return tokenizer


def from_path(config: TokenizerConfig) -> Tokenizer:
  """The tokenizer that `config.path` names: files of others, or the directory of a saved tokenizer.

  Its own vocabulary size stands, whatever `config.vocab_size` says. `config.sentinels` are added on top of files
  that have none.

  Raises:
    UserError: a missing or damaged file, another kind than `config.kind`, or too few sentinels.
  """
  _check(config)
  path = epath.Path(config.path).expanduser()
  tokenizer: Tokenizer | None
  if path.is_dir() and _is_saved(path):
    tokenizer = load_tokenizer(path)
  elif config.kind in ("wordpiece", "gpt2"):
    tokenizer = from_files(path, config.lowercase, config.sentinels)
  elif path.is_dir():
    tokenizer = None
  elif config.kind == "sentencepiece":
    tokenizer = SentencePieceTokenizer.from_file(path, config.sentinels)
  else:
    raise UserError(f"tokenizer.path={config.path}: not the directory of a saved tokenizer")
  if tokenizer is None:
    raise UserError(f"no tokenizer at {path} for tokenizer.kind={config.kind}: {_FILES[config.kind]}")
  if tokenizer.kind != config.kind:
    raise UserError(
      f"tokenizer.path={config.path} holds a {tokenizer.kind} tokenizer: set tokenizer.kind={tokenizer.kind}"
    )
  if len(tokenizer.sentinel_ids) < config.sentinels:
    raise UserError(f"tokenizer.sentinels={config.sentinels}: {config.path} has only {len(tokenizer.sentinel_ids)}")
  return tokenizer


_FILES = {
  "char": "it reads the directory of a saved one",
  "byte": "it reads the directory of a saved one",
  "sentencepiece": "it reads a .model file",
  "wordpiece": "it reads vocab.txt or tokenizer.json",
  "gpt2": "it reads tokenizer.json, vocab.json with merges.txt, or encoder.json with vocab.bpe",
}


def _is_saved(directory: epath.Path) -> bool:
  """Whether the tokenizer.json there is not Hugging Face's, which has a model in it, but ours, or damaged."""
  file = directory / JSON_FILE
  try:
    return file.exists() and "model" not in json.loads(file.read_bytes())
  except (ValueError, TypeError, RecursionError):
    return True


def _check(config: TokenizerConfig) -> None:
  if config.kind not in KINDS:
    raise UserError(f"tokenizer.kind={config.kind}: expected one of {', '.join(KINDS)}")
  if config.algorithm not in ALGORITHMS:
    raise UserError(f"tokenizer.algorithm={config.algorithm}: expected one of {', '.join(ALGORITHMS)}")
  if config.sentinels < 0:
    raise UserError(f"tokenizer.sentinels={config.sentinels}: it cannot be negative")
