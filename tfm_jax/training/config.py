"""The tree of dataclasses that is a run's configuration, and the way from files, flags and dictionaries into it."""

import dataclasses
import difflib
import importlib.util
import json
import math
import re
import sys
import traceback
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from tfm_jax.data.config import DataConfig
from tfm_jax.errors import UserError
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.init import INITS
from tfm_jax.models.model import resolve_model
from tfm_jax.objectives.objective import ObjectiveConfig, Vocabulary
from tfm_jax.objectives.table import make_objective
from tfm_jax.ops.splash import LANES
from tfm_jax.sharding.strategy import ShardingConfig, find_strategy
from tfm_jax.text.tokenizers import TokenizerConfig
from tfm_jax.training.checkpoint import CheckpointConfig
from tfm_jax.training.loss import LossConfig
from tfm_jax.training.optimizer import OptimizerConfig, find_optimizer, schedule


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop."""

  steps: int = 1000  # updates
  batch_size: int = 32  # rows of the global batch
  microbatches: int = 0  # parts into which the batch is cut, one after the other; 0: as many as the device needs
  log_every: int = 50  # steps between rows of metrics.jsonl
  profile_at: int = 0  # the step from which a trace of three steps is written; 0: none


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation on held-out text, at step 0, every `every` steps and at the end."""

  every: int = 500  # steps between evaluations; 0: only first and last
  batches: int = 20  # batches of the training batch size, always the same; 0: all


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides what a run does. One level of sections, each owned by the code that uses it."""

  family: str = "bert"  # bert, roberta, distilbert, electra, modernbert, gpt, llama, t5, transformer or vit
  seed: int = 0  # of initialisation, order of rows, masks and dropout
  init_from: str = ""  # a run directory whose parameters this run starts from (continued pre-training)
  model: ModelConfig = ModelConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  data: DataConfig = DataConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  loss: LossConfig = LossConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  eval: EvalConfig = EvalConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  sharding: ShardingConfig = ShardingConfig()


# What may differ when a run is resumed; a section's name stands for all of its keys.
MAY_CHANGE = ("train.steps", "train.log_every", "train.profile_at", "eval", "checkpoint", "sharding", "data.prefetch")


OBJECTIVES_OF: dict[str, tuple[str, ...]] = {
  "gpt": ("causal",), "llama": ("causal",), "t5": ("span_corruption", "seq2seq"),
  "transformer": ("span_corruption", "seq2seq"),
}  # fmt: skip  # other families: mlm


POSITIVE = ("train.steps", "train.batch_size", "train.log_every", "data.seq_len")  # elsewhere 0 has a meaning


def defaults() -> config_dict.ConfigDict:
  """The tree as a ConfigDict with every default, for experiment files; `configs/base.py` hands it out."""
  return config_dict.ConfigDict(_section(Config))


def _section(cls: type) -> dict[str, Any]:
  hints = typing.get_type_hints(cls)
  values: dict[str, Any] = {}
  for field in dataclasses.fields(cls):
    kind = hints[field.name]
    if dataclasses.is_dataclass(kind):
      values[field.name] = config_dict.ConfigDict(_section(typing.cast(type, kind)))
    elif field.default is None:
      values[field.name] = config_dict.placeholder(_plain_type(kind))
    else:
      values[field.name] = field.default
  return values


def _plain_type(kind: Any) -> type:
  """T of `T | None`."""
  if isinstance(kind, types.UnionType):
    return next(arg for arg in typing.get_args(kind) if arg is not type(None))
  return typing.cast(type, kind)


def from_dict(values: Mapping[str, Any]) -> Config:
  """The typed configuration of a nested dictionary; missing keys take their defaults.

  Raises:
    UserError: an unknown key (the nearest right one is named) or a value of the wrong type.
  """
  return typing.cast(Config, _build(Config, values, ""))


def _build(cls: type, values: Any, prefix: str) -> Any:
  if not isinstance(values, Mapping):
    raise UserError(f"config.{prefix.rstrip('.')} is a section, not {values!r}")
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      raise UserError(unknown_key(prefix + str(key)))
  made = {}
  for key, value in values.items():
    kind = hints[key]
    made[key] = (
      _build(typing.cast(type, kind), value, f"{prefix}{key}.")
      if dataclasses.is_dataclass(kind)
      else _typed(kind, value, prefix + key)
    )
  return cls(**made)


def _typed(kind: Any, value: Any, key: str) -> Any:
  """The value, if it is of that type; an int serves as a float, nothing else is converted."""
  plain = _plain_type(kind)
  if value is None and plain is not kind:
    return None
  if plain is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
    return value
  raise UserError(f"config.{key}={value!r} is of type {type(value).__name__}, but {plain.__name__} is wanted")


def to_dict(config: Config) -> dict[str, Any]:
  """The nested dictionary of a configuration, for config.json."""
  return dataclasses.asdict(config)


def all_keys() -> dict[str, type]:
  """Every key, as `section.key`, with its type."""
  keys: dict[str, type] = {}
  for name, kind in typing.get_type_hints(Config).items():
    if dataclasses.is_dataclass(kind):
      hints = typing.get_type_hints(kind)
      keys |= {f"{name}.{key}": _plain_type(hint) for key, hint in hints.items()}
    else:
      keys[name] = _plain_type(kind)
  return keys


def unknown_key(key: str) -> str:
  """One line about a key that does not exist, with the nearest that does."""
  keys = list(all_keys())
  near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
  same = [name for name in keys if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
  return f"config.{key} does not exist; did you mean config.{(same or near)[0]}?"


def parse_value(key: str, text: str) -> Any:
  """The value of a flag `--config.KEY=TEXT`, in the key's type. Raises UserError."""
  keys = all_keys()
  if key not in keys:
    raise UserError(unknown_key(key))
  kind = keys[key]
  if text.lower() in ("none", "null") and _flat(to_dict(Config()))[key] is None:
    return None
  try:
    if kind is bool:
      return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind is int:
      return int(text.replace("_", ""))
    return kind(text)
  except (KeyError, ValueError):
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, kind.__name__)
    raise UserError(f"--config.{key}={text}: {wanted} is wanted") from None


