"""Splash attention: JAX's block-sparse flash attention for TPUs, which never stores the attention weights."""

import functools
import warnings
from typing import Any

import jax
from jax import Array

from tfm_jax.ops.kernel import Need
from tfm_jax.ops.masks import Mask

LANES = 128
_BLOCK = 512  # queries and keys of a tile, which fill the matrix unit and fit into fast memory


def splash_refuses(need: Need) -> str:
  """Why splash attention cannot serve; see `Kernel.refuses`."""
  ragged = [n for n in need.lengths if n % LANES]
  reasons = (
    (need.platform not in ("", "tpu"), f"needs a TPU, not a {need.platform}"),
    (need.dropout, f"has no dropout, but model.attention_dropout={need.dropout:g}"),
    (need.window, f"is used without windows, but window.size={need.window}"),
    (
      need.scale_by_layer,
      "has one scale for all layers, but model.scale_by_layer=true",
    ),
    (
      need.bias,
      "adds no bias to the logits, as model.positions=relative and alibi do",
    ),
    (need.cache, "does not read a cache of keys and values"),
    (need.prefix, "has no prefixes, which objective.name=prefix_lm has"),
    (need.cut, "needs whole sequences, but the strategy splits them over devices"),
    (need.uneven, "needs a number of rows that the devices divide"),
    (
      ragged,
      f"takes multiples of {LANES} tokens, not {' and '.join(map(str, ragged))}",
    ),
  )
  return next((words for wrong, words in reasons if wrong), "")


def attend_splash(
  q_BTHK: Array,
  k_BSGK: Array,
  v_BSGK: Array,
  *,
  mask: Mask,
  scale: float,
  platform: str,
  **_: Any,
) -> Array:
  """The entry of `KERNELS`. It runs in the interpreter where there is no TPU."""
  segments = (mask.query_segments_BT, mask.key_segments_BS)
  interpret = platform != "tpu"
  return splash_attention(
    q_BTHK,
    k_BSGK,
    v_BSGK,
    *segments,
    causal=mask.causal,
    scale=scale,
    interpret=interpret,
  )


def splash_attention(
  q_BTHK: Array,
  k_BSGK: Array,
  v_BSGK: Array,
  segments_BT: Array | None,
  segments_BS: Array | None,
  *,
  causal: bool,
  scale: float,
  interpret: bool = False,
) -> Array:
  """softmax(scale * q k, where not masked) v, [B, T, H, K] in q's dtype; see `ops.attention`.

  Args:
    q_BTHK: queries; k_BSGK, v_BSGK: keys and values, each of whose G heads serves H / G query heads.
    segments_BT, segments_BS: keys of other segments are masked; None: a single segment.
    causal: later keys are masked.
    scale: factor of the dot products.
    interpret: run without a TPU, slowly, for tests.
  """
  kernel = make_kernel(q_BTHK.shape[1], k_BSGK.shape[1], q_BTHK.shape[2], causal, interpret)
  heads_first = [x.swapaxes(1, 2) for x in (q_BTHK * jax.numpy.asarray(scale, q_BTHK.dtype), k_BSGK, v_BSGK)]
  y_BHTK = jax.vmap(kernel)(*heads_first, _segments(segments_BT, segments_BS))
  return y_BHTK.swapaxes(1, 2)


def heads_with_statistics(
  q_BHTK: Array,
  k_BGSK: Array,
  v_BGSK: Array,
  segments_BT: Array | None,
  segments_BS: Array | None,
  *,
  causal: bool,
  platform: str,
) -> tuple[Array, Array]:
  """`splash_attention` with heads first and a scale of 1; also the log-sum-exp of the logits, float32 [B, H, T].

  It has no gradient: `heads_gradients` computes that.
  """
  kernel = make_kernel(
    q_BHTK.shape[2],
    k_BGSK.shape[2],
    q_BHTK.shape[1],
    causal,
    platform != "tpu",
    statistics=True,
  )
  y_BHTK, (lse_BHT,) = jax.vmap(kernel)(q_BHTK, k_BGSK, v_BGSK, _segments(segments_BT, segments_BS))
  return y_BHTK, lse_BHT


def heads_gradients(
  q_BHTK: Array,
  k_BGSK: Array,
  v_BGSK: Array,
  segments_BT: Array | None,
  segments_BS: Array | None,
  y_BHTK: Array,
  lse_BHT: Array,
  dy_BHTK: Array,
  *,
  causal: bool,
  platform: str,
) -> tuple[Array, Array, Array]:
  """The gradients of queries, keys and values as far as these keys and values contribute to them.

  y and lse are the output and the log-sum-exp of all keys of the queries, of which these may be a part.
  """
  kernel = make_kernel(q_BHTK.shape[2], k_BGSK.shape[2], q_BHTK.shape[1], causal, platform != "tpu")
  options = {name: value for name, value in kernel.kwargs.items() if name != "save_residuals"}

  def of_row(q: Array, k: Array, v: Array, segments: Any, y: Array, lse: Array, dy: Array) -> tuple:
    saved = (
      q,
      k,
      v,
      segments,
      None,
      y,
      lse,
      kernel.dq_mask_info,
      kernel.dkv_mask_info,
    )
    gradients: tuple = _kernels()._splash_attention_bwd(save_residuals=False, **options, res=saved, do=dy)[3:6]
    return gradients

  return jax.vmap(of_row)(
    q_BHTK,
    k_BGSK,
    v_BGSK,
    _segments(segments_BT, segments_BS),
    y_BHTK,
    lse_BHT,
    dy_BHTK,
  )


def _segments(queries_BT: Array | None, keys_BS: Array | None) -> Any:
  """Segments as the kernel reads them."""
  return None if queries_BT is None or keys_BS is None else _kernels().SegmentIds(queries_BT, keys_BS)


def _kernels() -> Any:
  """The module of the kernel, imported at first use because the import is slow and only TPUs need it."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the module's own imports
    from jax.experimental.pallas.ops.tpu.splash_attention import (
      splash_attention_kernel,
    )
  return splash_attention_kernel


def make_kernel(
  queries: int,
  keys: int,
  heads: int,
  causal: bool,
  interpret: bool,
  statistics: bool = False,
) -> Any:
  """The kernel for one row of a batch. `statistics`: it also returns the log-sum-exp of the logits."""
  kernels = _kernels()
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  block_q, block_kv = (max(n for n in (LANES, 256, _BLOCK) if length % n == 0) for length in (queries, keys))
  blocks = kernels.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_kv_compute=block_kv,
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    block_kv_dkv_compute=block_kv,
    block_q_dq=block_q,
    block_kv_dq=block_kv,
  )
  mask = masks.CausalMask((queries, keys)) if causal else masks.FullMask((queries, keys))
  fixed = {
    "head_shards": 1,
    "q_seq_shards": 1,
    "interpret": interpret,
    "save_residuals": statistics,
  }
  make = functools.partial(kernels.make_splash_mha, **fixed)
  return make(masks.MultiHeadMask([mask] * heads), block_sizes=blocks)
