"""The configuration of a run: its tree of dataclasses, read from experiment files, flags and dictionaries."""

import dataclasses
import functools
import json
import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import config_dict

from tfm_jax.data.config import SOURCE_KEYS, DataConfig, TaskConfig, check_data, check_task, resolve_data
from tfm_jax.data.images.augment import AugmentConfig
from tfm_jax.errors import UserError, nearest_key
from tfm_jax.models import config as model_config
from tfm_jax.models.config import ModelConfig, full_key
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import check_family, resolve_model
from tfm_jax.objectives.objective import ObjectiveConfig, Vocabulary
from tfm_jax.objectives.table import OBJECTIVES, make_objective
from tfm_jax.ops.attention import KERNELS
from tfm_jax.ops.kernel import Need
from tfm_jax.ops.losses import LossConfig
from tfm_jax.runtime.experiment_file import evaluate
from tfm_jax.sharding.strategy import ShardingConfig
from tfm_jax.text.tokenizers.table import TokenizerConfig
from tfm_jax.training.checkpoint import CheckpointConfig
from tfm_jax.training.distill import DistillConfig
from tfm_jax.training.keys.allowed import CHOICES, COMPOSED, DECAYS, FRACTIONS, POSITIVE
from tfm_jax.training.keys.moved import MOVED, translated
from tfm_jax.training.keys.settings import EvalConfig, TrainConfig
from tfm_jax.training.keys.values import TYPE_NAMES, converted, of_sections
from tfm_jax.training.optimization.lora import AdapterConfig
from tfm_jax.training.optimization.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Config:
  """All settings of a run, in one level of sections. Each section is defined beside the code that uses it."""

  family: str = "bert"  # architecture
  seed: int = 0  # random seed of initialisation, data order, masking and dropout
  init_from: str = ""  # a run directory whose parameters this run starts from (continued pre-training, fine-tuning)
  init_layers: str = ""  # layers of init_from that a shallower model starts from, such as 0,2,4; empty: all
  branch_from: str = ""  # a run directory whose whole state this run goes on from, in a directory of its own
  branch_at: int = 0  # the step of its checkpoint; 0: the last
  model: ModelConfig = resolve_model("bert")  # the family's preset, with changes
  tokenizer: TokenizerConfig = TokenizerConfig()
  data: DataConfig = DataConfig()
  augment: AugmentConfig = AugmentConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  loss: LossConfig = LossConfig()
  distill: DistillConfig = DistillConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  adapter: AdapterConfig = AdapterConfig()
  train: TrainConfig = TrainConfig()
  eval: EvalConfig = EvalConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  sharding: ShardingConfig = ShardingConfig()
  task: TaskConfig = TaskConfig()


# Keys that may differ when a run is resumed; the name of a section stands for all of its keys.
MAY_CHANGE = (
  "train.steps",
  "train.epochs",
  "train.log_every",
  "train.layer_norms",
  "train.wandb",
  "train.profile_at",
  "eval",
  "checkpoint",
  "sharding",
  "data.prefetch",
  "distill.teacher",  # it may have moved: its parameters are compared
  "task.texts",  # follows from the data, whose fingerprint is compared; runs of earlier releases lack it
)

# Sections whose unset keys take the family's values: `model`, and the sections inside ModelConfig.
MODEL_SECTIONS = (
  "model",
  *(field.name for field in dataclasses.fields(ModelConfig) if dataclasses.is_dataclass(field.default)),
)

# Keys.


@functools.cache
def sections() -> dict[str, type]:
  """Section -> its dataclass; "" is the top level. Sections inside `model` follow it."""
  return {"": Config} | _sections_in(Config)


def _sections_in(kind: type) -> dict[str, type]:
  """The sections inside a section, at any depth."""
  inner: dict[str, type] = {}
  for name, hint in typing.get_type_hints(kind).items():
    if dataclasses.is_dataclass(hint):
      inner |= {name: typing.cast(type, hint)} | _sections_in(typing.cast(type, hint))
  return inner


