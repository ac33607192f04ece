"""Reads a folder with a sentencepiece model and no tokenizer.json, as transformers' slow tokenizers wrote it."""

from typing import Any

from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.sentencepiece_json import CONTROL, USER_DEFINED, parse
from tfm_jax.text.tokenizers.subwords import SentencePieceTokenizer

# Classes of transformers that use the ids of a sentencepiece model unchanged. Others shift or reorder them.
_CLASSES = (
  "",
  "T5Tokenizer",
  "LlamaTokenizer",
  "CodeLlamaTokenizer",
  "GemmaTokenizer",
  "PreTrainedTokenizer",
  "TokenizersBackend",
)
_MOST_EXTRAS = 1 << 20  # tokens on top of a model; a file with more is damaged


def model_file(folder: epath.Path) -> epath.Path | None:
  """The sentencepiece model of a folder, or None."""
  names = sorted(path.name for path in folder.glob("*.model"))
  name = next((name for name in ("spiece.model", "tokenizer.model") if name in names), names[0] if names else None)
  return None if name is None else folder / name


def read_model(
  path: epath.Path, settings: dict[str, Any], owner: str, added: list[dict[str, Any]], t5: bool, sentinels: int
) -> SentencePieceTokenizer:
  """The model with the tokens that transformers adds to it: sentinels, or others as pieces of their own.

  Args:
    path: the model file.
    settings: the content of tokenizer_config.json.
    owner: the class of transformers that these settings name.
    added: the tokens that the files beside the model add.
    t5: whether the folder belongs to a T5, whose sentinels no file names.
    sentinels: added on top if the vocabulary has none.

  Raises:
    UserError: a damaged model, or ids that cannot be derived from it.
  """
  if path.name == "sentencepiece.bpe.model":
    raise UserError(f"{path}: the ids of this kind of model are shifted by fairseq; put a tokenizer.json beside it")
  if owner not in _CLASSES:
    raise UserError(f"{path}: a {owner} may number the pieces in its own way; put a tokenizer.json beside it")
  model = path.read_bytes()
  try:
    size = len(parse(model).pieces)
    SentencePieceTokenizer(model)
  except (RuntimeError, ValueError) as error:
    raise UserError(f"{path} is damaged, or not a sentencepiece model") from error
  if not added and (t5 or owner == "T5Tokenizer"):
    return SentencePieceTokenizer(model, sentinel_count(settings, 100, path.parent) or sentinels)
  extras = {row["id"]: str(row["content"]) for row in added if row["id"] >= size}
  if max(extras, default=0) > size + _MOST_EXTRAS:
    raise UserError(f"the tokenizer files beside {path} are damaged: an id is {max(extras)}")
  if sorted(extras.items()) == [(size + n, f"<extra_id_{len(extras) - 1 - n}>") for n in range(len(extras))]:
    return SentencePieceTokenizer(model, len(extras) or sentinels)
  text = {row["content"] for row in added} - {row["content"] for row in added if row["special"]}
  proto = parse(model)
  try:
    for id in range(size, max(extras) + 1):
      token = extras.get(id, f"<no token {id}>")
      proto.pieces.add(piece=token, score=0.0, type=USER_DEFINED if token in text else CONTROL)
    return SentencePieceTokenizer(proto.SerializeToString(), sentinels)
  except (RuntimeError, ValueError) as error:
    raise UserError(
      f"{path}: the tokens that the files beside it add do not go with it: {' '.join(str(error).split())}"
    ) from error


def sentinel_count(settings: dict[str, Any], default: int, folder: epath.Path) -> int:
  """The number of sentinels that transformers' classes of T5 and ByT5 add on top of a vocabulary."""
  named = settings.get("additional_special_tokens") or settings.get("extra_special_tokens")
  if isinstance(named, list):
    return sum("<extra_id_" in str(token) for token in named)
  count = settings.get("extra_ids", default)
  if not isinstance(count, int) or not 0 <= count <= _MOST_EXTRAS:
    raise UserError(f"{folder / 'tokenizer_config.json'} is damaged: extra_ids is {count!r}")
  return count
