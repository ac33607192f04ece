"""cuDNN's fused attention on NVIDIA GPUs, by `jax.nn.dot_product_attention`: no matrix of attention weights in memory.

cuDNN knows causal masks, and windows of these. Segments and other masks are an array of rows, queries and keys, without
heads, which is prepared once per stack. With a bias that would be one with heads, a matrix of logits after all. There
segments are further features of queries and keys instead: see `with_segments`.

JAX can also pass the bounds of packed segments to cuDNN. It does so only if this process has a Hopper GPU, so what
compiles here would not be what runs there, and the output is undefined at padding.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.ops.experts import share_scope
from tfm_jax.ops.kernel import Need
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.positions import by_distance

# Features of a segment: the bits of its number, each of which is -1 or 1. JAX takes heads of up to 128 features: more
# are for some GPUs alone.
BITS, WIDEST = 16, 128
# Share of a bit in the logit. Of two segments that differ in one bit alone, the wrong one has a logit that is smaller
# by twice as much, so that its weights are 0 in float32. The sum of all bits, 2^11, leaves float32 logits an error of
# 2^-13, less than that of products in bfloat16.
_SHARE = 128.0


def cudnn_refuses(need: Need) -> str:
  """Why cuDNN's attention cannot serve; see `Kernel.refuses`."""
  widest, beside = (WIDEST - BITS, " beside a bias") if need.bias else (WIDEST, "")
  odd = [n for n in need.lengths if n % 2]
  reasons = (
    (need.platform not in ("", "gpu"), f"needs a GPU, not a {need.platform}"),
    (need.dtype == "float32", "computes in bfloat16, but model.dtype=float32"),
    (need.dropout, f"has no dropout of ours, but model.attention_dropout={need.dropout:g}"),
    (need.head_dim % 8, f"takes heads of a multiple of 8 features, not {need.head_dim}"),
    (need.head_dim > widest, f"takes heads of up to {widest} features{beside}, not {need.head_dim}"),
    (need.bias and need.window, f"has no windows beside a bias, but window.size={need.window}"),
    (need.bias and need.prefix, "has no prefixes beside a bias, as objective.name=prefix_lm has"),
    (need.causal and need.mixed, "has causal windows in all layers or in none, but window.global_every is set"),
    (need.cache, "does not read a cache of keys and values"),
    (need.cut, "needs whole sequences, but the strategy splits them over devices"),
    (need.uneven, "needs a number of rows that the devices divide"),
    (need.staged, "is not used in pipelines, but the strategy splits the layers"),
    (odd, f"takes even numbers of tokens, not {' and '.join(map(str, odd))}"),
  )
  return next((words for wrong, words in reasons if wrong), "")


@partial(
  jax.tree_util.register_dataclass,
  data_fields=["mask_BTS", "segments_BT", "segments_BS"],
  meta_fields=["causal", "window"],
)
@dataclasses.dataclass(frozen=True)
class Fused:
  """A mask as cuDNN reads it.

  Attributes:
    mask_BTS: Boolean [B or 1, T, S], all of the mask but what `causal` and `window` say; None: nothing. Beside a bias
      it is not read.
    segments_BT, segments_BS: of queries and keys, read beside a bias; None: a single segment.
    causal, window: see `Mask`.
  """

  mask_BTS: Array | None = None
  segments_BT: Array | None = None
  segments_BS: Array | None = None
  causal: bool = False
  window: int = 0


def prepare_cudnn(mask: Mask, queries: int, keys: int) -> Fused:
  """The mask as cuDNN reads it, which has windows of causal masks alone."""
  fused = Fused(segments_BT=mask.query_segments_BT, segments_BS=mask.key_segments_BS)
  if mask.causal and mask.prefix_BS is None and isinstance(mask.window, int):
    fused = dataclasses.replace(fused, causal=True, window=mask.window)
    mask = dataclasses.replace(mask, causal=False, window=0)
  return dataclasses.replace(fused, mask_BTS=mask.dense(queries, keys))


def attend_cudnn(
  q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, *, mask: Fused, bias_HTS: Array | None, scale: float, **_: Any
) -> Array:
  """The entry of `KERNELS`; a bias is by distance, and in the dtype of the queries, as is its gradient.

  A query that no key is left for gets the mean of all values, under a causal mask that of earlier ones. Beside a bias,
  such a query gets keys of segments that are close in number, and queries at padding also see keys at padding.
  """
  T, S, K = q_BTHK.shape[1], k_BSGK.shape[1], q_BTHK.shape[3]
  options: dict[str, Any] = {"scale": scale, "is_causal": mask.causal, "implementation": "cudnn"}
  if mask.window:
    options["local_window_size"] = (mask.window, 0)
  if bias_HTS is None:
    mask_BHTS = None if mask.mask_BTS is None else mask.mask_BTS[:, None]
    return jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, mask=mask_BHTS, **options)
  bias_BHTS = by_distance(bias_HTS, T, S)[None].astype(q_BTHK.dtype)
  if mask.segments_BT is None or mask.segments_BS is None:
    return jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, bias_BHTS, **options)
  q_BTHK, k_BSGK, v_BSGK = with_segments(q_BTHK, k_BSGK, v_BSGK, mask.segments_BT, mask.segments_BS, scale)
  with jax.named_scope(share_scope(K, K + BITS)):  # read by the count of FLOPs
    y_BTHK = jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, bias_BHTS, **options)
  return y_BTHK[..., :K]


def with_segments(
  q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, segments_BT: Array, segments_BS: Array, scale: float
) -> tuple[Array, Array, Array]:
  """Queries, keys and values with `BITS` more features, by which logits of other segments' keys are smaller.

  A feature is a bit of the segment's number. Those of equal segments add the same to all logits, which the softmax does
  not see; each bit that differs takes away twice its share. Padding, segment 0, has features of 0.
  """

  def joined(x: Array, ids: Array, size: float) -> Array:
    ids = ids[:, :, None, None]
    bits = jnp.where((ids >> np.arange(BITS, dtype=np.int32).reshape(1, 1, 1, BITS)) & 1 == 1, size, -size)
    features = jnp.where(ids == 0, 0.0, bits).astype(x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(features, (*x.shape[:3], BITS))], axis=3)

  zeros = jnp.zeros((*v_BSGK.shape[:3], BITS), v_BSGK.dtype)
  v = jnp.concatenate([v_BSGK, zeros], axis=3)
  return joined(q_BTHK, segments_BT, 1.0), joined(k_BSGK, segments_BS, _SHARE / scale), v
