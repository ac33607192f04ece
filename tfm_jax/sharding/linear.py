"""Linears and tables on a mesh: stored weights are gathered at use, and their gradients are scattered back."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from tfm_jax.ops import linear as ops
from tfm_jax.sharding.placement import Axes, Placement, names

Saved = tuple[Array, Array, Array | None]  # x, w as stored, b


@partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def linear(spec: str, x: Array, w: Array, b: Array | None, axes: Axes, st: Placement) -> Array:
  """`ops.linear` with a weight as it is stored: float32, with these logical axes, sharded by the strategy.

  The weight is gathered in the compute dtype for the forward pass and again for the backward pass, which keeps only the
  stored part. The gradient is constrained to the sharding of gradients, that of the stored weight but for ZeRO: the sum
  over devices is then a reduce-scatter, which XLA:TPU overlaps with the matrix product where it judges that to be
  faster.
  """
  return ops.linear(spec, x, st.weight(w, axes, x.dtype), b, st.platform)


def _backward(spec: str, axes: Axes, st: Placement, saved: Saved, dy: Array) -> tuple[Array, Array, Array | None]:
  x, w, b = saved
  dx = ops.input_gradient(spec, dy, st.weight(w, axes, x.dtype), st.platform)
  dw = st.of_gradients.constrain(ops.weight_gradient(spec, x, dy, st.platform).astype(x.dtype), axes)
  return dx, dw.astype(w.dtype), ops.bias_gradient(spec, b, dy)


linear.defvjp(lambda spec, x, w, b, axes, st: (linear(spec, x, w, b, axes, st), (x, w, b)), _backward)


def embed(table_VD: Array, ids_BT: Array, axes: Axes, st: Placement) -> Array:
  """`ops.embed` of a table with these logical axes, gathered in the compute dtype.

  On GPUs each device sums up the gradient of its rows in float32, and the sum over devices is one in the table's dtype.
  XLA:GPU then adds the gradient of a tied output layer before it reduces the two, and each device gets its part alone.
  If it partitions the scatter itself, it all-reduces the whole table twice, once in float32.
  """
  divided = not any(n % parts for n, parts in zip(ids_BT.shape, st.parts(("batch", "seq")), strict=True))
  if st.platform == "gpu" and st.mesh.size > 1 and divided:
    return _embed(table_VD, ids_BT, axes, st)
  return ops.embed(table_VD, ids_BT)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _embed(table_VD: Array, ids_BT: Array, axes: Axes, st: Placement) -> Array:
  return ops.embed(table_VD, ids_BT)


def _embed_backward(axes: Axes, st: Placement, saved: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
  like, ids_BT = saved
  rows = st.spec(("batch", "seq"))
  summed = tuple(axis for part in rows for axis in names(part))
  sharing = tuple(axis for axis in names(st.spec(axes)[0]) if axis not in summed)  # devices that share the vocabulary
  length = like.shape[0] // math.prod(st.mesh.shape[axis] for axis in sharing)

  def own(ids: Array, dy: Array) -> Array:
    if sharing:
      ids = ids - jax.lax.axis_index(sharing) * length
      ids = jnp.where(ids < 0, length, ids)  # another device's, which is dropped
    zeros = jnp.zeros((length, dy.shape[2]), jnp.float32)
    dw = zeros.at[ids].add(dy.astype(jnp.float32), mode="drop").astype(like.dtype)
    return jax.lax.psum(dw, summed) if summed else dw

  specs = (rows, PartitionSpec(*rows, None))
  out = PartitionSpec(sharing, None)
  return jax.shard_map(own, mesh=st.mesh, in_specs=specs, out_specs=out, check_vma=False)(ids_BT, dy), None


_embed.defvjp(lambda table, ids, axes, st: (ops.embed(table, ids), (table, ids)), _embed_backward)
