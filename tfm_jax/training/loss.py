"""The loss of a model: the function that the head of the model declares."""

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
  """The function (params, batch, noise) -> `LossTerms`: named sums over the batch, and their weights.

  Args:
    model: the model; its head has the loss.
    config: label smoothing and z-loss. They apply in training only, that is if `noise` is not None.

  Returns:
    A function whose batch has the fields that the model reads, and the labels: those of the objective, or those that
    the head declares.

  Raises:
    ValueError: the head has no loss.
  """
  name = model.config.head.name
  loss_of_head = HEADS[name].loss
  if loss_of_head is None:
    raise ValueError(f"head.name={name} has no loss: it has no targets to learn from")

  def loss(params: Any, batch: Batch, noise: Noise | None) -> LossTerms:
    extras = config if noise is not None else LossConfig()
    return loss_of_head(model.config, model.placement, model.apply(params, batch, noise), batch, extras)

  return loss
