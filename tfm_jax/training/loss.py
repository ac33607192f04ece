"""The loss of a model, as its head declares it."""

from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import Model
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossConfig, LossTerms

Batch = Mapping[str, Array]
LossFunction = Callable[[Any, Batch, Noise | None], LossTerms]


def make_loss(model: Model, config: LossConfig) -> LossFunction:
  """(params, batch, noise) -> sums over the batch; noise None (evaluation) leaves the extras out.

  The batch has the fields that the model reads, and those of its labels: of its objective, or as its head declares.

  Raises:
    ValueError: the head predicts nothing that has targets.
  """
  name = model.config.head.name
  of_head = HEADS[name].loss
  if of_head is None:
    raise ValueError(f"head.name={name} has no loss: it predicts nothing")

  def loss(params: Any, batch: Batch, noise: Noise | None) -> LossTerms:
    extras = config if noise is not None else LossConfig()
    return of_head(model.config, model.placement, model.apply(params, batch, noise), batch, extras)

  return loss
