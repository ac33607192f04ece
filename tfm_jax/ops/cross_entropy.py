"""Cross-entropy over a vocabulary that never keeps float32 logits of the whole batch."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.ops import chunked
from tfm_jax.ops.linear import einsum
from tfm_jax.ops.losses import Settings, SoftTargets, Sums, Unembedding, ids_of, logits


def cross_entropy(
  h_BTD: Array,
  out: Unembedding,
  targets_BT: Array,
  weights_BT: Array,
  *,
  vocab_size: int,
  label_smoothing: float,
  z_loss: float,
  form: str = "tiles",
  tiles: int = 1,
  parts: int = 1,
  platform: str,
  soft: SoftTargets | None = None,
) -> Sums:
  """Weighted cross-entropy of h [B, T, D] against targets [B, T], summed over positions, in float32.

  Args:
    h_BTD: final hidden states, compute dtype.
    out: the output layer.
    targets_BT: ids below `vocab_size`.
    weights_BT: float32 weights; 0 for positions that do not count.
    vocab_size: true size of the vocabulary.
    label_smoothing: share of the target probability that is spread over all `vocab_size` ids (Szegedy et al. 2016).
    z_loss: weight of log(Z)^2 (Chowdhery et al. 2022).
    form: how it is computed. "tiles" of positions keep whole logits in one product, which accelerators want, and let
      devices share the vocabulary; "chunks" of the vocabulary suit the caches of one CPU.
    tiles: number of tiles, a divisor of T / parts.
    parts: number of parts of T that lie on different devices. A tile has positions of each.
    platform: see `linear`.
    soft: the distributions of a teacher, for "tiles" only. The teacher has no gradient.

  Returns:
    Sums over positions: of the loss with smoothing, z-loss and soft targets, of the negative log-likelihood in nats,
    and of correct predictions. With `soft` also of the Kullback-Leibler divergence of the student from the teacher at
    the temperature, in nats: what the soft loss is above the least that it can be, the teacher's entropy.
  """
  settings = Settings(vocab_size, label_smoothing, z_loss, tiles, platform, parts)
  if form == "chunks":
    assert soft is None
    return chunked.cross_entropy(h_BTD, out, targets_BT, weights_BT, settings)
  return _tiled(h_BTD, out, targets_BT, weights_BT, soft, settings)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _tiled(
  h: Array, out: Unembedding, targets: Array, weights: Array, soft: SoftTargets | None, settings: Settings
) -> Sums:
  """Tiles of positions over the full vocabulary.

  A tile keeps only its gradient, in the compute dtype, so at most one tile of float32 logits is in memory, and one of
  the teacher's.
  """
  return _over_tiles(h, out, targets, weights, soft, settings, with_gradient=False)[0]


def _over_tiles(
  h: Array,
  out: Unembedding,
  targets: Array,
  weights: Array,
  soft: SoftTargets | None,
  settings: Settings,
  with_gradient: bool,
) -> tuple[Sums, Array | None]:
  """(the sums, dlogits [B, T, V] or None)."""
  tiles = settings.tiles

  def one(h: Array, targets: Array, weights: Array, teacher_h: Any) -> tuple[Sums, Array | None]:
    taught = None if soft is None else soft._replace(h=teacher_h)
    return _tile(h, out, targets, weights, taught, settings, with_gradient)

  arrays = (h, targets, weights, None if soft is None else soft.h)
  if tiles == 1:
    return one(*arrays)
  (batch, length), parts = targets.shape, settings.parts

  def split(x: Array) -> Array:
    x = jnp.moveaxis(x.reshape(batch, parts, tiles, length // (parts * tiles), *x.shape[2:]), 2, 0)
    return x.reshape(tiles, batch, length // tiles, *x.shape[4:])

  sums, dlogits = jax.lax.map(lambda args: one(*args), jax.tree.map(split, arrays))
  sums = jax.tree.map(lambda x: x.sum(0), sums)
  if dlogits is not None:
    dlogits = dlogits.reshape(tiles, batch, parts, length // (parts * tiles), -1)
    dlogits = jnp.moveaxis(dlogits, 0, 2).reshape(batch, length, -1)
  return sums, dlogits


def _tile(
  h: Array,
  out: Unembedding,
  targets: Array,
  weights: Array,
  soft: SoftTargets | None,
  settings: Settings,
  with_gradient: bool,
) -> tuple[Sums, Array | None]:
  vocab_size, smoothing, z_loss, platform = (
    settings.vocab_size,
    settings.label_smoothing,
    settings.z_loss,
    settings.platform,
  )
  # A training step reads its tile several times: bfloat16 halves the bytes, and the gradient has that precision anyway.
  y = logits(h, out, vocab_size, platform, wide=not with_gradient)
  top = jax.lax.stop_gradient(y.max(-1))
  log_z = top + jnp.log(jnp.exp(y - top[..., None]).sum(-1))
  ids = ids_of(y)
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
  # Correct means the first of the largest logits, as in argmax. It is counted by a sum for the same reason.
  earlier = jnp.where((y >= top[..., None]) & (ids < targets[..., None]), 1.0, 0.0).sum(-1)
  correct = ((target_logit >= top) & (earlier == 0)).astype(jnp.float32)
  sums: Sums = ((weights * nll).sum(), (weights * correct).sum())
  if soft is not None:
    soft_loss, divergence, d_soft = _soft_loss(y, soft, settings)
    loss = soft.hard * loss + soft.soft * soft_loss
    sums = (*sums, (weights * divergence).sum())
  sums = ((weights * loss).sum(), *sums)
  if not with_gradient:
    return sums, None
  target_mass = jnp.where(hit, 1.0 - smoothing, 0.0)
  if smoothing:
    target_mass = target_mass + jnp.where(ids < vocab_size, smoothing / vocab_size, 0.0)
  softmax = jnp.exp(y - log_z[..., None])
  dlogits = softmax * (1 + 2 * z_loss * log_z[..., None] if z_loss else 1.0) - target_mass
  if soft is not None:
    dlogits = soft.hard * dlogits + soft.soft * d_soft
  return sums, (dlogits * weights[..., None]).astype(h.dtype)


def _soft_loss(y: Array, soft: SoftTargets, settings: Settings) -> tuple[Array, Array, Array]:
  """(temperature^2 times the cross-entropy with the teacher, the divergence from it, the gradient of the first)."""
  theirs = logits(soft.h, soft.out, settings.vocab_size, settings.platform, wide=False)
  log_p, log_q = (jax.nn.log_softmax(x / soft.temperature) for x in (theirs, y))
  p = jnp.exp(log_p)  # exactly 0 for padding
  cross, entropy = -(p * log_q).sum(-1), -(p * log_p).sum(-1)
  return soft.temperature**2 * cross, cross - entropy, soft.temperature * (jnp.exp(log_q) - p)


def _forward(
  h: Array, out: Unembedding, targets: Array, weights: Array, soft: SoftTargets | None, settings: Settings
) -> tuple[Sums, tuple[Array, Unembedding, Array | None]]:
  sums, dlogits = _over_tiles(h, out, targets, weights, soft, settings, with_gradient=True)
  return sums, (h, out, dlogits)


def _backward(
  settings: Settings, saved: tuple[Array, Unembedding, Array], cotangents: Sums
) -> tuple[Array, Unembedding, None, None, None]:
  h, out, dlogits = saved
  platform = settings.platform
  d_loss = cotangents[0]  # the other sums are only reported
  # The cotangent is a common factor: applying it in float32 after the dots loses no precision.
  dh = (einsum("BTV,VD->BTD", dlogits, out.w_VD, platform) * d_loss).astype(h.dtype)
  dw = (einsum("BTV,BTD->VD", dlogits, h, platform) * d_loss).astype(out.w_VD.dtype)
  db = None if out.bias_V is None else dlogits.astype(jnp.float32).sum((0, 1)) * d_loss
  return dh, Unembedding(dw, db), None, None, None


_tiled.defvjp(_forward, _backward)
