"""The tables by our family's name, and configurations translated in both directions."""

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.hf.bert import BERT, ELECTRA, ROBERTA
from tfm_jax.hf.distilbert import DISTILBERT
from tfm_jax.hf.gpt2 import GPT2
from tfm_jax.hf.llama import LLAMA
from tfm_jax.hf.modernbert import MODERNBERT
from tfm_jax.hf.t5 import T5
from tfm_jax.hf.table import Family, activation, their_activation
from tfm_jax.hf.vit import VIT
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.model import resolve_model

FAMILIES: dict[str, Family] = {
  "bert": BERT, "roberta": ROBERTA, "distilbert": DISTILBERT, "electra": ELECTRA, "modernbert": MODERNBERT,
  "gpt": GPT2, "llama": LLAMA, "t5": T5, "vit": VIT,
}  # fmt: skip

# What does not decide which model it is: how it is computed and trained.
FREE = ("dropout", "attention_dropout", "attention", "dtype", "remat", "scan", "init", "inner_dropout")
_NAMED = ("activation", "head_activation")  # fields that name an activation


def family_of(theirs: Mapping[str, Any]) -> str:
  """Our name of the family of a config.json. Raises UserError."""
  kind = theirs.get("model_type")
  for name, family in FAMILIES.items():
    if kind in family.model_types:
      return name
  known = ", ".join(kind for family in FAMILIES.values() for kind in family.model_types)
  raise UserError(f"config.json: model_type={kind!r} is not supported; supported are {known}")


def head_of(name: str, architecture: str) -> str:
  """Our head of an architecture. Raises UserError."""
  heads = FAMILIES[name].architectures
  if architecture not in heads:
    raise UserError(f"the architecture {architecture!r} is not supported; of its family there are {', '.join(heads)}")
  return heads[architecture]


def config_from(theirs: Mapping[str, Any], name: str, head: str) -> ModelConfig:
  """Our configuration of a config.json.

  Args:
    theirs: config.json.
    name: our family's name.
    head: our head's name.

  Raises:
    UserError: a value that is impossible or has no counterpart here.
  """
  family = FAMILIES[name]
  for key, value in family.fixed.items():
    if theirs.get(key, value) != value:
      raise UserError(f"config.json: {key}={theirs[key]!r} is not supported, only {value!r} is")
  ours: dict[str, Any] = {"head": head}
  for pair in family.keys:
    value = theirs.get(pair.theirs, pair.default)
    ours[pair.ours] = activation(value) if pair.ours in _NAMED else value
  try:
    ours |= family.to_ours(theirs, ours)
  except (TypeError, ValueError, KeyError, AttributeError) as error:
    raise UserError(f"config.json is not a configuration of {theirs.get('model_type')}: {error!r}") from error
  ours |= _labels(theirs, head)
  hints = typing.get_type_hints(ModelConfig)
  said = {key.ours: key.theirs for key in family.keys}
  for field, value in ours.items():
    ours[field] = _typed(value, hints[field], said.get(field, field))
  return resolve_model(name, ModelConfig(**ours))


def _typed(value: Any, hint: Any, key: str) -> Any:
  """A value of config.json, if it is of the type that the field has."""
  kinds = typing.get_args(hint) or (hint,)
  if float in kinds and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if type(value) not in kinds or value is None:
    raise UserError(
      f"config.json: {key}={value!r} is not {' or '.join(k.__name__ for k in kinds if k is not type(None))}"
    )
  if isinstance(value, int) and not 0 <= value < 2**31:
    raise UserError(f"config.json: {key}={value} is out of range")
  return value


def _labels(theirs: Mapping[str, Any], head: str) -> dict[str, Any]:
  """Number and names of the classes; names that say nothing are left out."""
  if head not in ("sequence_classification", "token_classification"):
    return {}
  names = theirs.get("id2label")
  if not isinstance(names, dict) or not names:
    return {"num_labels": theirs.get("num_labels", 2)}
  listed = [names.get(str(i)) for i in range(len(names))]
  said = all(isinstance(name, str) and "|" not in name for name in listed)
  if not said or listed == [f"LABEL_{i}" for i in range(len(listed))]:
    return {"num_labels": len(listed)}
  return {"num_labels": len(listed), "labels": "|".join(map(str, listed))}