def load_file(path: str) -> config_dict.ConfigDict:
  """The ConfigDict of an experiment file, `file.py` or `file.py:argument`, or of a run directory. Raises UserError."""
  if (Path(path) / "config.json").is_file():
    return _load_run(Path(path) / "config.json")
  file, _, argument = path.partition(":")
  if not Path(file).is_file():
    near = difflib.get_close_matches(Path(file).name, [p.name for p in Path("configs").glob("*.py")], n=1)
    hint = f"; did you mean configs/{near[0]}?" if near else "; the experiments that come along are in configs/"
    raise UserError(f"no config file {file!r}{hint}")
  spec = importlib.util.spec_from_file_location(Path(file).stem, file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  folder = str(Path(file).resolve().parent.parent)  # experiment files say `from configs import base`
  if folder not in sys.path:
    sys.path.append(folder)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise UserError(f"{file} has no function get_config: see configs/quickstart.py")
    made = module.get_config(argument) if argument else module.get_config()
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    if isinstance(error, KeyError) and argument and argument in str(error):
      raise UserError(f"{file} has no variant {argument!r}") from error
    raise UserError(f"{file}{_line_of(error, file)}: {_reason(error)}") from error
  if not isinstance(made, ml_collections.ConfigDict):
    raise UserError(f"{file}: get_config() must return the ConfigDict of configs/base.py")
  return made


def _load_run(path: Path) -> config_dict.ConfigDict:
  """The ConfigDict of a run's `config.json`. Raises UserError."""
  try:
    config = from_dict(json.loads(path.read_text()))
  except (ValueError, AttributeError, TypeError) as error:
    raise UserError(f"{path} is no configuration of a run: {error}") from error
  values = defaults()
  for key, value in to_dict(config).items():
    if isinstance(value, dict):
      values[key].update(value)
    else:
      values[key] = value
  return values.lock()


def _line_of(error: BaseException, file: str) -> str:
  """ ", line N": where in an experiment file something went wrong."""
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
  if isinstance(error, SyntaxError):
    lines.append(error.lineno)
  return f", line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
  """What an exception says, in one line; ml_collections already names the key and its nearest neighbour."""
  said = error.msg if isinstance(error, SyntaxError) else str(error).strip('"')
  kind = "" if isinstance(error, AttributeError) else f"{type(error).__name__}: "
  return kind + " ".join(said.split())


def load(path: str, overrides: Mapping[str, Any] | None = None) -> Config:
  """The typed configuration of an experiment file with some keys replaced, e.g. {"train.steps": 10}.

  Args:
    path: `file.py` or `file.py:argument`, or a run directory, whose configuration is taken.
    overrides: key -> value, either typed or, from a command line, text.

  Raises:
    UserError: a missing file, an unknown key, a wrong type.
  """
  values = typing.cast(dict[str, Any], load_file(path).to_dict())
  for key, value in (overrides or {}).items():
    if key not in all_keys():
      raise UserError(unknown_key(key))
    section, _, name = key.rpartition(".")
    (values[section] if section else values)[name] = parse_value(key, value) if isinstance(value, str) else value
  return from_dict(values)


def with_model_resolved(config: Config) -> Config:
  """The configuration with every empty field of the model filled from its family. Raises UserError."""
  return dataclasses.replace(config, model=resolve_model(config.family, config.model))


def resolve(config: Config) -> Config:
  """The configuration with every empty field of the model filled from its family, checked. Raises UserError."""
  model = resolve_model(config.family, config.model)
  find_strategy(config.sharding.strategy)
  find_optimizer(config.optimizer.name)
  schedule(config.optimizer, config.train.steps)
  if model.init not in INITS:
    raise UserError(f"model.init={model.init!r} is not one of {', '.join(INITS)}")
  rows, offset = model.max_positions or 0, model.position_offset or 0
  if model.positions == "learned" and not model.patch_size and config.data.seq_len + offset > rows:
    raise UserError(
      f"data.seq_len={config.data.seq_len} is longer than the table of {rows - offset} learned positions: "
      f"set model.max_positions={config.data.seq_len + offset}"
    )
  for key, value in _flat(to_dict(config)).items():
    if isinstance(value, (int, float)) and key != "seed" and not (value >= 0 and math.isfinite(value)):
      raise UserError(f"{key}={value} must be a number of at least 0")
    if key in POSITIVE and not value:
      raise UserError(f"{key}={value} must be positive")
  if config.train.microbatches and config.train.batch_size % config.train.microbatches:
    raise UserError(
      f"train.microbatches={config.train.microbatches} does not divide train.batch_size={config.train.batch_size}"
    )
  wanted = OBJECTIVES_OF.get(config.family, ("mlm",))
  if model.head in ("lm", "pretraining") and config.objective.name not in wanted:
    raise UserError(
      f"objective.name={config.objective.name!r} does not fit family={config.family}: choose {' or '.join(wanted)}"
    )
  if model.attention == "splash":
    _check_tiles(config)
  return dataclasses.replace(config, model=model)


def _check_tiles(config: Config) -> None:
  """Raises UserError where a side's length is not made of the kernel's whole tiles."""
  data = config.data
  fields = make_objective(config.objective, Vocabulary(1 << 16), data.seq_len, data.target_len).fields
  for name, key in (("inputs", "seq_len"), ("encoder_inputs", "seq_len"), ("decoder_inputs", "target_len")):
    length = fields[name].shape[0] if name in fields else LANES
    if length % LANES:
      natural = "" if getattr(data, key) else " (the objective's own length)"
      raise UserError(
        f"data.{key}={length}{natural} is no multiple of {LANES}, which model.attention=splash needs: "
        f"set data.{key}, or model.attention=auto"
      )


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  """section.key -> value."""
  keys: dict[str, Any] = {}
  for key, value in tree.items():
    keys |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
  return keys


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Keys that differ between two configurations as dictionaries, except those that may change at a resume."""
  a, b = _flat(old), _flat(new)
  differing = [key for key in {**a, **b} if key not in a or key not in b or a[key] != b[key]]
  allowed = re.compile("|".join(rf"{re.escape(name)}(\.|$)" for name in MAY_CHANGE))
  return sorted(key for key in differing if not allowed.match(key))
