"""Named sums, and cross-entropy over a vocabulary that never keeps float32 logits of the whole batch."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.ops.attention import MASKED
from tfm_jax.ops.broadcast import to_rank
from tfm_jax.ops.linear import einsum


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """What is added to the plain negative log-likelihood while training; evaluation is without it."""

  label_smoothing: float = 0.0  # share of the target's mass that is spread over the vocabulary
  z_loss: float = 0.0  # factor of log(Z)^2


class Unembedding(NamedTuple):
  """The output layer: `w_VD` in the compute dtype (V padded to a multiple of 128), `bias_V` float32 or None."""

  w_VD: Array
  bias_V: Array | None


Pair = tuple[Any, Any]
"""A sum and its weight, float32 scalars; the mean is their quotient."""


class LossTerms(NamedTuple):
  """What a loss says of a batch (or of a part of it): named sums, each with its own weight.

  Parts add up: sums and weights are added over microbatches, devices and batches, and divided at the very end. So every
  mean is one over the global batch, however it was cut. Weights depend on the batch alone, never on parameters.

  Attributes:
    objective: training minimises the sum of these means; with label smoothing, z-loss and the factors of terms. Only
      these have a gradient.
    loss: the same terms without all that: negative log-likelihoods in nats, to be read.
    metrics: other means to be read, such as the accuracy.
  """

  objective: dict[str, Pair]
  loss: dict[str, Pair]
  metrics: dict[str, Pair]

  def __or__(self, other: "LossTerms") -> "LossTerms":
    """The terms of both; their names must differ."""
    return LossTerms(*({**a, **b} for a, b in zip(self, other, strict=True)))

  def means(self) -> dict[str, Any]:
    """`loss` and `objective`, each the sum of its terms' means; `loss_NAME` of several terms; the metrics."""
    several = {f"loss_{name}": mean(pair) for name, pair in self.loss.items()} if len(self.loss) > 1 else {}
    totals = {"loss": total(self.loss), "objective": total(self.objective)}
    return totals | several | {name: mean(pair) for name, pair in self.metrics.items()}


def mean(pair: Pair) -> Any:
  """sum / weight, of arrays or of numbers; 0 where nothing has weight."""
  value, weight = pair
  return value / (max(weight, 1e-9) if isinstance(weight, float) else jnp.maximum(weight, 1e-9))


def total(pairs: dict[str, Pair]) -> Any:
  """The sum of the means."""
  return sum(mean(pair) for pair in pairs.values())


def one_term(
  name: str, objective: Array, nll: Array, correct: Array, weight: Array, accuracy: str = "accuracy"
) -> LossTerms:
  """The terms of a loss that predicts classes, from sums over the batch. `accuracy`: the name of that metric."""
  return LossTerms({name: (objective, weight)}, {name: (nll, weight)}, {accuracy: (correct, weight)})


# (vocab_size, label_smoothing, z_loss, tiles, platform), static.
Settings = tuple[int, float, float, int, str]
Sums = tuple[Array, Array, Array]  # loss, nll, correct


def logits(h: Array, out: Unembedding, vocab_size: int, platform: str, wide: bool = True) -> Array:
  """Float32 logits [..., V] of hidden states h [..., D]; ids from `vocab_size` on, which only pad, get -1e30.

  They are products in float32, unless `wide` is false: then those of bfloat16 are rounded to that dtype off the CPU.
  """
  letters = "ABCEFG"[: h.ndim - 1]
  y = einsum(f"{letters}D,VD->{letters}V", h, out.w_VD, platform, wide)
  y = y.astype(jnp.float32)
  if out.bias_V is not None:
    y = y + to_rank(out.bias_V, y.ndim)
  if out.w_VD.shape[0] == vocab_size:
    return y
  return jnp.where(_ids(y) < vocab_size, y, MASKED)


def _ids(y: Array) -> Array:
  """The vocabulary id of each logit."""
  return jax.lax.broadcasted_iota(jnp.int32, y.shape, y.ndim - 1)


def cross_entropy(
  h_BTD: Array,
  out: Unembedding,
  targets_BT: Array,
  weights_BT: Array,
  *,
  vocab_size: int,
  label_smoothing: float,
  z_loss: float,
  tiles: int,
  platform: str,
) -> Sums:
  """Weighted cross-entropy of h [B, T, D] against targets [B, T], summed over positions, in float32.

  Logits are made in `tiles` tiles of positions (a divisor of T), each against the full vocabulary; a tile keeps only
  its gradient, in the compute dtype, so at most one tile of float32 logits is alive.

  Args:
    h_BTD: final hidden states, compute dtype.
    out: the output layer.
    targets_BT: ids below `vocab_size`.
    weights_BT: float32 weights; 0 for positions that do not count.
    vocab_size: true size of the vocabulary.
    label_smoothing: share of the target's mass that is spread over all `vocab_size` ids (Szegedy et al. 2016).
    z_loss: factor of log(Z)^2 (Chowdhery et al. 2022).
    tiles: number of tiles.
    platform: see `linear`.

  Returns:
    Sums over positions: of the loss with smoothing and z-loss, of the plain negative log-likelihood in nats, and of
    right predictions.
  """
  settings = (vocab_size, label_smoothing, z_loss, tiles, platform)
  return _cross_entropy(h_BTD, out, targets_BT, weights_BT, settings)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(h: Array, out: Unembedding, targets: Array, weights: Array, settings: Settings) -> Sums:
  return _over_tiles(h, out, targets, weights, settings, with_gradient=False)[0]


