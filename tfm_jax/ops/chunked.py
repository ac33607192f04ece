"""Cross-entropy in chunks of the vocabulary: the form for a CPU.

The float32 logits of one chunk fit a cache. What is kept for the gradient of the output layer are their exponentials,
in the compute dtype and relative to the largest logit of the chunk. The gradient of the hidden states is summed up as
the chunks come, as in online softmax (Milakov and Gimelshein 2018). That of the output layer is written once.

The target's logit is taken out of its chunk, and its share of all sums is added at the end in float32: of a target that
is all but certain little is left, which rounding would lose. This also spares passes that look for the target.

Axes: N positions, C ids of one chunk, V vocabulary, D embed.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.ops.dots import cpu_weight_gradient, dot
from tfm_jax.ops.losses import Settings, Sums, Unembedding
from tfm_jax.ops.masks import MASKED

_IDS = 4096  # ids per chunk; with 2,048 a step takes as long, with 8,192 longer
_BYTES = 256 * 2**20  # most bytes of the logits of a chunk


class _Softmax(NamedTuple):
  """The softmax over the vocabulary, as the backward pass of the output layer needs it.

  Attributes:
    exponentials: of each chunk exp(logits - top), but 0 for the target: [N, C] in the compute dtype.
    tops: of each chunk the largest logit but the target's, [N].
    log_z: [N].
    target: of each position the gradient with respect to the target's logit, without smoothing, [N].
  """

  exponentials: tuple[Array, ...]
  tops: tuple[Array, ...]
  log_z: Array
  target: Array


def _chunks(vocabulary: int, places: int) -> list[slice]:
  """The ids of each chunk, for this many positions."""
  most = min(_IDS, max(_BYTES // (4 * places) // 128 * 128, 128))
  return [slice(first, min(first + most, vocabulary)) for first in range(0, vocabulary, most)]


def _column(targets: Array, chunk: slice) -> Array:
  """The columns of the targets in a chunk, [N]; those of other chunks get the first column that does not exist."""
  inside = (targets >= chunk.start) & (targets < chunk.stop)
  return jnp.where(inside, targets - chunk.start, chunk.stop - chunk.start)


def _with_column(x: Array, column: Array, value: Any) -> Array:
  """x [N, C] with another value in one column of each row; rows whose column does not exist are left as they are."""
  return x.at[jnp.arange(len(column)), column].set(value, mode="drop", unique_indices=True)


def _comes_earlier(y: Array, own: Array, column: Array) -> Array:
  """Whether a row of y [N, C] has the value `own` [N] in an earlier column than this one, [N]."""
  return ((y == own[:, None]) & (np.arange(y.shape[1])[None] < column[:, None])).any(-1)


def _mean(out: Unembedding, vocab_size: int) -> tuple[Array, Array]:
  """The mean row of the table [D] and the mean bias, without the padding, float32."""
  bias = jnp.zeros(()) if out.bias_V is None else out.bias_V[:vocab_size].mean()
  return out.w_VD[:vocab_size].astype(jnp.float32).mean(0), bias


def _forward(
  h: Array, out: Unembedding, targets: Array, weights: Array, settings: Settings, with_gradient: bool
) -> tuple[Sums, Array | None, _Softmax | None]:
  """The sums; if `with_gradient`, also the loss's gradient with respect to h (float32), and the softmax."""
  V, N = out.w_VD.shape[0], len(targets)
  smoothing, z_loss = settings.label_smoothing, settings.z_loss
  # Of all logits but the target's: the largest so far, and sums relative to it.
  top, total, dh = jnp.full(N, -jnp.inf), jnp.zeros(N), jnp.zeros(h.shape)
  target_logit, earlier = jnp.zeros(N), jnp.zeros(N, bool)  # earlier: an earlier id has the target's logit
  exponentials, tops = [], []
  chunks = _chunks(V, N)
  for chunk in chunks:
    y = dot("ND,CD->NC", h, out.w_VD[chunk])
    ids = np.arange(V, dtype=np.int32)[None, chunk]
    if out.bias_V is not None:
      y = y + out.bias_V[None, chunk]
    if chunk.stop > settings.vocab_size:
      y = jnp.where(ids < settings.vocab_size, y, MASKED)
    column = _column(targets, chunk)
    own = y.at[jnp.arange(N), column].get(mode="fill", fill_value=-jnp.inf)
    y, own = jax.lax.optimization_barrier((y, own))  # the column is then replaced in place
    target_logit = jnp.where(column < y.shape[1], own, target_logit)
    y = _with_column(y, column, MASKED)
    tops.append(y.max(-1))
    # Only where two logits are equal to the last bit is it asked which of them comes first.
    earlier |= jax.lax.cond((own == tops[-1]).any(), _comes_earlier, lambda *_: jnp.zeros(N, bool), y, own, column)
    e = jnp.exp(y - tops[-1][:, None])
    new = jnp.maximum(top, tops[-1])
    before, now = jnp.exp(top - new), jnp.exp(tops[-1] - new)
    top, total = new, total * before + e.sum(-1) * now
    if with_gradient:
      exponentials.append(e.astype(h.dtype))
      dh = dh * before[:, None] + dot("NC,CD->ND", exponentials[-1], out.w_VD[chunk]) * now[:, None]
    # Without a barrier XLA computes the logits of all chunks first.
    h, top, total, dh = jax.lax.optimization_barrier((h, top, total, dh))
  largest = jnp.maximum(top, target_logit)
  log_z = largest + jnp.log(total * jnp.exp(top - largest) + jnp.exp(target_logit - largest))
  nll = log_z - target_logit
  loss = nll
  if smoothing:
    mean_D, mean_bias = _mean(out, settings.vocab_size)
    mean_logit = (h.astype(jnp.float32) * mean_D[None]).sum(-1) + mean_bias
    loss = (1 - smoothing) * nll + smoothing * (log_z - mean_logit)
  if z_loss:
    loss = loss + z_loss * jnp.square(log_z)
  # Correct means the first of the largest logits, as in argmax: chunks before the target's must have smaller ones.
  for chunk, chunk_top in zip(chunks, tops, strict=True):
    earlier |= (targets >= chunk.stop) & (chunk_top == target_logit)
  correct = ((target_logit >= top) & ~earlier).astype(jnp.float32)
  sums = ((weights * loss).sum(), (weights * nll).sum(), (weights * correct).sum())
  if not with_gradient:
    return sums, None, None
  grown = 1 + 2 * z_loss * log_z if z_loss else jnp.ones(N)
  target = grown * jnp.exp(target_logit - log_z) - (1 - smoothing)
  own_row = out.w_VD.at[targets].get(mode="promise_in_bounds").astype(jnp.float32)
  dh = dh * (grown * jnp.exp(top - log_z))[:, None] + own_row * target[:, None]
  dh = dh - smoothing * mean_D[None] if smoothing else dh
  return sums, dh * weights[:, None], _Softmax(tuple(exponentials), tuple(tops), log_z, target)


