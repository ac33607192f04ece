"""What a comparison of architectures trains: configurations of equal parameters and of equal FLOPs."""

import dataclasses
from collections.abc import Mapping, Sequence

from tfm_jax.compare.program import build_program, vocabulary_size
from tfm_jax.errors import UserError
from tfm_jax.runtime.devices import first_device
from tfm_jax.sharding.strategy import ShardingConfig
from tfm_jax.tasks.labelled.task import LabelledTask
from tfm_jax.tasks.scores import MAIN
from tfm_jax.tasks.table import find_task
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.config import Config, flat, load, resolve, to_dict

PARAMETERS, FLOPS = "parameters", "flops"
"""What is equal in a part of the table."""

_WIDEST = 2**16
_OF_PRETRAINING = ("data", "train", "eval", "objective")  # sections whose overrides are not for fine-tunings


@dataclasses.dataclass(frozen=True)
class Entry:
  """One architecture in one part of the table.

  Attributes:
    name: the variant of the experiment file.
    equal: PARAMETERS or FLOPS.
    config: of the pre-training.
    tuned: task -> configuration of the fine-tuning, without `init_from` and seed.
    parameters: without padding of the vocabulary.
    step_flops: FLOPs of a step of the pre-training, as of `Program.flops`.
  """

  name: str
  equal: str
  config: Config
  tuned: Mapping[str, Config]
  parameters: int
  step_flops: float

  @property
  def steps(self) -> int:
    """Steps of the pre-training."""
    return self.config.train.steps

  @property
  def folder(self) -> str:
    """Of the pre-training. Entries whose runs are the same share it."""
    return f"{self.name}_{self.config.model.embed_dim}_{self.steps}"


@dataclasses.dataclass(frozen=True)
class Plan:
  """All entries, those of equal parameters first; the metric of each task; the number of seeds."""

  entries: tuple[Entry, ...]
  metrics: Mapping[str, str]
  seeds: int


def make_plan(
  path: str, overrides: Mapping[str, str], architectures: Sequence[str], tasks: Sequence[str], seeds: int
) -> Plan:
  """The plan of an experiment file, whose variants are NAME and NAME-TASK.

  The first architecture is as configured. Of the others `model.embed_dim` is chosen so that the number of parameters
  is the nearest; depth and heads stay. Overrides of `data`, `train`, `eval` and `objective` are for pre-training alone:
  a task has its own data and steps.

  Raises:
    UserError: a variant does not exist, a configuration is not possible, or text, tokenizer, rows or steps differ.
  """
  entries: list[Entry] = []
  metrics: dict[str, str] = {}
  target, budget = 0, 0.0
  shared = {key: value for key, value in overrides.items() if key.split(".")[0] not in _OF_PRETRAINING}
  for name in architectures:
    config = load(f"{path}:{name}", overrides)
    config = _as_wide(config, _width(config, target)) if target else config
    parameters = parameter_count(config)
    if entries:
      _check_alike(f"{path}:{name}", config, entries[0].config)
    target = target or parameters
    flops = build_program(_unsharded(config), [first_device()]).flops.full
    budget = budget or flops * config.train.steps
    tuned = {}
    for task in tasks:
      tuned[task] = _as_wide(load(f"{path}:{name}-{task}", shared), config.model.embed_dim)
      metrics.setdefault(task, _metric(f"{path}:{name}-{task}", tuned[task]))
    one = Entry(name, PARAMETERS, config, tuned, parameters, flops)
    again = dataclasses.replace(config.train, steps=max(round(budget / flops), 1))
    entries += [one, dataclasses.replace(one, equal=FLOPS, config=dataclasses.replace(config, train=again))]
  return Plan(tuple(sorted(entries, key=lambda entry: entry.equal == FLOPS)), metrics, seeds)


def _check_alike(variant: str, config: Config, first: Config) -> None:
  """Raises UserError for a pre-training on other data, or with another tokenizer or number of steps than the first."""
  if not (config.data.eval_path or config.data.eval_fraction):
    raise UserError(f"{variant}: nothing is held out to measure the loss on: set data.eval_path or data.eval_fraction")
  ours, theirs = flat(to_dict(config)), flat(to_dict(first))
  keys = [key for key in ours if key.split(".")[0] in ("data", "tokenizer", "train") and key != "data.target_len"]
  other = [key for key in keys if ours[key] != theirs[key]]
  if other:
    raise UserError(f"{variant} has another {other[0]} than the first architecture: they would not be comparable")


def parameter_count(config: Config) -> int:
  """Parameters of the model of a configuration, without padding of the vocabulary."""
  config = _unsharded(resolve(config))
  return build_model(config, vocabulary_size(config), [first_device()]).parameter_count()


def _unsharded(config: Config) -> Config:
  """For counts, which are the same on every mesh: that of the runs may not fit one device."""
  return dataclasses.replace(config, sharding=ShardingConfig())


def _as_wide(config: Config, width: int) -> Config:
  return dataclasses.replace(config, model=dataclasses.replace(config.model, embed_dim=width))


def _width(config: Config, target: int) -> int:
  """The width with the nearest number of parameters, by halving: it grows with the width."""
  c = config.model
  if c.head_dim or c.mlp_dim:
    raise UserError("model.head_dim and model.mlp_dim must be 0: they follow the width, which is chosen")
  step = 2 * c.num_heads  # the width of a head is even
  count = lambda n: parameter_count(_as_wide(config, n * step))
  low, high = 1, _WIDEST // step
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if count(middle) <= target else (low, middle)
  return step * min(low, high, key=lambda n: abs(count(n) - target))


def _metric(variant: str, config: Config) -> str:
  """The score of a task. Raises UserError for pre-training."""
  task = find_task(config.task.name)
  if not issubclass(task, LabelledTask):
    raise UserError(f"{variant} has task.name={config.task.name!r}, which has no scores")
  return MAIN[task.form_of(config)]