def _over_tiles(
  h: Array, out: Unembedding, targets: Array, weights: Array, settings: Settings, with_gradient: bool
) -> tuple[Sums, Array | None]:
  """((loss, nll, correct), dlogits [B, T, V] or None)."""
  tiles = settings[3]
  one = partial(_tile, out=out, settings=settings, with_gradient=with_gradient)
  if tiles == 1:
    return one(h, targets, weights)
  batch, length = targets.shape

  def split(x: Array) -> Array:
    return jnp.moveaxis(x.reshape(batch, tiles, length // tiles, *x.shape[2:]), 1, 0)

  sums, dlogits = jax.lax.map(lambda args: one(*args), (split(h), split(targets), split(weights)))
  sums = jax.tree.map(lambda x: x.sum(0), sums)
  if dlogits is not None:
    dlogits = jnp.moveaxis(dlogits, 0, 1).reshape(batch, length, -1)
  return sums, dlogits


def _tile(
  h: Array, targets: Array, weights: Array, *, out: Unembedding, settings: Settings, with_gradient: bool
) -> tuple[Sums, Array | None]:
  vocab_size, smoothing, z_loss, _, platform = settings
  # A training step reads its tile several times: bfloat16 is half the bytes, and its gradient has no more digits.
  y = logits(h, out, vocab_size, platform, wide=not with_gradient)
  top = jax.lax.stop_gradient(y.max(-1))
  log_z = top + jnp.log(jnp.exp(y - top[..., None]).sum(-1))
  ids = _ids(y)
  hit = ids == targets[..., None]
  # A sum over a mask, not a gather: it stays local where the vocabulary is sharded.
  target_logit = jnp.where(hit, y, 0.0).sum(-1)
  nll = log_z - target_logit
  loss = nll
  if smoothing:
    mean_logit = jnp.where(ids < vocab_size, y, 0.0).sum(-1) / vocab_size
    loss = (1 - smoothing) * nll + smoothing * (log_z - mean_logit)
  if z_loss:
    loss = loss + z_loss * jnp.square(log_z)
  # A hit is the first of the largest logits, as argmax has it. Counted by a sum too, for the same reason.
  earlier = jnp.where((y >= top[..., None]) & (ids < targets[..., None]), 1.0, 0.0).sum(-1)
  correct = ((target_logit >= top) & (earlier == 0)).astype(jnp.float32)
  sums = ((weights * loss).sum(), (weights * nll).sum(), (weights * correct).sum())
  if not with_gradient:
    return sums, None
  target_mass = jnp.where(hit, 1.0 - smoothing, 0.0)
  if smoothing:
    target_mass = target_mass + jnp.where(ids < vocab_size, smoothing / vocab_size, 0.0)
  softmax = jnp.exp(y - log_z[..., None])
  dlogits = softmax * (1 + 2 * z_loss * log_z[..., None] if z_loss else 1.0) - target_mass
  return sums, (dlogits * weights[..., None]).astype(h.dtype)


def _forward(
  h: Array, out: Unembedding, targets: Array, weights: Array, settings: Settings
) -> tuple[Sums, tuple[Array, Unembedding, Array | None]]:
  sums, dlogits = _over_tiles(h, out, targets, weights, settings, with_gradient=True)
  return sums, (h, out, dlogits)


def _backward(
  settings: Settings, saved: tuple[Array, Unembedding, Array], cotangents: Sums
) -> tuple[Array, Unembedding, None, None]:
  h, out, dlogits = saved
  platform = settings[4]
  d_loss = cotangents[0]  # nll and correct are for people to read
  # The cotangent is one factor for all: applied in float32 behind the dots, it costs no precision.
  dh = (einsum("BTV,VD->BTD", dlogits, out.w_VD, platform) * d_loss).astype(h.dtype)
  dw = (einsum("BTV,BTD->VD", dlogits, h, platform) * d_loss).astype(out.w_VD.dtype)
  db = None if out.bias_V is None else dlogits.astype(jnp.float32).sum((0, 1)) * d_loss
  return dh, Unembedding(dw, db), None, None


_cross_entropy.defvjp(_forward, _backward)
