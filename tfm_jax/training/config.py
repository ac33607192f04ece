"""The tree of dataclasses that is a run's configuration, and the way from files, flags and dictionaries into it."""

import dataclasses
import difflib
import functools
import importlib.util
import json
import math
import re
import sys
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from ml_collections import config_dict

from tfm_jax.data.config import DataConfig, TaskConfig
from tfm_jax.errors import UserError
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.config import resolve as resolve_config
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.init import INITS
from tfm_jax.models.model import check_head, resolve_model
from tfm_jax.objectives.objective import ObjectiveConfig, Vocabulary
from tfm_jax.objectives.table import make_objective
from tfm_jax.ops.attention import KERNELS
from tfm_jax.ops.kernel import Need
from tfm_jax.ops.losses import LossConfig
from tfm_jax.sharding.strategy import ShardingConfig, find_strategy
from tfm_jax.text.tokenizers import TokenizerConfig
from tfm_jax.training.checkpoint import CheckpointConfig
from tfm_jax.training.moved import MOVED, translated
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
  model: ModelConfig = resolve_model("bert")  # the family's own values, and what differs from them
  tokenizer: TokenizerConfig = TokenizerConfig()
  data: DataConfig = DataConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  loss: LossConfig = LossConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  eval: EvalConfig = EvalConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  sharding: ShardingConfig = ShardingConfig()
  task: TaskConfig = TaskConfig()


# What may differ when a run is resumed; a section's name stands for all of its keys.
MAY_CHANGE = ("train.steps", "train.log_every", "train.profile_at", "eval", "checkpoint", "sharding", "data.prefetch")


POSITIVE = ("train.steps", "train.batch_size", "train.log_every", "data.seq_len")  # elsewhere 0 has a meaning
SHARES = (
  "loss.label_smoothing", "optimizer.final_fraction", "data.eval_fraction", "objective.mask_rate",
  "objective.random_rate", "objective.keep_rate", "objective.noise_density",
)  # fmt: skip
DECAYS = ("optimizer.beta1", "optimizer.beta2")


# What is not set in these sections follows from the family.
MODEL_SECTIONS = (
  "model",
  *(field.name for field in dataclasses.fields(ModelConfig) if dataclasses.is_dataclass(field.default)),
)


