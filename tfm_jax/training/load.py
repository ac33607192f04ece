"""Runs read back: `load_run` for decoding, evaluation, export and notebooks."""

import dataclasses
from typing import Any

import jax
from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.models.model import Model, Params
from tfm_jax.sharding.strategy import ShardingConfig
from tfm_jax.text.tokenizers import Tokenizer, load_tokenizer
from tfm_jax.training.build import build_model
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.config import Config, from_dict
from tfm_jax.training.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained model: `model.logits(params, batch)`."""

  config: Config
  model: Model
  params: Params
  tokenizer: Tokenizer
  step: int


def load_run(workdir: epath.PathLike, step: int | None = None, strategy: str | None = None) -> Run:
  """The model of a run directory at one of its checkpoints.

  Args:
    workdir: the run directory.
    step: which checkpoint; None: the last.
    strategy: how to lay out the parameters over all devices; None: on one device.

  Raises:
    UserError: there is no such run or checkpoint, or it is damaged.
  """
  run = RunDirectory(workdir)
  config = from_dict(run.read_config())
  tokenizer = load_tokenizer(run.tokenizer)
  sharding = ShardingConfig(strategy=strategy or "dp")
  devices = jax.devices() if strategy else jax.local_devices()[:1]
  config = dataclasses.replace(config, sharding=sharding)
  model = build_model(config, tokenizer.vocab_size, devices)
  step, params = load_params(run, model, step)
  return Run(config, model, params, tokenizer, step)


def load_params(run: RunDirectory, model: Model, step: int | None = None) -> tuple[int, Any]:
  """(step, parameters) of a run, each array under the model's sharding. Raises UserError."""
  with Checkpoints(run.checkpoints) as checkpoints:
    step = checkpoints.latest() if step is None else step
    if step is None:
      raise UserError(f"{run.path} has no checkpoint yet")
    abstract = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      model.shapes(),
      model.shardings(),
    )
    return step, checkpoints.restore(step, {"params": abstract})["params"]
