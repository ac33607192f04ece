"""The tables by name, and config.json translated to ModelConfig and back."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.hf.table import Table, activation, their_activation
from tfm_jax.hf.tables.bart import BART
from tfm_jax.hf.tables.bert import BERT, ELECTRA, ROBERTA
from tfm_jax.hf.tables.distilbert import DISTILBERT
from tfm_jax.hf.tables.esm import ESM
from tfm_jax.hf.tables.gpt2 import GPT2
from tfm_jax.hf.tables.gpt_neox import GPT_NEOX
from tfm_jax.hf.tables.llama import LLAMA
from tfm_jax.hf.tables.modernbert import MODERNBERT
from tfm_jax.hf.tables.t5 import T5, T5_ENCODER
from tfm_jax.hf.tables.vit import VIT
from tfm_jax.models.config import BIASES, ModelConfig, field, fields_of, full_key
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import resolve_model

# Of two tables for one family, the one that serves only some of its models comes first.
TABLES = (ESM, BERT, ROBERTA, DISTILBERT, ELECTRA, MODERNBERT, GPT_NEOX, GPT2, LLAMA, T5, T5_ENCODER, BART, VIT)

# Fields that say how a model is computed or trained, not which model it is.
FREE = ("dropout", "attention_dropout", "attention", "dtype", "remat", "scan", "init", "inner_dropout")
# The fields of ModelConfig by key, with their types; instead of `bias`, one field for each part that may have one.
KINDS = {key: kind for key, kind in fields_of(ModelConfig).items() if key != "bias"}
KINDS |= {f"bias.{part}": bool for part in BIASES}
_NAMED = ("activation", "head.activation")  # fields that name an activation


def tables_of_type(theirs: Mapping[str, Any]) -> list[Table]:
  """The tables for the model type of a config.json. Raises UserError if there is none."""
  kind = theirs.get("model_type")
  tables = [table for table in TABLES if kind in table.model_types]
  if not tables:
    known = ", ".join(dict.fromkeys(kind for table in TABLES for kind in table.model_types))
    raise UserError(f"config.json: model_type={kind!r} is not supported; supported are {known}")
  return tables


def table_of_architecture(theirs: Mapping[str, Any], architecture: str) -> Table:
  """The table by which a config.json is read as an architecture. Raises UserError."""
  tables = tables_of_type(theirs)
  for table in tables:
    if architecture in table.architectures:
      return table
  known = ", ".join(name for table in tables for name in table.architectures)
  raise UserError(f"the architecture {architecture!r} is not supported; of its family there are {known}")


def table_of_model(family: str, config: ModelConfig) -> Table:
  """The table by which a model of ours is exported. Raises UserError."""
  for table in TABLES:
    if table.family == family and table.serves(config):
      return table
  exported = ", ".join(dict.fromkeys(table.family for table in TABLES))
  raise UserError(f"family={family} has no counterpart in transformers; exported are {exported}")


def config_from(theirs: Mapping[str, Any], architecture: str) -> ModelConfig:
  """Our configuration of a config.json.

  Args:
    theirs: config.json.
    architecture: the name in transformers of what it is read as.

  Raises:
    UserError: an architecture that is not supported; a value that is impossible or has no counterpart here.
  """
  table = table_of_architecture(theirs, architecture)
  head = table.architectures[architecture]
  for key, value in table.fixed.items():
    if theirs.get(key, value) != value:
      raise UserError(f"config.json: {key}={theirs[key]!r} is not supported, only {value!r} is")
  ours: dict[str, Any] = {"head.name": head}
  for pair in table.keys:
    value = theirs.get(pair.theirs, pair.default)
    ours[pair.ours] = activation(value) if pair.ours in _NAMED else value
  try:
    ours |= table.to_ours(theirs, ours)
  except (TypeError, ValueError, KeyError, AttributeError) as error:
    raise UserError(f"config.json is not a configuration of {theirs.get('model_type')}: {error!r}") from error
  ours |= _labels(theirs, head)
  their_keys = {key.ours: key.theirs for key in table.keys}
  ours = {key: _typed(value, KINDS[key], their_keys.get(key, key)) for key, value in ours.items()}
  preset = find_family(table.family).preset
  biases = [part for part in BIASES if ours.pop(f"bias.{part}", preset.has_bias(part))]
  return resolve_model(table.family, {**ours, "bias": ",".join(biases) or "none"})


def _typed(value: Any, kind: type, key: str) -> Any:
  """A value of config.json, checked to have the type of our field."""
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if type(value) is not kind:
    raise UserError(f"config.json: {key}={value!r} is not {kind.__name__}")
  if isinstance(value, int) and not 0 <= value < 2**31:
    raise UserError(f"config.json: {key}={value} is out of range")
  return value


def _labels(theirs: Mapping[str, Any], head: str) -> dict[str, Any]:
  """Number and names of the classes; the default names LABEL_0, LABEL_1 ... are left out."""
  if head not in ("sequence_classification", "token_classification"):
    return {}
  names = theirs.get("id2label")
  if not isinstance(names, dict) or not names:
    return {"head.num_labels": theirs.get("num_labels", 2)}
  listed = [names.get(str(i)) for i in range(len(names))]
  usable = all(isinstance(name, str) and "|" not in name for name in listed)
  if not usable or listed == [f"LABEL_{i}" for i in range(len(listed))]:
    return {"head.num_labels": len(listed)}
  return {"head.num_labels": len(listed), "head.labels": "|".join(map(str, listed))}


def config_to(config: ModelConfig, family: str, architecture: str = "") -> dict[str, Any]:
  """The config.json of our configuration, without ids of special tokens.

  Args:
    config: our configuration, simplified by its table.
    family: the name of our family.
    architecture: the architecture from which the model was imported. Its model type is kept where several would do.

  Raises:
    UserError: the family has no counterpart, or a field has a value that the counterpart does not support; it is named.
  """
  table = table_of_model(family, config)
  if table.architectures.get(architecture) == config.head.name and len(table.model_types) > 1:
    kind = next(kind for kind in table.model_types if architecture in table.architectures_of(kind))
    with contextlib.suppress(UserError):  # it was changed after the import: another type may support it
      return _config_to(config, table, kind)
  return _config_to(config, table, "")


def _config_to(config: ModelConfig, table: Table, kind: str) -> dict[str, Any]:
  """The config.json with this model type; "": with any."""
  theirs: dict[str, Any] = {"model_type": table.model_types[0]}
  for key in table.keys:
    value = _normal(config, key.ours)
    if key.theirs not in theirs:
      theirs[key.theirs] = their_activation(value) if key.ours in _NAMED else value
  theirs |= table.to_theirs(config, kind)
  theirs["architectures"] = [_architecture(table, config.head.name, theirs["model_type"])]
  head = config.head
  if head.name in ("sequence_classification", "token_classification"):
    names = head.labels.split("|") if head.labels else [f"LABEL_{i}" for i in range(head.num_labels)]
    theirs["id2label"] = {str(i): label for i, label in enumerate(names)}
    theirs["label2id"] = {label: i for i, label in enumerate(names)}
  _check_same(config, theirs)
  return theirs


def _architecture(table: Table, head: str, kind: str) -> str:
  """The name of the architecture with a head and a model type. Raises UserError."""
  for architecture in table.architectures_of(kind):
    if table.architectures[architecture] == head:
      return architecture
  heads = ", ".join(dict.fromkeys(table.architectures.values()))
  raise UserError(f"head.name={head} of family={table.family} has no counterpart in transformers; exported are {heads}")


def _check_same(config: ModelConfig, theirs: Mapping[str, Any]) -> None:
  """Reads config.json back. Raises UserError for a field that comes back changed: the architecture lacks its value."""
  (architecture,) = theirs["architectures"]
  back = config_from(theirs, architecture)
  for key in KINDS:
    if _normal(config, key) != _normal(back, key) and key not in FREE and not _unused(config, key):
      shown = "bias" if key.startswith("bias.") else key
      raise UserError(
        f"{full_key(shown)}={_normal(config, shown)!r} has no counterpart in {architecture} of "
        f"transformers, where it would be {_normal(back, shown)!r}"
      )


def _normal(config: ModelConfig, key: str) -> Any:
  """A field's value, with 0 ("derive it") replaced by the derived value; "bias.PART": whether that part has one."""
  if key.startswith("bias."):
    return config.has_bias(key.removeprefix("bias."))
  derived = {
    "head_dim": "head_features",
    "mlp_dim": "mlp_features",
    "num_kv_heads": "kv_heads",
    "embedding_dim": "embed_features",
    "decoder_layers": "decoder_depth",
  }
  value = field(config, derived.get(key, key))
  # From the number of layers on, all values mean the same: only layer 0 is global.
  return min(value, config.num_layers) if key == "window.global_every" else value


