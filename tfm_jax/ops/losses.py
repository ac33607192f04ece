"""Losses as named sums, and the output layer."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.ops.broadcast import to_rank
from tfm_jax.ops.linear import einsum
from tfm_jax.ops.masks import MASKED


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """What training adds to the negative log-likelihood. Evaluation does not."""

  label_smoothing: float = 0.0  # share of the target probability that is spread over the vocabulary
  z_loss: float = 0.0  # weight of the penalty log(Z)^2 on the softmax normaliser Z
  # classification of rows: weight of the divergence between the classes under two dropout masks (R-Drop); 0: none
  r_drop: float = 0.0
  replaced: float = 50.0  # electra: factor of the loss of the model, beside that of its generator


class Unembedding(NamedTuple):
  """The output layer: `w_VD` in the compute dtype (V padded to a multiple of 128), `bias_V` float32 or None."""

  w_VD: Array
  bias_V: Array | None


class SoftTargets(NamedTuple):
  """The distributions of a teacher, which a student learns beside its labels (Hinton et al. 2015).

  Attributes:
    h: the teacher's hidden states, [..., D'] beside the student's [..., D].
    out: the teacher's output layer, for the same classes.
    temperature: both sides' logits are divided by it.
    soft: factor of temperature^2 times the cross-entropy with the teacher's distributions.
    hard: factor of the loss of the labels.
  """

  h: Array
  out: Unembedding
  temperature: Any
  soft: Any
  hard: Any


Pair = tuple[Any, Any]
"""A sum and its weight, float32 scalars. Their quotient is a mean."""


class LossTerms(NamedTuple):
  """The loss of a batch (or of a part of it) as named sums, each with its own weight.

  Sums and weights are added over microbatches, devices and batches, and divided at the end. So every mean is over the
  global batch, however it was split. Weights of `objective` and `loss` depend on the batch only, never on parameters.

  Attributes:
    objective: the terms whose means training minimises, with label smoothing, z-loss and factors. Only these have a
      gradient.
    loss: the same terms without those additions, for reports: negative log-likelihoods in nats.
    metrics: other means for reports, such as the accuracy.
  """

  objective: dict[str, Pair]
  loss: dict[str, Pair]
  metrics: dict[str, Pair]

  def __or__(self, other: "LossTerms") -> "LossTerms":
    """The terms of both, whose names must differ."""
    return LossTerms(*({**a, **b} for a, b in zip(self, other, strict=True)))

  def means(self) -> dict[str, Any]:
    """`loss` and `objective` (sums of their terms' means), `loss_NAME` if there are several terms, and the metrics."""
    several = {f"loss_{name}": mean(pair) for name, pair in self.loss.items()} if len(self.loss) > 1 else {}
    totals = {"loss": total(self.loss), "objective": total(self.objective)}
    return totals | several | {name: mean(pair) for name, pair in self.metrics.items()}


def mean(pair: Pair) -> Any:
  """sum / weight, of arrays or numbers; 0 if the weight is 0."""
  value, weight = pair
  return value / (max(weight, 1e-9) if isinstance(weight, float) else jnp.maximum(weight, 1e-9))


def total(pairs: dict[str, Pair]) -> Any:
  """The sum of the means."""
  return sum(mean(pair) for pair in pairs.values())


def one_term(
  name: str, objective: Array, nll: Array, correct: Array, weight: Array, accuracy: str = "accuracy"
) -> LossTerms:
  """The terms of a classification loss, from sums over the batch. `accuracy`: the name of that metric."""
  return LossTerms({name: (objective, weight)}, {name: (nll, weight)}, {accuracy: (correct, weight)})


class Settings(NamedTuple):
  """The static arguments of `cross_entropy`, which has their meaning."""

  vocab_size: int
  label_smoothing: float
  z_loss: float
  tiles: int
  platform: str
  parts: int = 1


Sums = tuple[Array, ...]  # loss, nll, correct; with soft targets also the divergence


def logits(h: Array, out: Unembedding, vocab_size: int, platform: str, wide: bool = True) -> Array:
  """Float32 logits [..., V] of hidden states h [..., D]; -1e30 for ids from `vocab_size` on, which are padding.

  If `wide` is false, products of bfloat16 are rounded to bfloat16, except on CPU.
  """
  letters = "ABCEFG"[: h.ndim - 1]
  y = einsum(f"{letters}D,VD->{letters}V", h, out.w_VD, platform, wide)
  y = y.astype(jnp.float32)
  if out.bias_V is not None:
    y = y + to_rank(out.bias_V, y.ndim)
  if out.w_VD.shape[0] == vocab_size:
    return y
  return jnp.where(ids_of(y) < vocab_size, y, MASKED)


def ids_of(y: Array) -> Array:
  """The vocabulary id of each logit."""
  return jax.lax.broadcasted_iota(jnp.int32, y.shape, y.ndim - 1)