@functools.cache
def all_keys() -> dict[str, type]:
  """Every key, as "section.key", and its type."""
  return {
    f"{section}.{key}" if section else key: hint
    for section, kind in sections().items()
    for key, hint in typing.get_type_hints(kind).items()
    if not dataclasses.is_dataclass(hint)
  }


def choices(key: str) -> tuple[str, ...]:
  """The names that a key can take; () if its values are not names."""
  of_model = {full_key(name): names for name, names in model_config.CHOICES.items()}
  return tuple(CHOICES[key]() if key in CHOICES else of_model.get(key, ()))


def default(key: str) -> Any:
  """The default of a key in its dataclass; families have other defaults in the model's sections."""
  section, _, name = key.rpartition(".")
  return getattr(sections()[section], name)


def type_of(key: str) -> type:
  """The type of a key. Raises UserError if there is no such key."""
  keys = all_keys()
  if key not in keys:
    raise UserError(unknown_key(key))
  return keys[key]


def unknown_key(key: str) -> str:
  """The error for a key that does not exist: its new name if it was renamed, otherwise the most similar key."""
  if key in MOVED:
    return f"config.{key} is now config.{MOVED[key]}"
  section = key.rpartition(".")[0]
  similar = nearest_key(key, all_keys(), sections())
  hint = f"--help={section if section in sections() else 'all'} lists the keys"
  if similar:
    hint = f"did you mean config.{similar}?"
  return f"config.{key} does not exist; {hint}"


# Values.


def from_dict(values: Mapping[str, Any]) -> Config:
  """The typed configuration of a nested dictionary.

  Missing keys take their defaults; in the model's sections, missing and None take the family's values.

  Raises:
    UserError: an unknown key (the most similar one is named), a value of the wrong type, or an impossible model.
  """
  top: dict[str, Any] = {}
  model: dict[str, Any] = {}
  for name, value in values.items():
    if name not in sections():
      top[name] = typed(name, value)
    elif not isinstance(value, Mapping):
      raise UserError(f"config.{name} is a section, not {value!r}")
    elif name in MODEL_SECTIONS:
      fields = {key: typed(f"{name}.{key}", field) for key, field in value.items()}
      prefix = "" if name == "model" else f"{name}."
      model |= {f"{prefix}{key}": field for key, field in fields.items() if field is not None}
    else:
      top[name] = sections()[name](**{key: typed(f"{name}.{key}", field) for key, field in value.items()})
  return Config(**top, model=resolve_model(top.get("family", Config.family), model))


def from_stored(values: Mapping[str, Any]) -> Config:
  """The typed configuration of a run's `config.json`, which may lack newer keys. Raises UserError."""
  return from_dict(translated(values))


def to_dict(config: Config) -> dict[str, Any]:
  """The configuration as a nested dictionary with one level of sections, as in config.json."""
  tree = dataclasses.asdict(config)
  return tree | {name: tree["model"].pop(name) for name in MODEL_SECTIONS[1:]}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
  """ "section.key" -> value, of a nested dictionary."""
  keys: dict[str, Any] = {}
  for key, value in values.items():
    keys |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
  return keys


def typed(key: str, value: Any) -> Any:
  """The value in the type of its key. Only whole numbers are converted, between int and float. Raises UserError."""
  kind = type_of(key)
  if value is None and optional(key):
    return None
  return converted(f"config.{key}", value, kind, default(key))


def optional(key: str) -> bool:
  """Whether a key can be None: the family decides."""
  return key.rpartition(".")[0] in MODEL_SECTIONS


def parse_value(key: str, text: str) -> Any:
  """The value of a flag `--config.KEY=TEXT`, in the key's type; 1e5 is a whole number. Raises UserError."""
  kind = type_of(key)
  if text.lower() in ("none", "null") and kind is not str and optional(key):
    return None
  if of_sections(kind):
    try:
      return typed(key, json.loads(text))
    except ValueError as error:
      raise UserError(f"--config.{key}={text}: a JSON list of sections is expected ({error})") from None
  try:
    if kind is bool:
      return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind is int and re.search("[.eE]", text):
      return _whole(float(text))
    return kind(text)
  except (KeyError, ValueError):
    raise UserError(f"--config.{key}={text}: {TYPE_NAMES[kind]} is expected") from None


