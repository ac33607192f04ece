"""Tokenizers: train one, load a saved one, or read the files of others."""

import hashlib
import json
from collections.abc import Iterable

from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.characters import ByteTokenizer, CharTokenizer
from tfm_jax.text.tokenizers.library import ByteLevelTokenizer, LibraryTokenizer, WordPieceTokenizer
from tfm_jax.text.tokenizers.pretrained import from_files
from tfm_jax.text.tokenizers.subwords import ALGORITHMS, SentencePieceTokenizer
from tfm_jax.text.tokenizers.tokenizer import CHAT_FILE, JSON_FILE, SOURCE_FILE, Tokenizer, TokenizerConfig

__all__ = [
  "OWN_SIZE",
  "Tokenizer",
  "TokenizerConfig",
  "check_tokenizer",
  "from_path",
  "load_tokenizer",
  "read",
  "train_tokenizer",
  "training_version",
]

KINDS: dict[str, type[Tokenizer]] = {
  "sentencepiece": SentencePieceTokenizer,
  "wordpiece": WordPieceTokenizer,
  "gpt2": ByteLevelTokenizer,
  "char": CharTokenizer,
  "byte": ByteTokenizer,
  "huggingface": LibraryTokenizer,
}
OWN_SIZE = ("char", "byte")
"""Kinds whose vocabulary has the size that the text or UTF-8 gives it, whatever `vocab_size` says."""
_NEED_A_SIZE = ("", "sentencepiece", "wordpiece", "gpt2")


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
  """A tokenizer for `texts`: the same texts give the same tokenizer, on any number of cores.

  It has `config.vocab_size` ids, or fewer if the texts do not have as many pieces; `OWN_SIZE` kinds ignore that key.

  Raises:
    UserError: an unknown kind or algorithm, or a vocabulary too small for the characters of these texts.
  """
  check_tokenizer(config)
  return KINDS[config.kind or "sentencepiece"].train(config, texts)


def training_version(config: TokenizerConfig) -> tuple[int, ...]:
  """Part of the key of trained tokenizers in the cache: changes whenever a kind is trained in another way."""
  return KINDS[config.kind or "sentencepiece"].training_version


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
  """The tokenizer that `Tokenizer.save` wrote to `directory`.

  Raises:
    UserError: a missing or damaged file.
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
    if (path / CHAT_FILE).exists():
      tokenizer.chat_template = (path / CHAT_FILE).read_bytes().decode()
  except FileNotFoundError as error:
    raise UserError(f"no tokenizer at {path}: {JSON_FILE} or its model file is missing") from error
  except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
    raise UserError(f"the tokenizer at {path} is damaged: {error}") from error
  if tokenizer.fingerprint != content.get("fingerprint"):
    raise UserError(f"the tokenizer at {path} is damaged: its files do not match their fingerprint")
  return tokenizer


def from_path(config: TokenizerConfig) -> Tokenizer:
  """The tokenizer that `config.path` names: files of others, or the directory of a saved tokenizer.

  It keeps its own vocabulary size, whatever `config.vocab_size` says. `config.sentinels` are added on top of a
  vocabulary that has none.

  Raises:
    UserError: a missing or damaged file, another kind than `config.kind`, or too few sentinels.
  """
  check_tokenizer(config)
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
  """The tokenizer of a folder or a file, saved by us or by others (see `pretrained`); None: the folder has none.

  Both training and imports from Hugging Face use this function. Raises UserError.
  """
  folder = path.parent if path.name == JSON_FILE else path
  return load_tokenizer(folder) if _is_saved(folder) else from_files(path, lowercase, sentinels)


_FILES = (
  "expected a Hugging Face folder with tokenizer.json, vocab.txt, vocab.json with merges.txt, encoder.json with "
  "vocab.bpe, or a .model file; one of these files; or the directory of a saved tokenizer"
)


def _is_saved(directory: epath.Path) -> bool:
  """Whether `Tokenizer.save` wrote the tokenizer.json of this folder, rather than Hugging Face."""
  try:
    content = json.loads((directory / JSON_FILE).read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(content, dict) and "kind" in content and "model" not in content


def check_tokenizer(config: TokenizerConfig) -> None:
  """Raises UserError for settings that no text can serve."""
  if config.kind in ALGORITHMS:
    raise UserError(
      f"tokenizer.kind={config.kind}: {config.kind} is an algorithm of sentencepiece; set "
      f"tokenizer.algorithm={config.kind} and leave tokenizer.kind empty (tokenizer.kind=gpt2 is byte-level BPE)"
    )
  if config.kind not in ("", *KINDS):
    raise UserError(f"tokenizer.kind={config.kind}: expected one of {', '.join(KINDS)}")
  if config.kind == "huggingface" and not config.path:
    raise UserError(
      "tokenizer.kind=huggingface is read from files: name them in tokenizer.path, or choose another kind"
    )
  if not config.path and not config.vocab_size and config.kind in _NEED_A_SIZE:
    raise UserError(
      "tokenizer.vocab_size=0: set the number of pieces to train, such as 8192; or name an existing tokenizer in "
      "tokenizer.path; or set tokenizer.kind=byte, which has a size of its own"
    )
  if config.algorithm not in ALGORITHMS:
    raise UserError(f"tokenizer.algorithm={config.algorithm}: expected one of {', '.join(ALGORITHMS)}")
  if config.sentinels < 0:
    raise UserError(f"tokenizer.sentinels={config.sentinels}: it cannot be negative")
