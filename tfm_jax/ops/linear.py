"""The linear of every dense layer: operands in the compute dtype, float32 accumulation in all three of its dots."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.ops.dots import cpu_linear, cpu_matmul, cpu_weight_gradient, dot

Saved = tuple[Array, Array, Array | None]  # x, w, b


@partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def linear(spec: str, x: Array, w: Array, b: Array | None, platform: str) -> Array:
  """`einsum(spec, x, w) + b` in x's dtype, with products summed in float32, forward and backward.

  Args:
    spec: two operands, e.g. `"BTD,DHK->BTHK"`. Each axis of an operand occurs in the output or the other operand.
    x: activations in the compute dtype.
    w: weights in the compute dtype. Several with the same x are stacked (as `DCHK`) to share one dX.
    b: bias in float32, of the shape of w's output axes, or None.
    platform: "cpu", "gpu" or "tpu". With bfloat16 operands, XLA:CPU uses the matrix unit (AMX) only if the output of
      the dot is float32, and for dW only if the transposed operand is stored that way. Other hardware accumulates in
      float32 anyway; there an output in the compute dtype halves the bytes that tensor parallelism all-reduces.

  Returns:
    The output in x's dtype.
  """
  y = einsum(spec, x, w, platform)
  if b is not None:
    y = y + b.reshape([n if i in _bias_axes(spec) else 1 for i, n in enumerate(y.shape)])
  return y.astype(x.dtype)


def _bias_axes(spec: str) -> tuple[int, ...]:
  """The output axes that come from w, in the order of w."""
  x_axes, w_axes, y_axes = spec.replace("->", ",").split(",")
  return tuple(i for i, axis in enumerate(y_axes) if axis in w_axes and axis not in x_axes)


def einsum(spec: str, x: Array, w: Array, platform: str, wide: bool = False) -> Array:
  """The dot. Its result is float32 on CPU, for float32 operands, or if `wide`; otherwise in the compute dtype."""
  if platform == "cpu":
    return cpu_linear(spec, x, w)
  if x.dtype == jnp.float32:
    return jnp.einsum(spec, x, w, precision="highest")
  return jnp.einsum(spec, x, w, preferred_element_type=jnp.float32 if wide else x.dtype)


def _forward(spec: str, x: Array, w: Array, b: Array | None, platform: str) -> tuple[Array, Saved]:
  return linear(spec, x, w, b, platform), (x, w, b)


def _backward(spec: str, platform: str, saved: Saved, dy: Array) -> tuple[Array, Array, Array | None]:
  x, w, b = saved
  dw = weight_gradient(spec, x, dy, platform).astype(w.dtype)
  return input_gradient(spec, dy, w, platform), dw, bias_gradient(spec, b, dy)


linear.defvjp(_forward, _backward)


def input_gradient(spec: str, dy: Array, w: Array, platform: str) -> Array:
  """dX of `linear`, in the compute dtype."""
  x_axes, w_axes, y_axes = spec.replace("->", ",").split(",")
  return einsum(f"{y_axes},{w_axes}->{x_axes}", dy, w, platform).astype(dy.dtype)


def bias_gradient(spec: str, b: Array | None, dy: Array) -> Array | None:
  """db of `linear`, float32."""
  summed = tuple(i for i in range(dy.ndim) if i not in _bias_axes(spec))
  return None if b is None else dy.astype(jnp.float32).sum(summed)


def weight_gradient(spec: str, x: Array, dy: Array, platform: str) -> Array:
  """dW of `linear`, in the dtype of `einsum`'s result."""
  x_axes, w_axes, y_axes = spec.replace("->", ",").split(",")
  if platform == "cpu":
    if x.dtype != jnp.float32:
      return cpu_weight_gradient(spec, x, dy)
    # XLA:CPU transposes an operand; without a barrier it computes that operand, an activation say, in transposed order.
    x, dy = jax.lax.optimization_barrier((x, dy))
  return einsum(f"{x_axes},{y_axes}->{w_axes}", x, dy, platform)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def matmul(spec: str, a: Array, b: Array, platform: str) -> Array:
  """A float32 dot of two activations with batch axes (attention). Its gradients are computed like those of `linear`."""
  return _batched(spec, a, b, platform)


def _batched(spec: str, a: Array, b: Array, platform: str) -> Array:
  """The dot, float32."""
  return (cpu_matmul if platform == "cpu" else dot)(spec, a, b)


def _matmul_backward(spec: str, platform: str, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
  a, b = saved
  a_axes, b_axes, y_axes = spec.replace("->", ",").split(",")
  dy = dy.astype(a.dtype)
  da = _batched(f"{y_axes},{b_axes}->{a_axes}", dy, b, platform).astype(a.dtype)
  db = _batched(f"{y_axes},{a_axes}->{b_axes}", dy, a, platform).astype(b.dtype)
  return da, db


matmul.defvjp(lambda spec, a, b, platform: (matmul(spec, a, b, platform), (a, b)), _matmul_backward)


@jax.custom_vjp
def embed(table_VD: Array, ids: Array) -> Array:
  """Rows of `table_VD` [V, D] by `ids` [...]: [..., D]. The gradient is summed in float32, whatever the table's dtype.

  Ids must lie in [0, V); they are checked where batches are created.
  """
  return table_VD.at[ids].get(mode="promise_in_bounds")


def _embed_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
  table, ids = saved
  zeros = jnp.zeros(table.shape, jnp.float32)
  return zeros.at[ids].add(dy.astype(jnp.float32), mode="promise_in_bounds").astype(table.dtype), None


embed.defvjp(lambda table, ids: (embed(table, ids), (table, ids)), _embed_backward)