def sections() -> dict[str, type]:
  """Section -> its dataclass, "" for the keys of none. Those that the model's configuration holds stand beside it."""
  made: dict[str, type] = {"": Config}
  for kind in (Config, ModelConfig):
    hints: dict[str, Any] = typing.get_type_hints(kind)
    made |= {name: typing.cast(type, hint) for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
  return made


def _keys_of(kind: type) -> dict[str, type]:
  """The keys of a section alone, with their types."""
  return {key: hint for key, hint in typing.get_type_hints(kind).items() if not dataclasses.is_dataclass(hint)}


def defaults() -> config_dict.ConfigDict:
  """The tree as a ConfigDict with every default, for experiment files; `configs/base.py` hands it out.

  Keys of the model are None: the family's own values, whichever the family.
  """
  tree = config_dict.ConfigDict()
  for name, kind in sections().items():
    place = tree if not name else config_dict.ConfigDict()
    for key, hint in _keys_of(kind).items():
      place[key] = config_dict.placeholder(hint) if name in MODEL_SECTIONS else getattr(kind, key)
    if name:
      tree[name] = place
  return tree


def from_dict(values: Mapping[str, Any]) -> Config:
  """The typed configuration of a nested dictionary. Missing keys take their defaults; those of the model that are
  missing or None take the family's own values.

  Raises:
    UserError: an unknown key (the nearest right one is named), a value of the wrong type, or an impossible model.
  """
  known = sections()
  top: dict[str, Any] = {}
  model: dict[str, Any] = {}
  for name, value in values.items():
    if name not in known:
      top[name] = _typed(_kind(name), value, name)
    elif not isinstance(value, Mapping):
      raise UserError(f"config.{name} is a section, not {value!r}")
    else:
      fields = {}
      for key, given in value.items():
        kind = _kind(f"{name}.{key}")
        if given is not None or name not in MODEL_SECTIONS:
          fields[key] = _typed(kind, given, f"{name}.{key}")
      if name in MODEL_SECTIONS:
        model |= {f"{name}.{key}".removeprefix("model."): given for key, given in fields.items()}
      else:
        top[name] = known[name](**fields)
  return Config(**top, model=resolve_model(top.get("family", Config.family), model))


def _kind(key: str) -> type:
  """The type of a key. Raises UserError for one that does not exist."""
  keys = all_keys()
  if key not in keys:
    raise UserError(unknown_key(key))
  return keys[key]


def from_stored(values: Mapping[str, Any]) -> Config:
  """The typed configuration of a run's `config.json`, which may be older than some keys. Raises UserError."""
  return from_dict(translated(values))


def _typed(kind: type, value: Any, key: str) -> Any:
  """The value, if it is of that type; an int serves as a float, nothing else is converted."""
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
    return value
  raise UserError(f"config.{key}={value!r} is of type {type(value).__name__}, but {kind.__name__} is wanted")


def to_dict(config: Config) -> dict[str, Any]:
  """The nested dictionary of a configuration, for config.json: one level of sections."""
  tree = dataclasses.asdict(config)
  return tree | {name: tree["model"].pop(name) for name in MODEL_SECTIONS[1:]}


@functools.cache
def all_keys() -> dict[str, type]:
  """Every key, as `section.key`, with its type."""
  found = ((name, key, hint) for name, kind in sections().items() for key, hint in _keys_of(kind).items())
  return {f"{name}.{key}" if name else key: hint for name, key, hint in found}


def unknown_key(key: str) -> str:
  """One line about a key that does not exist, with what it is called now, or the nearest that does."""
  if key in MOVED:
    return f"config.{key} is now config.{MOVED[key]}"
  keys = list(all_keys())
  near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
  same = [name for name in keys if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
  return f"config.{key} does not exist; did you mean config.{(same or near)[0]}?"


def parse_value(key: str, text: str) -> Any:
  """The value of a flag `--config.KEY=TEXT`, in the key's type. Raises UserError."""
  kind = _kind(key)
  if text.lower() in ("none", "null") and kind is not str and key.rpartition(".")[0] in MODEL_SECTIONS:
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
  if spec is None or spec.loader is None:
    raise UserError(f"--config={file} is no Python file: name an experiment (configs/quickstart.py) or a run directory")
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
    config = from_stored(json.loads(path.read_text()))
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
    _kind(key)
    section, _, name = key.rpartition(".")
    (values[section] if section else values)[name] = parse_value(key, value) if isinstance(value, str) else value
  return from_dict(values)


def resolve(config: Config) -> Config:
  """The configuration, checked; see `models.config.resolve` for what is filled in. Raises UserError."""
  model = resolve_config(config.model)
  check_head(config.family, model)
  find_strategy(config.sharding.strategy)
  find_optimizer(config.optimizer.name)
  schedule(config.optimizer, config.train.steps)
  if model.init not in INITS:
    raise UserError(f"model.init={model.init!r} is not one of {', '.join(INITS)}")
  rows, offset = model.max_positions, model.position_offset
  if model.positions == "learned" and not model.image.patch and config.data.seq_len + offset > rows:
    raise UserError(
      f"data.seq_len={config.data.seq_len} is longer than the table of {rows - offset} learned positions: "
      f"set model.max_positions={config.data.seq_len + offset}"
    )
  for key, value in _flat(to_dict(config)).items():
    if isinstance(value, (int, float)) and key != "seed" and not (value >= 0 and math.isfinite(value)):
      raise UserError(f"{key}={value} must be a number of at least 0")
    if key in POSITIVE and not value:
      raise UserError(f"{key}={value} must be positive")
    if key in SHARES and value > 1:
      raise UserError(f"{key}={value} is a share: it must lie between 0 and 1")
    if key in DECAYS and np.float32(value) >= 1:  # where it is used
      raise UserError(f"{key}={value} must be below 1 (in float32), or its average never moves")
  if config.optimizer.name in ("adam", "adamw") and config.optimizer.epsilon < np.finfo(np.float32).tiny:
    raise UserError(
      f"optimizer.epsilon={config.optimizer.epsilon} is 0 in float32: where gradients are 0, {config.optimizer.name} "
      f"would divide 0 by 0; set 1e-8"
    )
  if config.train.microbatches and config.train.batch_size % config.train.microbatches:
    raise UserError(
      f"train.microbatches={config.train.microbatches} does not divide train.batch_size={config.train.batch_size}"
    )
  wanted = find_family(config.family).objectives
  if HEADS[model.head.name].learns_from_objective and config.objective.name not in wanted:
    raise UserError(
      f"objective.name={config.objective.name!r} does not fit family={config.family}: choose {' or '.join(wanted)}"
    )
  if model.attention != "auto":
    _check_lengths(config)
  tokenizer = config.tokenizer
  if not tokenizer.path and not tokenizer.kind:
    tokenizer = dataclasses.replace(tokenizer, kind="sentencepiece")
  return dataclasses.replace(config, model=model, tokenizer=tokenizer)


def _check_lengths(config: Config) -> None:
  """Raises UserError for a side's length that the kernel of `model.attention` does not take."""
  data, name = config.data, config.model.attention
  fields = make_objective(config.objective, Vocabulary(1 << 16), data.seq_len, data.target_len).fields
  for field, key in (("inputs", "seq_len"), ("encoder_inputs", "seq_len"), ("decoder_inputs", "target_len")):
    length = fields[field].shape[0] if field in fields else 0
    why = KERNELS[name].refuses(Need(lengths=(length,)))
    if why:
      natural = "" if getattr(data, key) else " (the objective's own length)"
      raise UserError(
        f"data.{key}={length}{natural} does not fit: {name} {why}, and model.attention={name} is set: "
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
  if a.get("tokenizer.path") and "" in (a.get("tokenizer.kind"), b.get("tokenizer.kind")):
    a["tokenizer.kind"] = b.get("tokenizer.kind")  # it follows from the files
  differing = [key for key in {**a, **b} if key not in a or key not in b or a[key] != b[key]]
  allowed = re.compile("|".join(rf"{re.escape(name)}(\.|$)" for name in MAY_CHANGE))
  return sorted(key for key in differing if not allowed.match(key))
