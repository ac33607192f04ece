"""Splash attention: JAX's block-sparse flash attention for TPUs, which never stores the attention weights."""

import functools
import warnings
from typing import Any

import jax
from jax import Array

LANES = 128
_BLOCK = 512  # queries and keys of a tile: large enough to fill the matrix unit, small enough for fast memory


def fits(queries: int, keys: int) -> bool:
  """Whether the kernel takes these lengths: whole tiles of 128."""
  return queries % LANES == 0 and keys % LANES == 0


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
  """softmax(scale * q k, where seen) v: [B, T, H, K] in q's dtype; see `ops.attention`.

  Args:
    q_BTHK: queries; k_BSGK, v_BSGK: keys and values, each of whose G heads serves H / G query heads.
    segments_BT, segments_BS: a query sees keys of its own segment only; None: one segment.
    causal: a query sees no later key.
    scale: factor of the dot products.
    interpret: run it without a TPU, slowly, for tests.
  """
  kernels = _kernels()
  kernel = _kernel(q_BTHK.shape[1], k_BSGK.shape[1], q_BTHK.shape[2], causal, interpret)
  heads_first = [x.swapaxes(1, 2) for x in (q_BTHK * jax.numpy.asarray(scale, q_BTHK.dtype), k_BSGK, v_BSGK)]
  if segments_BT is None or segments_BS is None:
    y_BHTK = jax.vmap(kernel)(*heads_first)
  else:
    y_BHTK = jax.vmap(kernel)(*heads_first, kernels.SegmentIds(segments_BT, segments_BS))
  return y_BHTK.swapaxes(1, 2)


def _kernels() -> Any:
  """Imported at first use: it takes a while, and only TPUs need it."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the module's own imports
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
  return splash_attention_kernel


def _kernel(queries: int, keys: int, heads: int, causal: bool, interpret: bool) -> Any:
  """The kernel for one row of a batch."""
  kernels = _kernels()
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  block_q, block_kv = (max(n for n in (LANES, 256, _BLOCK) if length % n == 0) for length in (queries, keys))
  blocks = kernels.BlockSizes(
    block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv, block_q_dkv=block_q, block_kv_dkv=block_kv,
    block_kv_dkv_compute=block_kv, block_q_dq=block_q, block_kv_dq=block_kv,
  )  # fmt: skip
  mask = masks.CausalMask((queries, keys)) if causal else masks.FullMask((queries, keys))
  make = functools.partial(kernels.make_splash_mha, head_shards=1, q_seq_shards=1, interpret=interpret)
  return make(masks.MultiHeadMask([mask] * heads), block_sizes=blocks)
