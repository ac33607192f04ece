"""Runs read back: `load_run` for decoding, evaluation, export and notebooks."""

import dataclasses
import logging
from collections.abc import Collection
from typing import Any

import jax
from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.models.heads.head import of_head
from tfm_jax.models.model import Model, Params
from tfm_jax.sharding.strategy import ShardingConfig
from tfm_jax.text.tokenizers import Tokenizer, load_tokenizer
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.config import Config, from_stored
from tfm_jax.training.program import build_model
from tfm_jax.training.run_directory import RunDirectory
from tfm_jax.training.trees import flat, nested

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained model: `model.logits(params, batch)`."""

  config: Config
  model: Model
  params: Params
  tokenizer: Tokenizer | None  # none in runs imported without one
  step: int


def load_run(
  workdir: epath.PathLike, step: int | None = None, strategy: str | None = None, dtype: str | None = None
) -> Run:
  """The model of a run directory at one of its checkpoints.

  Args:
    workdir: the run directory.
    step: which checkpoint; None: the last.
    strategy: how to lay out the parameters over all devices; None: on one device.
    dtype: what to compute in, bfloat16 or float32; None: as the run did.

  Raises:
    UserError: there is no such run or checkpoint, or it is damaged.
  """
  run = RunDirectory(workdir)
  config = from_stored(run.read_config())
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype or config.model.dtype))
  folder = run.stored_tokenizer()
  tokenizer = load_tokenizer(folder) if folder else None
  sharding = ShardingConfig(strategy=strategy or "dp")
  devices = jax.devices() if strategy else jax.local_devices()[:1]
  config = dataclasses.replace(config, sharding=sharding)
  model = build_model(config, tokenizer.vocab_size if tokenizer else 0, devices)
  step, params = load_params(run, model, step)
  return Run(config, model, params, tokenizer, step)


def load_params(run: RunDirectory, model: Model, step: int | None = None) -> tuple[int, Any]:
  """(step, parameters) of a run, each array under the model's sharding. Raises UserError."""
  with Checkpoints(run.checkpoints) as checkpoints:
    step = checkpoints.latest() if step is None else step
    if step is None:
      raise UserError(f"{run.path} has no checkpoint yet")
    return step, checkpoints.restore(step, {"params": abstract_params(model)})["params"]


def abstract_params(model: Model) -> Any:
  """The parameters as shapes with their shardings."""
  place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return jax.tree.map(place, model.shapes(), model.shardings())


def initial_params(run: RunDirectory, model: Model, seed: int, frozen: Collection[str] = ()) -> Any:
  """The parameters of a run's last checkpoint, for another run to start from: its head may be another.

  Parameters of the head that the run does not have, or has in another shape, start afresh; what this model has no
  use for is left behind. Both are said.

  Raises:
    UserError: a difference outside the head, or a parameter that stays as it is (`frozen`) would start afresh.
  """
  with Checkpoints(run.checkpoints) as checkpoints:
    step = checkpoints.latest()
    if step is None:
      raise UserError(f"{run.path} has no checkpoint yet")
    wanted, stored = flat(abstract_params(model)), checkpoints.shapes(step, "params")
    fresh = {p for p in wanted if of_head(p) and (p not in stored or stored[p].shape != wanted[p].shape)}
    if fresh & set(frozen):
      raise UserError(
        f"optimizer.frozen keeps {', '.join(sorted(fresh & set(frozen)))}, which {run.path} does not have: it would "
        f"never be trained"
      )
    left = {p for p in stored if of_head(p) and (p not in wanted or p in fresh)}
    asked = {p: leaf for p, leaf in wanted.items() if p not in fresh} | {p: stored[p] for p in left}
    log.info("parameters of %s, step %d", run.path, step)
    restored = flat(checkpoints.restore(step, {"params": nested(asked)})["params"])
  if left - fresh:
    log.info("left behind: %s", ", ".join(sorted(left - fresh)))
  if fresh:
    log.info("starting afresh: %s", ", ".join(sorted(fresh)))
  return nested({p: restored[p] for p in wanted if p not in fresh} | fresh_params(model, seed, fresh))


def fresh_params(model: Model, seed: int, paths: Collection[str]) -> dict[str, jax.Array]:
  """Fresh parameters at some paths alone, each where the strategy puts it."""
  shardings = flat(model.shardings())
  pick = lambda key: {path: leaf for path, leaf in flat(model.init(key)).items() if path in paths}
  return jax.jit(pick, out_shardings={path: shardings[path] for path in paths})(jax.random.key(seed)) if paths else {}