def config_to(config: ModelConfig, name: str, architecture: str = "") -> dict[str, Any]:
  """The config.json of our configuration, without ids of special tokens.

  Args:
    config: our configuration.
    name: our family's name.
    architecture: what it once was there, which it stays where there are several that it could be.

  Raises:
    UserError: the family is not one of theirs, or a field has a value that their model does not have; it is named.
  """
  if name not in FAMILIES:
    raise UserError(f"family={name} has no counterpart in transformers; exported are {', '.join(FAMILIES)}")
  family = FAMILIES[name]
  if family.architectures.get(architecture) == config.head and len(family.model_types) > 1:
    kind = next(kind for kind in family.model_types if architecture in family.architectures_of(kind))
    with contextlib.suppress(UserError):  # it has changed since: another may have what is used
      return _config_to(config, name, kind)
  return _config_to(config, name, "")


def _config_to(config: ModelConfig, name: str, kind: str) -> dict[str, Any]:
  """The config.json with this model type; "": with any."""
  family = FAMILIES[name]
  theirs: dict[str, Any] = {"model_type": family.model_types[0]}
  for key in family.keys:
    value = _normal(config, key.ours)
    if key.theirs not in theirs:
      theirs[key.theirs] = their_activation(value) if key.ours in _NAMED else value
  theirs |= family.to_theirs(config, kind)
  kind = theirs["model_type"]
  theirs["architectures"] = [_architecture(family, config.head, kind, name)]
  if config.head in ("sequence_classification", "token_classification"):
    names = config.labels.split("|") if config.labels else [f"LABEL_{i}" for i in range(config.num_labels)]
    theirs["id2label"] = {str(i): label for i, label in enumerate(names)}
    theirs["label2id"] = {label: i for i, label in enumerate(names)}
  _check_same(config, theirs, name)
  return theirs


def _architecture(family: Family, head: str, kind: str, name: str) -> str:
  """The name of the architecture of a head and a model type. Raises UserError."""
  for architecture in family.architectures_of(kind):
    if family.architectures[architecture] == head:
      return architecture
  heads = ", ".join(dict.fromkeys(family.architectures.values()))
  raise UserError(f"model.head={head} of family={name} has no counterpart in transformers; exported are {heads}")


def _check_same(config: ModelConfig, theirs: Mapping[str, Any], name: str) -> None:
  """Reads back what was written: a field that comes back changed is one that their model does not have."""
  back = config_from(theirs, name, config.head)
  for field in dataclasses.fields(ModelConfig):
    ours, read = (_normal(c, field.name) for c in (config, back))
    if ours != read and field.name not in FREE and not _unused(config, field.name):
      raise UserError(
        f"model.{field.name}={ours!r} has no counterpart in {theirs['architectures'][0]} of transformers, "
        f"where it would be {read!r}"
      )


def _normal(config: ModelConfig, field: str) -> Any:
  """A field's value; numbers of which 0 stands for a derived one as that one."""
  derived = {
    "head_dim": "head_features", "mlp_dim": "mlp_features", "num_kv_heads": "kv_heads",
    "embedding_dim": "embed_features", "decoder_layers": "decoder_depth",
  }  # fmt: skip
  value = getattr(config, derived.get(field, field))
  return min(value, config.num_layers) if field == "global_every" else value  # where only the first layer sees all


_ROTARY = ("rotary_base", "local_rotary_base", "rotary_factor", "rotary_original", "rotary_low", "rotary_high")
_TRANSFORM = ("head_transform", "head_activation", "transform_bias")
# Fields, and the models in which they mean nothing.
UNUSED: tuple[tuple[tuple[str, ...], Callable[[ModelConfig], bool]], ...] = (
  (("bias",), lambda c: True),  # its four parts decide
  (("relative_buckets", "relative_distance"), lambda c: c.positions != "relative"),
  (("max_positions",), lambda c: c.positions in ("relative", "none") or c.patch_size > 0),
  (_ROTARY, lambda c: c.positions != "rotary"),
  (("rotary_low", "rotary_high"), lambda c: not c.rotary_original),
  (("global_every", "local_rotary_base"), lambda c: not c.window),
  (("first_norm",), lambda c: c.norm_order == "post"),
  (("num_labels", "labels"), lambda c: not c.head.endswith("_classification")),
  (("pooler", "pooling"), lambda c: c.head not in ("pretraining", "pooled", "sequence_classification")),
  (("tied", "head_bias", "scale_output"), lambda c: c.head not in ("lm", "pretraining")),
  (_TRANSFORM, lambda c: c.head not in ("lm", "pretraining") and not c.classifier_transform),
  (_TRANSFORM[1:], lambda c: not c.head_transform),
  (("image_channels",), lambda c: not c.patch_size),
)


def _unused(config: ModelConfig, field: str) -> bool:
  """Whether a field means nothing in this model."""
  return any(field in fields and when(config) for fields, when in UNUSED)