def _whole(number: float) -> int:
  """A whole number as an int. Raises ValueError for any other."""
  if not number.is_integer():
    raise ValueError
  return int(number)


# Files.


def load(path: str, overrides: Mapping[str, Any] | None = None) -> Config:
  """The typed configuration of an experiment file with some keys replaced, e.g. {"train.steps": 10}.

  Args:
    path: `file.py`, `file.py:variant`, or a run directory, whose configuration is taken.
    overrides: key -> value, either typed or, from a command line, text.

  Raises:
    UserError: a missing file, an error in the file, an unknown key, a wrong type.
  """
  stored = Path(path) / "config.json"
  values = _of_run(stored) if stored.is_file() else _of_experiment(path)
  for key, value in (overrides or {}).items():
    type_of(key)
    section, _, name = key.rpartition(".")
    (values[section] if section else values)[name] = parse_value(key, value) if isinstance(value, str) else value
  return from_dict(values)


def _of_experiment(path: str) -> dict[str, Any]:
  """The values that an experiment file sets, and the defaults of all others. Raises UserError."""
  config = evaluate(path)
  if not isinstance(config, config_dict.ConfigDict):
    raise UserError(f"{path}: get_config() must return the ConfigDict of configs/base.py")
  return typing.cast(dict[str, Any], config.to_dict())


def _of_run(path: Path) -> dict[str, Any]:
  """The values in a run's `config.json`. Raises UserError."""
  try:
    return to_dict(from_stored(json.loads(path.read_text())))
  except (ValueError, AttributeError, TypeError) as error:
    raise UserError(f"{path} is not the configuration of a run: {error}") from error


# Checks.


def resolve(config: Config) -> Config:
  """The configuration with derived values filled in (see `models.config.resolve`), checked. Raises UserError."""
  model = model_config.resolve(config.model)
  check_family(config.family, model)
  for key, value in flat(to_dict(config)).items():
    check_value(key, value)
  for source in config.data.mixture:
    for name in SOURCE_KEYS:
      check_value(f"data.{name}", getattr(source, name))
  rows, offset = model.max_positions, model.position_offset
  if model.positions == "learned" and find_family(config.family).module.sides and config.data.seq_len + offset > rows:
    raise UserError(
      f"data.seq_len={config.data.seq_len} is longer than the table of {rows - offset} learned positions: "
      f"set model.max_positions={config.data.seq_len + offset}"
    )
  if config.optimizer.name in ("adam", "adamw", "muon") and config.optimizer.epsilon < np.finfo(np.float32).tiny:
    raise UserError(
      f"optimizer.epsilon={config.optimizer.epsilon} is 0 in float32: where gradients are 0, {config.optimizer.name} "
      f"would divide 0 by 0; set 1e-8"
    )
  if config.train.microbatches and config.train.batch_size % config.train.microbatches:
    raise UserError(
      f"train.microbatches={config.train.microbatches} does not divide train.batch_size={config.train.batch_size}"
    )
  if config.train.ramp.first < config.train.batch_size and (config.task.name or config.train.epochs):
    why = f"task.name={config.task.name} has none" if config.task.name else "train.epochs counts batches of one size"
    raise UserError(f"train.ramp_from={config.train.ramp_from} is for pre-training by train.steps: {why}")
  if config.optimizer.decay_steps and config.optimizer.schedule != "wsd":
    raise UserError(
      f"optimizer.decay_steps={config.optimizer.decay_steps} is a part of optimizer.schedule=wsd, not of "
      f"{config.optimizer.schedule}"
    )
  if config.branch_at and not config.branch_from:
    raise UserError(f"branch_at={config.branch_at} is a step of which run? Set branch_from")
  if config.eval.patience and not config.eval.metric:
    raise UserError(f"eval.patience={config.eval.patience} needs a metric to improve: set eval.metric, such as loss")
  objectives = find_family(config.family).objectives
  # A subclass of an objective makes batches of the same form.
  suitable = tuple(OBJECTIVES[name] for name in objectives)
  fits = config.objective.name in OBJECTIVES and issubclass(OBJECTIVES[config.objective.name], suitable)
  if HEADS[model.head.name].learns_from_objective and not fits:
    extend = " (or, if it makes batches of the same form, add it to its entry in tfm_jax/models/families/)"
    extend = extend if config.objective.name in OBJECTIVES else ""
    raise UserError(
      f"objective.name={config.objective.name!r} does not fit family={config.family}: "
      f"choose {' or '.join(objectives)}{extend}"
    )
  if HEADS[model.head.name].learns_from_objective and not config.task.name:
    _check_objective(config.objective.name, model)
  if model.attention != "auto":
    _check_lengths(config)
  tokenizer = config.tokenizer
  if not tokenizer.path and not tokenizer.kind:
    tokenizer = dataclasses.replace(tokenizer, kind="sentencepiece")
  check_data(config.data)
  if config.task.name:
    check_task(config.data, config.task.name)
  data = config.data if config.task.name else resolve_data(config.data)  # a task names its own source
  return dataclasses.replace(config, model=model, tokenizer=tokenizer, data=data)


