"""`build_model`: the model of a configuration on a mesh, and what does not go together."""

import logging
from collections.abc import Sequence

import jax

from tfm_jax.errors import UserError
from tfm_jax.models.config import ModelConfig, attention_need
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import Model, admits
from tfm_jax.ops.attention import find_kernel
from tfm_jax.runtime.devices import all_devices
from tfm_jax.sharding.context import context_attention
from tfm_jax.sharding.order import context_size
from tfm_jax.sharding.pipeline import check_pipeline
from tfm_jax.sharding.placement import Placement, make_mesh, slice_count
from tfm_jax.sharding.strategy import find_strategy, mesh_sizes
from tfm_jax.training.config import Config

log = logging.getLogger(__name__)


def build_model(
  config: Config,
  vocab_size: int,
  devices: Sequence[jax.Device] | None = None,
  other: tuple[str, ModelConfig, int] | None = None,
) -> Model:
  """The model of a resolved configuration, on a mesh of devices.

  Args:
    config: the resolved configuration; `config.sharding` shapes the mesh.
    vocab_size: number of ids of the tokenizer. `model.vocab_size` replaces it if it is set, and may be larger.
    devices: the devices of the mesh; None: all devices of all processes.
    other: family, configuration and number of ids of another model that the mesh has to fit as well, such as a teacher.

  Raises:
    UserError: the strategy's mesh does not fit the devices or the models, the attention kernel cannot serve the model,
      or the tokenizer has more ids than `model.vocab_size`.
  """
  model_vocab_size = config.model.vocab_size
  if model_vocab_size and model_vocab_size < vocab_size:
    raise UserError(f"the tokenizer has {vocab_size} ids, more than model.vocab_size={model_vocab_size}")
  vocab_size = model_vocab_size or vocab_size
  devices = all_devices() if devices is None else devices
  lengths = admits(config.family, config.model, vocab_size)
  if other is not None:
    lengths = {axis: own + admits(*other)[axis] for axis, own in lengths.items()}
  sizes = mesh_sizes(config.sharding, len(devices), lengths, slice_count(devices))
  asked = config.sharding
  mesh, pipeline = make_mesh(sizes, devices), (asked.pipeline, asked.rounds)
  placement = Placement(find_strategy(asked.strategy), mesh, *pipeline, asked.attention)
  cut = context_size(placement) > 1  # sequences are cut into parts on different devices
  need = attention_need(config.model)._replace(platform=placement.platform, cut=cut, staged=placement.stages > 1)
  find_kernel(config.model.attention, need)
  recurrent = find_family(config.family).cell is not None
  if recurrent and placement.stages > 1:
    raise UserError(
      f"sharding.strategy={asked.strategy}: the layers of family={config.family} are recurrent and form no pipeline: "
      f"choose a strategy without stages, such as fsdp"
    )
  check_pipeline(asked, placement, config.train.batch_size, lengths["layers"])
  if cut and recurrent:
    raise UserError(
      f"sharding.context={sizes['context']} cuts sequences, but the layers of family={config.family} are recurrent, "
      f"and read them token by token: choose another sharding.strategy, or sharding.context=1"
    )
  if cut:
    context_attention(placement, need)
  shape = ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"
  log.info("mesh: %d x %s, strategy %s: %s", len(devices), devices[0].device_kind, config.sharding.strategy, shape)
  return Model(config.family, config.model, placement, vocab_size)