_ROTARY = tuple(key for key in KINDS if key.startswith("rotary."))
_EXPERTS = tuple(key for key in KINDS if key.startswith("experts.") and key != "experts.count")
_TRANSFORM = ("head.transform", "head.activation", "bias.transform")
# Fields, and the models in which they have no meaning.
UNUSED: tuple[tuple[tuple[str, ...], Callable[[ModelConfig], bool]], ...] = (
  (("bias.norm",), lambda c: c.norm == "rms"),
  (("relative.buckets", "relative.distance"), lambda c: c.positions != "relative"),
  (("max_positions",), lambda c: c.positions in ("relative", "alibi", "none") or c.image.patch > 0),
  (_ROTARY, lambda c: c.positions != "rotary"),
  (("rotary.low", "rotary.high"), lambda c: not c.rotary.original),
  (("window.global_every", "rotary.local_base"), lambda c: not c.window.size),
  (_EXPERTS, lambda c: not c.experts.count),
  (("first_norm",), lambda c: c.norm_order != "pre"),
  (("head.num_labels", "head.labels"), lambda c: not c.head.name.endswith("_classification")),
  (("head.pooler", "head.pooling"), lambda c: c.head.name not in ("pretraining", "pooled", "sequence_classification")),
  (("tied", "head.bias", "scale_output"), lambda c: c.head.name not in ("lm", "pretraining")),
  (_TRANSFORM, lambda c: c.head.name not in ("lm", "pretraining") and not c.head.classifier_transform),
  (_TRANSFORM[1:], lambda c: not c.head.transform),
  (("head.generator", "head.generator_layers"), lambda c: c.head.name != "electra"),
  (("image.channels",), lambda c: not c.image.patch),
)


def _unused(config: ModelConfig, key: str) -> bool:
  """Whether a field has no meaning in this model."""
  return any(key in fields and when(config) for fields, when in UNUSED)
