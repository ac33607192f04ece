"""The loss of every head: cross-entropy of the batch's targets, and what stands for it where they are no classes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.heads import Output, Outputs
from tfm_jax.models.model import Model
from tfm_jax.ops import losses
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossTerms, cross_entropy, one_term

Batch = Mapping[str, Array]
LossFunction = Callable[[Any, Batch, Noise | None], LossTerms]

# Float32 logits of one tile on one device. Larger tiles gain nothing.
_TILE_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """What is added to the plain negative log-likelihood while training; evaluation is without it."""

  label_smoothing: float = 0.0  # share of the target's mass that is spread over the vocabulary
  z_loss: float = 0.0  # factor of log(Z)^2


def weights_of(batch: Batch) -> Array:
  """The weights of the batch's targets, float32."""
  return batch["weights"] if "weights" in batch else batch["decoder_weights"]


def make_loss(model: Model, config: LossConfig) -> LossFunction:
  """(params, batch, noise) -> sums over the batch; noise None (evaluation) leaves the extras out.

  The batch has `targets` (`decoder_targets`) and float32 `weights` (`decoder_weights`): [B, T or P] for tokens,
  classes of tokens and replaced tokens, [B] for classes of rows (float32 targets if `num_labels` is 1), [B, 2] targets
  and [B] weights for the start and the end of answers. The head `pretraining` takes `next_sentence` [B] too.

  Raises:
    ValueError: the head predicts nothing that has targets.
  """
  if model.config.head.name not in LOSSES:
    raise ValueError(f"head.name={model.config.head.name} has no loss: it predicts nothing")
  of_head = LOSSES[model.config.head.name]

  def loss(params: Any, batch: Batch, noise: Noise | None) -> LossTerms:
    extras = config if noise is not None else LossConfig()
    return of_head(model, model.apply(params, batch, noise), batch, extras)

  return loss


def classes(model: Model, made: Outputs, batch: Batch, config: LossConfig) -> LossTerms:
  """Cross-entropy of tokens, or of classes of tokens or rows."""
  targets = batch["targets"] if "targets" in batch else batch["decoder_targets"]
  return _cross_entropy(model, "labels", made["logits"], targets, weights_of(batch), config)


def _cross_entropy(
  model: Model, name: str, made: Output, targets: Array, weights: Array, config: LossConfig, accuracy: str = "accuracy"
) -> LossTerms:
  h, weight = made.h, weights.sum()
  if h.ndim == 2:  # rows: one position each
    h, targets, weights = h[:, None], targets[:, None], weights[:, None]
  assert made.out is not None
  objective, nll, correct = cross_entropy(
    h, made.out, targets, weights,
    vocab_size=made.classes,
    label_smoothing=config.label_smoothing,
    z_loss=config.z_loss,
    tiles=_tiles(model, made.classes, *targets.shape),
    platform=model.placement.platform,
  )  # fmt: skip
  return one_term(name, objective, nll, correct, weight, accuracy)


def pretraining(model: Model, made: Outputs, batch: Batch, config: LossConfig) -> LossTerms:
  """Cross-entropy of tokens, and of the next sentence where the batch has it: their means are added."""
  tokens = classes(model, made, batch, config)
  if "next_sentence" not in batch:
    return tokens
  labels = batch["next_sentence"]
  # Rows that only fill up a batch count nothing.
  weights = (batch["segment_ids"] != 0).any(1) if "segment_ids" in batch else jnp.ones(labels.shape, bool)
  return tokens | _cross_entropy(
    model, "next_sentence", made["next_sentence"], labels, weights.astype(jnp.float32), LossConfig(),
    accuracy="next_sentence_accuracy",
  )  # fmt: skip


def rows(model: Model, made: Outputs, batch: Batch, config: LossConfig) -> LossTerms:
  """Cross-entropy of rows' classes; squared error where there is one number instead."""
  if made["logits"].classes > 1:
    return classes(model, made, batch, config)
  error = jnp.square(_logits(model, made)[:, 0] - batch["targets"].astype(jnp.float32))
  pairs = {"labels": ((batch["weights"] * error).sum(), batch["weights"].sum())}
  return LossTerms(pairs, pairs, {})


def answers(model: Model, made: Outputs, batch: Batch, config: LossConfig) -> LossTerms:
  """Mean of the cross-entropies of start and end over all places of a row, padding too (as everybody trains it)."""
  log_p = jax.nn.log_softmax(_logits(model, made), axis=1)  # [B, T, 2]
  hit = jnp.arange(log_p.shape[1])[None, :, None] == batch["targets"][:, None, :]
  nll = -jnp.where(hit, log_p, 0.0).sum(1).mean(1)
  return _weighted(nll, (log_p.argmax(1) == batch["targets"]).all(1), batch["weights"])


def replaced(model: Model, made: Outputs, batch: Batch, config: LossConfig) -> LossTerms:
  """Binary cross-entropy of each token."""
  y, target = _logits(model, made)[..., 0], batch["targets"] > 0
  return _weighted(jnp.logaddexp(0.0, jnp.where(target, -y, y)), (y > 0) == target, batch["weights"])


def _logits(model: Model, made: Outputs) -> Array:
  output = made["logits"]
  assert output.out is not None
  return losses.logits(output.h, output.out, output.classes, model.placement.platform)


def _weighted(nll: Array, correct: Array, weights: Array) -> LossTerms:
  """The terms of one loss from its values."""
  nll_sum = (weights * nll).sum()
  return one_term("labels", nll_sum, nll_sum, (weights * correct.astype(jnp.float32)).sum(), weights.sum())


# Of each head in models.heads.HEADS that has targets.
LOSSES: dict[str, Callable[[Model, Outputs, Batch, LossConfig], LossTerms]] = {
  "lm": classes,
  "pretraining": pretraining,
  "sequence_classification": rows,
  "token_classification": classes,
  "question_answering": answers,
  "replaced_token_detection": replaced,
}


def _tiles(model: Model, width: int, batch: int, length: int) -> int:
  """The fewest tiles, a divisor of the length, of which one fits `_TILE_BYTES` on a device."""
  shape = model.placement.mesh.shape
  total = 4 * batch * length * width // (model.placement.batch_shards * shape["model"])
  return next(n for n in range(1, length + 1) if length % n == 0 and (total <= n * _TILE_BYTES or n == length))
