"""Losses shared by heads."""

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.heads.head import Output
from tfm_jax.ops import losses
from tfm_jax.ops.cross_entropy import cross_entropy
from tfm_jax.ops.losses import LossConfig, LossTerms, one_term
from tfm_jax.sharding.order import context_size
from tfm_jax.sharding.placement import Placement

DIVERGENCE = "divergence"  # metric of losses with soft targets

# Bytes of the float32 logits of one tile on one device. Larger tiles are not faster.
_TILE_BYTES = 256 * 2**20


def class_terms(
  st: Placement,
  name: str,
  output: Output,
  targets: Array,
  weights: Array,
  extras: LossConfig,
  accuracy: str = "accuracy",
) -> LossTerms:
  """Cross-entropy of tokens, or of classes of tokens or rows, under the given name.

  With soft targets, the divergence from the teacher is a further metric.
  """
  h, soft, weight = output.h, output.soft, weights.sum()
  if h.ndim == 2:  # rows: one position each
    h, targets, weights = h[:, None], targets[:, None], weights[:, None]
    soft = soft and soft._replace(h=soft.h[:, None])
  assert output.out is not None
  objective, nll, correct, *divergence = cross_entropy(
    h,
    output.out,
    targets,
    weights,
    vocab_size=output.classes,
    label_smoothing=extras.label_smoothing,
    z_loss=extras.z_loss,
    form="chunks" if st.lone_cpu and soft is None else "tiles",
    tiles=tiles_of(st, output.classes * (1 if soft is None else 2), *targets.shape),
    parts=parts_of(st, targets.shape[1]),
    platform=st.platform,
    soft=soft,
  )
  terms = one_term(name, objective, nll, correct, weight, accuracy)
  if divergence:
    terms.metrics[DIVERGENCE] = (divergence[0], weight)
  return terms


def weighted_terms(nll: Array, correct: Array, weights: Array) -> LossTerms:
  """The terms of the loss `labels` from the loss and correctness of each prediction."""
  total = (weights * nll).sum()
  return one_term("labels", total, total, (weights * correct.astype(jnp.float32)).sum(), weights.sum())


def contrast(y_BA: Array, real_B: Array) -> tuple[Array, Array]:
  """The cross-entropy of column n among all real columns by the logits of row n, and whether column n is first.

  Both are [B], of the global batch whatever it is split over (van den Oord et al. 2018).
  """
  log_p = jax.nn.log_softmax(jnp.where(real_B[None], y_BA, -1e30))
  return -jnp.diagonal(log_p), log_p.argmax(1) == jnp.arange(len(log_p))


def result(st: Placement, output: Output) -> Array:
  """An output in float32: logits, or the hidden states if there is no last linear."""
  if output.out is None:
    return output.h.astype(jnp.float32)
  y = losses.logits(output.h, output.out, output.classes, st.platform)[..., : output.classes]
  return y[..., 0] if output.squeezed else y


def parts_of(st: Placement, length: int) -> int:
  """Number of parts of positions that lie on different devices."""
  context = context_size(st)
  return 1 if length % context else context


def tiles_of(st: Placement, width: int, batch: int, length: int) -> int:
  """The smallest divisor of a device's part of the length for which one tile fits `_TILE_BYTES` on a device."""
  length //= parts_of(st, length)
  total = 4 * batch * length * width // (st.batch_shards * st.mesh.shape["model"])
  return next(n for n in range(1, length + 1) if length % n == 0 and (total <= n * _TILE_BYTES or n == length))
