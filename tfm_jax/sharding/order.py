"""The order of the parts of a sequence that is cut over devices, and what reads or moves single places of it."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.sharding.placement import Axes, Placement

NATURAL = "natural"  # device i of c has the i-th of c parts
# Device i has the i-th of 2c parts and the i-th from the end: each then has as many queries and keys that a causal mask
# leaves (Zhu's zigzag ring attention, Llama 3's context parallelism).
ZIGZAG = "zigzag"


def context_size(st: Placement) -> int:
  """c: number of parts into which sequences are cut."""
  return math.prod(st.mesh.shape[axis] for axis in st.strategy.mesh_axes("seq"))


def places(order: str, devices: int, device: Array, length: int, start: Array | int) -> Array:
  """The place in the sequence of what stands at `start` in the part of `length` that a device has."""
  if order == NATURAL:
    return device * length + start
  half = length // 2
  return jnp.where(start < half, device * half + start, (2 * devices - 1 - device) * half + start - half)


def zigzag(st: Placement, x: Array, axes: Axes, back: bool = False) -> Array:
  """x, whose axis "seq" is in natural order, in the order `ZIGZAG`; or `back`. Each device sends two half parts."""
  axis, c = axes.index("seq"), context_size(st)
  mesh_axes = st.strategy.mesh_axes("seq")
  targets = [[(d, min(j, 2 * c - 1 - j)) for d, j in enumerate(range(odd, 2 * c, 2))] for odd in (0, 1)]

  def move(x: Array) -> Array:
    first, second = jnp.split(x, 2, axis)
    # Of a device's two parts in zigzag order, one has an even number: the first, if that of the device is even.
    even = jax.lax.axis_index(mesh_axes) % 2 == 0
    pair = lambda a, b: (jnp.where(even, a, b), jnp.where(even, b, a))
    if back:
      first, second = pair(first, second)
      moves = [[(b, a) for a, b in each] for each in targets]
      return jnp.concatenate(
        [jax.lax.ppermute(h, mesh_axes, m) for h, m in zip((first, second), moves, strict=True)], axis
      )
    first, second = (jax.lax.ppermute(h, mesh_axes, m) for h, m in zip((first, second), targets, strict=True))
    return jnp.concatenate(pair(first, second), axis)

  spec = st.spec(axes)
  return jax.shard_map(move, mesh=st.mesh, in_specs=spec, out_specs=spec, check_vma=False)(x)


def zigzag_places(c: int, length: int) -> Array:
  """The natural place of each token of a row in the order `ZIGZAG`, [T] uint32."""
  parts = jnp.arange(length, dtype=jnp.uint32).reshape(2 * c, -1)
  order = [j for i in range(c) for j in (i, 2 * c - 1 - i)]
  return parts[jnp.asarray(order)].reshape(-1)


def pick(st: Placement, h_BTD: Array, positions_BP: Array) -> Array:
  """h at the given positions of each row, [B, P, D]: where devices divide P, each has a part of these too.

  Each device picks those that it has, and the sum over devices is scattered. XLA would gather all of h.
  """
  take = lambda h, at: jnp.take_along_axis(h, at[:, :, None], axis=1, mode="promise_in_bounds")
  rows, c = st.parts(("batch", "seq"))
  if c == 1 or h_BTD.shape[0] % rows or h_BTD.shape[1] % c:
    return take(h_BTD, positions_BP)
  axes, scattered = st.strategy.mesh_axes("seq"), positions_BP.shape[1] % c == 0

  def own(h: Array, at: Array) -> Array:
    at = at - jax.lax.axis_index(axes) * h.shape[1]
    mine = (at >= 0) & (at < h.shape[1])
    y = jnp.where(mine[:, :, None], take(h, jnp.where(mine, at, 0)), 0)
    if scattered:
      return jax.lax.psum_scatter(y, axes, scatter_dimension=1, tiled=True)
    return jax.lax.psum(y, axes)

  batch, features = st.spec(("batch", "act_embed"))
  P = jax.sharding.PartitionSpec
  inputs = (P(batch, axes, features), P(batch))
  output = P(batch, axes if scattered else None, features)
  return jax.shard_map(own, mesh=st.mesh, in_specs=inputs, out_specs=output, check_vma=False)(h_BTD, positions_BP)