def check_value(key: str, value: Any) -> None:
  """Raises UserError for a value that its key cannot have."""
  names = choices(key)
  if key in COMPOSED:
    COMPOSED[key](value)
  elif names and value not in names and value != default(key):
    raise UserError(f"{key}={value!r} is not one of {', '.join(names)}")
  if isinstance(value, (int, float)) and key != "seed" and not (value >= 0 and math.isfinite(value)):
    raise UserError(f"{key}={value} must be a number of at least 0")
  if key in POSITIVE and not value:
    raise UserError(f"{key}={value} must be positive")
  if key in FRACTIONS and value > 1:
    raise UserError(f"{key}={value} must lie between 0 and 1")
  if key in DECAYS and np.float32(value) >= 1:  # as it is used
    raise UserError(f"{key}={value} must be below 1 (in float32), or its average never changes")


def _check_objective(name: str, model: ModelConfig) -> None:
  """Raises UserError if the model cannot read the labels or the token types of its objective."""
  objective = OBJECTIVES[name]
  if objective.head and model.head.name != objective.head:
    raise UserError(
      f"objective.name={name} has labels that head.name={model.head.name} does not read: set head.name={objective.head}"
    )
  if model.token_types < objective.token_types:
    raise UserError(
      f"objective.name={name} has {objective.token_types} token types and model.token_types={model.token_types}: "
      f"set model.token_types={objective.token_types}"
    )


def _check_lengths(config: Config) -> None:
  """Raises UserError if the kernel that `model.attention` names refuses the length of a sequence."""
  data, name = config.data, config.model.attention
  fields = make_objective(config.objective, Vocabulary(1 << 16), data.seq_len, data.target_len).fields
  for field, key in (("inputs", "seq_len"), ("encoder_inputs", "seq_len"), ("decoder_inputs", "target_len")):
    length = fields[field].shape[0] if field in fields else 0
    reason = KERNELS[name].refuses(Need(lengths=(length,)))
    if reason:
      natural = "" if getattr(data, key) else " (the objective's own length)"
      raise UserError(
        f"data.{key}={length}{natural} does not fit: {name} {reason}, and model.attention={name} is set: "
        f"set data.{key}, or model.attention=auto"
      )


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Keys that differ between two configurations as dictionaries, except those that may change at a resume."""
  a, b = flat(old), flat(new)
  if a.get("tokenizer.path") and "" in (a.get("tokenizer.kind"), b.get("tokenizer.kind")):
    a["tokenizer.kind"] = b.get("tokenizer.kind")  # the files determine it
  differing = [key for key in {**a, **b} if key not in a or key not in b or a[key] != b[key]]
  allowed = re.compile("|".join(rf"{re.escape(name)}(\.|$)" for name in MAY_CHANGE))
  return sorted(key for key in differing if not allowed.match(key))
