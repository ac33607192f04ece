"""Tokenizers: train one, load one that was saved, or take one from a file."""

import hashlib
import json
from collections.abc import Iterable

from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.text.characters import ByteTokenizer, CharTokenizer
from tfm_jax.text.library import ByteLevelTokenizer, LibraryTokenizer, WordPieceTokenizer
from tfm_jax.text.pretrained import from_files
from tfm_jax.text.subwords import ALGORITHMS, SentencePieceTokenizer
from tfm_jax.text.tokenizer import JSON_FILE, SOURCE_FILE, Tokenizer, TokenizerConfig

__all__ = ["Tokenizer", "TokenizerConfig", "from_path", "load_tokenizer", "read", "train_tokenizer"]

KINDS: dict[str, type[SentencePieceTokenizer | LibraryTokenizer | CharTokenizer | ByteTokenizer]] = {
  "sentencepiece": SentencePieceTokenizer,
  "wordpiece": WordPieceTokenizer,
  "gpt2": ByteLevelTokenizer,
  "char": CharTokenizer,
  "byte": ByteTokenizer,
  "huggingface": LibraryTokenizer,
}


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
  """A tokenizer for `texts`: the same texts give the same one, on any number of cores.

  It has `config.vocab_size` ids, or fewer if the texts have no more pieces.

  Raises:
    UserError: an unknown kind or algorithm, or a vocabulary too small for the characters of these texts.
  """
  _check(config)
  return KINDS[config.kind or "sentencepiece"].train(config, texts)


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
    if digest := content.get("source_sha256"):
      tokenizer.source = (path / SOURCE_FILE).read_bytes()
      if hashlib.sha256(tokenizer.source).hexdigest() != digest:
        raise ValueError(f"{SOURCE_FILE} is not what was saved")
  except FileNotFoundError as error:
    raise UserError(f"no tokenizer at {path}: {JSON_FILE} or its model file is missing") from error
  except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
    raise UserError(f"the tokenizer at {path} is damaged: {error}") from error
  if tokenizer.fingerprint != content.get("fingerprint"):
    raise UserError(f"the tokenizer at {path} is damaged: its files do not match their fingerprint")
  return tokenizer


def from_path(config: TokenizerConfig) -> Tokenizer:
  """The tokenizer that `config.path` names: files of others, or the directory of a saved tokenizer.

  Its own kind and vocabulary size stand, whatever `config.vocab_size` says. `config.sentinels` are added on top of
  files that have none.

  Raises:
    UserError: a missing or damaged file, another kind than `config.kind`, or too few sentinels.
  """
  _check(config)
  path = epath.Path(config.path).expanduser()
  tokenizer = read(path, config.lowercase, config.sentinels)
  if tokenizer is None:
    raise UserError(f"no tokenizer at {path}: {_FILES}")
  if config.kind not in ("", tokenizer.kind):
    raise UserError(
      f"tokenizer.path={config.path} holds a {tokenizer.kind} tokenizer: set tokenizer.kind={tokenizer.kind}, or "
      "leave it empty"
    )
  if len(tokenizer.sentinel_ids) < config.sentinels:
    raise UserError(f"tokenizer.sentinels={config.sentinels}: {config.path} has only {len(tokenizer.sentinel_ids)}")
  return tokenizer


def read(path: epath.Path, lowercase: bool = True, sentinels: int = 0) -> Tokenizer | None:
  """The tokenizer of a folder or a file, ours or of others, see `pretrained`; None: the folder has none.

  Training and imports both read by it. Raises UserError.
  """
  folder = path.parent if path.name == JSON_FILE else path
  return load_tokenizer(folder) if _is_saved(folder) else from_files(path, lowercase, sentinels)


_FILES = (
  "wanted is a folder of Hugging Face's with tokenizer.json, vocab.txt, vocab.json with merges.txt, encoder.json with "
  "vocab.bpe, or a .model file; one of these files; or the directory of a saved one"
)


def _is_saved(directory: epath.Path) -> bool:
  """Whether the tokenizer.json there is one that `Tokenizer.save` wrote, not Hugging Face's."""
  try:
    content = json.loads((directory / JSON_FILE).read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(content, dict) and "kind" in content and "model" not in content


def _check(config: TokenizerConfig) -> None:
  if config.kind not in ("", *KINDS):
    raise UserError(f"tokenizer.kind={config.kind}: expected one of {', '.join(KINDS)}")
  if config.algorithm not in ALGORITHMS:
    raise UserError(f"tokenizer.algorithm={config.algorithm}: expected one of {', '.join(ALGORITHMS)}")
  if config.sentinels < 0:
    raise UserError(f"tokenizer.sentinels={config.sentinels}: it cannot be negative")