def cross_entropy(h: Array, out: Unembedding, targets: Array, weights: Array, settings: Settings) -> Sums:
  """See `ops.cross_entropy.cross_entropy`."""
  return _of_positions(h.reshape(-1, h.shape[-1]), out, targets.reshape(-1), weights.reshape(-1), settings)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _of_positions(h: Array, out: Unembedding, targets: Array, weights: Array, settings: Settings) -> Sums:
  return _forward(h, out, targets, weights, settings, with_gradient=False)[0]


def _vjp_forward(h: Array, out: Unembedding, targets: Array, weights: Array, settings: Settings) -> tuple[Sums, Any]:
  sums, dh, softmax = _forward(h, out, targets, weights, settings, with_gradient=True)
  return sums, (h, out, targets, weights, dh, softmax)


def _vjp_backward(settings: Settings, saved: Any, cotangents: Sums) -> tuple[Array, Unembedding, None, None]:
  h, out, targets, weights, dh, softmax = saved
  V, N = out.w_VD.shape[0], len(targets)
  weights = weights * cotangents[0]  # the other sums are only reported
  grown = weights * (1 + 2 * settings.z_loss * softmax.log_z) if settings.z_loss else weights
  target, share = weights * softmax.target, weights * np.float32(settings.label_smoothing / settings.vocab_size)
  dw_parts, db_parts = [], []
  for chunk, e, top in zip(_chunks(V, N), softmax.exponentials, softmax.tops, strict=True):
    dlogits = e.astype(jnp.float32) * (grown * jnp.exp(top - softmax.log_z))[:, None]
    if settings.label_smoothing:
      ids = np.arange(V, dtype=np.int32)[None, chunk]
      dlogits = dlogits - jnp.where(ids < settings.vocab_size, share[:, None], 0.0)
    db_parts.append(dlogits.sum(0))
    own = (target - share).astype(h.dtype)
    dw = _table_gradient(_with_column(dlogits.astype(h.dtype), _column(targets, chunk), own), h)
    # Without a barrier XLA computes the gradients of the logits of all chunks first.
    dw, grown = jax.lax.optimization_barrier((dw.astype(out.w_VD.dtype), grown))
    dw_parts.append(dw)
  db = None if out.bias_V is None else jnp.concatenate(db_parts).at[targets].add(target, mode="promise_in_bounds")
  return (dh * cotangents[0]).astype(h.dtype), Unembedding(jnp.concatenate(dw_parts), db), None, None


def _table_gradient(dlogits_NC: Array, h_ND: Array) -> Array:
  """The sum over N of the products, [C, D] float32."""
  # The smaller operand is the one that is transposed. Without a barrier XLA turns the transposed dot into one with its
  # operands exchanged, which XLA:CPU does not have in bfloat16.
  return jax.lax.optimization_barrier(cpu_weight_gradient("ND,DC->NC", h_ND, dlogits_NC)).T


_of_positions.defvjp(_vjp_forward, _vjp_backward)
