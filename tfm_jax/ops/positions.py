"""Positions: sinusoids, rotations, T5's relative buckets."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


def sinusoids(positions_BT: Array, dim: int) -> Array:
  """[B, T, dim] float32: sines in the first half of the features, cosines in the second (Vaswani et al. 2017).

  Tensor2tensor's order; the paper interleaves the two, which is the same up to a permutation of features.
  """
  rates = np.exp(-np.log(10_000.0) * np.arange(dim // 2) / max(dim // 2 - 1, 1)).astype(np.float32)
  angles = positions_BT.astype(jnp.float32)[:, :, None] * rates[None, None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles), jnp.zeros((*positions_BT.shape, dim % 2))], axis=-1)


def rotary_rates(
  features: int, base: float, factor: float = 1.0, original: int = 0, low: float = 1.0, high: float = 4.0
) -> np.ndarray:
  """Radians per position of each pair of features, [features / 2] float32 (Su et al. 2021).

  Args:
    features: width of an attention head, even.
    base: the rates fall from 1 to about 1 / base.
    factor: the rates are divided by it (linear position interpolation, Chen et al. 2023).
    original, low, high: if `original` is not 0, only wavelengths above original / low are stretched by the factor,
      those below original / high stay, and those between are interpolated (Llama 3.1, Grattafiori et al. 2024).
  """
  half = features // 2
  rates = np.float32(base) ** (-np.arange(half, dtype=np.float32) / half)
  if original:
    waves = original * rates / (2 * np.pi)  # number of waves in the original length
    kept = np.clip((waves - low) / (high - low), 0, 1)
    return (rates * (kept + (1 - kept) / factor)).astype(np.float32)
  return (rates / np.float32(factor)).astype(np.float32)


def rotate(x_BTHK: Array, positions_BT: Array, rates: Array | np.ndarray) -> Array:
  """x with rotary positions (Su et al. 2021) on the feature pairs (i, i + K/2). Angles are float32."""
  half = x_BTHK.shape[-1] // 2
  angles = positions_BT.astype(jnp.float32)[:, :, None, None] * rates[None, None, None, :]
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  x = x_BTHK.astype(jnp.float32)
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BTHK.dtype)


def relative_buckets(distances: np.ndarray, bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
  """T5's bucket of each distance (key position - query position), int32 of the same shape (Raffel et al. 2020).

  Half of the buckets (of each sign, if bidirectional) are exact, the others grow logarithmically to `max_distance`.
  """
  n = -np.asarray(distances)
  base = np.zeros_like(n)
  if bidirectional:
    buckets //= 2
    base = (n < 0) * buckets
    n = np.abs(n)
  else:
    n = np.maximum(n, 0)
  exact = buckets // 2
  with np.errstate(divide="ignore"):
    large = np.log(np.maximum(n, 1).astype(np.float32) / exact) / math.log(max_distance / exact) * (buckets - exact)
  large = np.minimum(exact + large.astype(np.int32), buckets - 1)
  return (base + np.where(n < exact, n, large)).astype(np.int32)


def by_distance(vector_HL: Array, queries: int, keys: int) -> Array:
  """The bias [H, T, S] that depends on the distance s - t alone, from that of each distance.

  The vector is tiled and read back in rows that are one shorter, which shifts each row by one. Its gradient is a sum,
  not a scatter.

  Args:
    vector_HL: of the distances 1 - T, 2 - T, ..., S; L = T + S, and the last is not used.
    queries, keys: T and S.
  """
  length = queries + keys
  tiled = jnp.tile(vector_HL, (1, queries))[:, : queries * (length - 1)]
  return tiled.reshape(-1, queries, length - 1)[:, :, queries - 1 :]


def relative_bias(
  table: Array, queries: int, keys: int, bidirectional: bool, max_distance: int = 128, offset: int | Array = 0
) -> Array:
  """T5's bias of each distance, float32 [H, T + S] as `by_distance` reads it, from its table [buckets, H].

  Each distance is looked up once.

  Args:
    table: one row per bucket.
    queries, keys: T and S.
    bidirectional, max_distance: see `relative_buckets`.
    offset: place of the first key minus that of the first query; may be traced.
  """
  distances = np.arange(queries + keys) - (queries - 1)
  eye = np.eye(table.shape[0], dtype=np.float32)
  rows = lambda distances: eye[relative_buckets(distances, bidirectional, table.shape[0], max_distance)]
  if isinstance(offset, int):
    one_hot: Any = rows(distances + offset)
  else:  # traced: looked up in a table, as all distances beyond the largest share a bucket
    most = max(max_distance, table.shape[0])
    one_hot = jnp.asarray(rows(np.arange(-most, most + 1)))[jnp.clip(distances + offset, -most, most) + most]
  return jnp.einsum("LC,CH->HL", one_hot, table.astype(jnp.float32), precision="highest")


def alibi_slopes(heads: int) -> np.ndarray:
  """ALiBi's slope of each attention head, [H] float32 (Press et al. 2022): 2^(-8 / H), its square, its cube, ...

  If H is no power of two, the slopes are those of the largest power of two below it, and then every other one of twice
  as many heads, as in the authors' code.
  """
  power = 1 << (heads.bit_length() - 1)
  of = lambda n: 2.0 ** (-8 / n * np.arange(1, n + 1))
  return np.concatenate([of(power), of(2 * power)[::2][: heads - power]]).astype(np.float32)


def alibi_bias(heads: int, queries_T: Array, keys_S: Array) -> Array:
  """ALiBi's bias of the logits [H, T, S] float32: minus the slope of the head times the distance, on either side.

  Args:
    heads: H.
    queries_T, keys_S: places of queries and keys.
  """
  distances_TS = jnp.abs(queries_T[:, None] - keys_S[None]).astype(jnp.float32)
  return distances_TS[None] * -alibi_slopes(heads)[:, None, None]
