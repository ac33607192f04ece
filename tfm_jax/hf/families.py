"""The tables by our family's name, and configurations translated in both directions."""

import contextlib
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
from tfm_jax.models.config import BIASES, ModelConfig, field, fields_of, full_key
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import resolve_model

FAMILIES: dict[str, Family] = {
  "bert": BERT, "roberta": ROBERTA, "distilbert": DISTILBERT, "electra": ELECTRA, "modernbert": MODERNBERT,
  "gpt": GPT2, "llama": LLAMA, "t5": T5, "vit": VIT,
}  # fmt: skip

# What does not decide which model it is: how it is computed and trained.
FREE = ("dropout", "attention_dropout", "attention", "dtype", "remat", "scan", "init", "inner_dropout")
# Every field by its key, with its type; in place of `bias` each part that may have one.
KINDS = {key: kind for key, kind in fields_of(ModelConfig).items() if key != "bias"}
KINDS |= {f"bias.{part}": bool for part in BIASES}
_NAMED = ("activation", "head.activation")  # fields that name an activation


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
  ours: dict[str, Any] = {"head.name": head}
  for pair in family.keys:
    value = theirs.get(pair.theirs, pair.default)
    ours[pair.ours] = activation(value) if pair.ours in _NAMED else value
  try:
    ours |= family.to_ours(theirs, ours)
  except (TypeError, ValueError, KeyError, AttributeError) as error:
    raise UserError(f"config.json is not a configuration of {theirs.get('model_type')}: {error!r}") from error
  ours |= _labels(theirs, head)
  said = {key.ours: key.theirs for key in family.keys}
  ours = {key: _typed(value, KINDS[key], said.get(key, key)) for key, value in ours.items()}
  biases = [part for part in BIASES if ours.pop(f"bias.{part}", find_family(name).preset.has_bias(part))]
  return resolve_model(name, {**ours, "bias": ",".join(biases) or "none"})


def _typed(value: Any, kind: type, key: str) -> Any:
  """A value of config.json, if it is of the type that the field has."""
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if type(value) is not kind:
    raise UserError(f"config.json: {key}={value!r} is not {kind.__name__}")
  if isinstance(value, int) and not 0 <= value < 2**31:
    raise UserError(f"config.json: {key}={value} is out of range")
  return value


def _labels(theirs: Mapping[str, Any], head: str) -> dict[str, Any]:
  """Number and names of the classes; names that say nothing are left out."""
  if head not in ("sequence_classification", "token_classification"):
    return {}
  names = theirs.get("id2label")
  if not isinstance(names, dict) or not names:
    return {"head.num_labels": theirs.get("num_labels", 2)}
  listed = [names.get(str(i)) for i in range(len(names))]
  said = all(isinstance(name, str) and "|" not in name for name in listed)
  if not said or listed == [f"LABEL_{i}" for i in range(len(listed))]:
    return {"head.num_labels": len(listed)}
  return {"head.num_labels": len(listed), "head.labels": "|".join(map(str, listed))}


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
  if family.architectures.get(architecture) == config.head.name and len(family.model_types) > 1:
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
  theirs["architectures"] = [_architecture(family, config.head.name, kind, name)]
  head = config.head
  if head.name in ("sequence_classification", "token_classification"):
    names = head.labels.split("|") if head.labels else [f"LABEL_{i}" for i in range(head.num_labels)]
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
  raise UserError(f"head.name={head} of family={name} has no counterpart in transformers; exported are {heads}")


def _check_same(config: ModelConfig, theirs: Mapping[str, Any], name: str) -> None:
  """Reads back what was written: a field that comes back changed is one that their model does not have."""
  back = config_from(theirs, name, config.head.name)
  for key in KINDS:
    if _normal(config, key) != _normal(back, key) and key not in FREE and not _unused(config, key):
      shown = "bias" if key.startswith("bias.") else key
      raise UserError(
        f"{full_key(shown)}={_normal(config, shown)!r} has no counterpart in {theirs['architectures'][0]} of "
        f"transformers, where it would be {_normal(back, shown)!r}"
      )


def _normal(config: ModelConfig, key: str) -> Any:
  """A field's value, with 0 ("derive it") replaced by the derived value; "bias.PART": whether that part has one."""
  if key.startswith("bias."):
    return config.has_bias(key.removeprefix("bias."))
  derived = {
    "head_dim": "head_features", "mlp_dim": "mlp_features", "num_kv_heads": "kv_heads",
    "embedding_dim": "embed_features", "decoder_layers": "decoder_depth",
  }  # fmt: skip
  value = field(config, derived.get(key, key))
  return min(value, config.num_layers) if key == "window.global_every" else value  # where only the first layer sees all


_ROTARY = tuple(key for key in KINDS if key.startswith("rotary."))
_TRANSFORM = ("head.transform", "head.activation", "bias.transform")
# Fields, and the models in which they mean nothing.
UNUSED: tuple[tuple[tuple[str, ...], Callable[[ModelConfig], bool]], ...] = (
  (("bias.norm",), lambda c: c.norm == "rms"),
  (("relative_buckets", "relative_distance"), lambda c: c.positions != "relative"),
  (("max_positions",), lambda c: c.positions in ("relative", "none") or c.image.patch > 0),
  (_ROTARY, lambda c: c.positions != "rotary"),
  (("rotary.low", "rotary.high"), lambda c: not c.rotary.original),
  (("window.global_every", "rotary.local_base"), lambda c: not c.window.size),
  (("first_norm",), lambda c: c.norm_order == "post"),
  (("head.num_labels", "head.labels"), lambda c: not c.head.name.endswith("_classification")),
  (("head.pooler", "head.pooling"), lambda c: c.head.name not in ("pretraining", "pooled", "sequence_classification")),
  (("tied", "head.bias", "scale_output"), lambda c: c.head.name not in ("lm", "pretraining")),
  (_TRANSFORM, lambda c: c.head.name not in ("lm", "pretraining") and not c.head.classifier_transform),
  (_TRANSFORM[1:], lambda c: not c.head.transform),
  (("image.channels",), lambda c: not c.image.patch),
)


def _unused(config: ModelConfig, key: str) -> bool:
  """Whether a field means nothing in this model."""
  return any(key in fields and when(config) for fields, when in UNUSED)
