"""From a configuration to the static parts of a run: placement, model, optimizer."""

import logging
from collections.abc import Sequence

import jax
import optax

from tfm_jax.errors import UserError
from tfm_jax.models.model import Model, admits
from tfm_jax.sharding.placement import Placement, make_mesh, slice_count
from tfm_jax.sharding.strategy import find_strategy, mesh_sizes
from tfm_jax.training.config import Config
from tfm_jax.training.optimizer import make_optimizer

log = logging.getLogger(__name__)


def build_model(config: Config, vocab_size: int, devices: Sequence[jax.Device] | None = None) -> Model:
  """The model of a resolved configuration, on a mesh of all devices or the given ones.

  Args:
    config: the configuration.
    vocab_size: ids of the tokenizer; `model.vocab_size` may be larger.
    devices: None: all.

  Raises:
    UserError: the model, its strategy and the devices do not go together.
  """
  own = config.model.vocab_size
  if own and own < vocab_size:
    raise UserError(f"the tokenizer has {vocab_size} ids, but the model has rows for model.vocab_size={own} alone")
  vocab_size = own or vocab_size
  devices = jax.devices() if devices is None else devices
  if config.model.attention == "splash" and devices[0].platform != "tpu":
    raise UserError(f"model.attention=splash needs a TPU, not a {devices[0].platform}: set model.attention=auto")
  sizes = mesh_sizes(config.sharding, len(devices), admits(config.model, vocab_size), slice_count(devices))
  placement = Placement(find_strategy(config.sharding.strategy), make_mesh(sizes, devices))
  log.info(
    "mesh: %d x %s, strategy %s: %s", len(devices), devices[0].device_kind, config.sharding.strategy,
    ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device",
  )  # fmt: skip
  return Model(config.family, config.model, placement, vocab_size)


def build_optimizer(config: Config, model: Model) -> optax.GradientTransformation:
  """The Optax chain of a resolved configuration for this model's parameters. Raises UserError."""
  axes = jax.tree.map_with_path(lambda path, _: model.axes(path), model.shapes())
  return make_optimizer(config.optimizer, axes)
