"""The pre-training loss of every family: cross-entropy of the batch's targets."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

from tfm_jax.models.model import Model
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossSums, cross_entropy

LossFunction = Callable[[Any, Mapping[str, Array], Noise | None], LossSums]

# Float32 logits of one tile on one device. Larger tiles gain nothing.
_TILE_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """What is added to the plain negative log-likelihood while training; evaluation is without it."""

  label_smoothing: float = 0.0  # share of the target's mass that is spread over the vocabulary
  z_loss: float = 0.0  # factor of log(Z)^2


def weights_of(batch: Mapping[str, Array]) -> Array:
  """The weights of the batch's targets, float32."""
  return batch["weights"] if "weights" in batch else batch["decoder_weights"]


def pretraining_loss(model: Model, config: LossConfig) -> LossFunction:
  """(params, batch, noise) -> sums over the batch, see `LossSums`; noise None (evaluation) leaves the extras out."""

  def loss(params: Any, batch: Mapping[str, Array], noise: Noise | None) -> LossSums:
    hidden, out = model.apply(params, batch, noise)
    targets = batch["targets"] if "targets" in batch else batch["decoder_targets"]
    return cross_entropy(
      hidden, out, targets, weights_of(batch),
      vocab_size=model.vocab_size,
      label_smoothing=config.label_smoothing if noise is not None else 0.0,
      z_loss=config.z_loss if noise is not None else 0.0,
      tiles=_tiles(model, *targets.shape),
      platform=model.placement.platform,
    )  # fmt: skip

  return loss


def _tiles(model: Model, batch: int, length: int) -> int:
  """The fewest tiles, a divisor of the length, of which one fits `_TILE_BYTES` on a device."""
  shape = model.placement.mesh.shape
  total = 4 * batch * length * model.vocab_size // (model.placement.batch_shards * shape["model"])
  return next(n for n in range(1, length + 1) if length % n == 0 and (total <= n * _TILE_BYTES or n == length))
