"""One linear for every dense layer: compute-dtype operands, float32 accumulation in all three of its dots."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

Saved = tuple[Array, Array, Array | None]  # x, w, b


@partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def linear(spec: str, x: Array, w: Array, b: Array | None, platform: str) -> Array:
  """`einsum(spec, x, w) + b` in x's dtype, with products summed in float32, forward and backward.

  Args:
    spec: two operands, e.g. `"BTD,DHK->BTHK"`. A letter of an operand must stand in the output or the other operand.
    x: activations in the compute dtype.
    w: weights in the compute dtype; several that share x are stacked (as `DCHK`), so that they share one dX.
    b: bias in float32, of the shape of w's output axes, or None.
    platform: "cpu", "gpu" or "tpu". XLA:CPU reaches the matrix unit (AMX) with bfloat16 operands only if the dot's
      output is float32, and in the form of dW only if the transposed operand is laid out for it. Elsewhere the
      hardware sums in float32 anyway, and an output in the compute dtype halves the bytes of what tensor
      parallelism has to all-reduce.

  Returns:
    The output in x's dtype.
  """
  y = einsum(spec, x, w, platform)
  if b is not None:
    y = y + b.reshape([n if i in _bias_axes(spec) else 1 for i, n in enumerate(y.shape)])
  return y.astype(x.dtype)


def _bias_axes(spec: str) -> tuple[int, ...]:
  """The axes of the output that w brings, in the order that they have in w too."""
  x_axes, w_axes, y_axes = spec.replace("->", ",").split(",")
  return tuple(i for i, axis in enumerate(y_axes) if axis in w_axes and axis not in x_axes)


def einsum(spec: str, x: Array, w: Array, platform: str, wide: bool = False) -> Array:
  """The dot itself. Its result is float32 on CPU, for float32 operands and if `wide`, else in the compute dtype."""
  if x.dtype == jnp.float32:
    return jnp.einsum(spec, x, w, precision="highest")
  return jnp.einsum(spec, x, w, preferred_element_type=jnp.float32 if wide or platform == "cpu" else x.dtype)


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
  """dW of `linear`, as `einsum` gives it.

  On CPU the operand that holds W's first axis is transposed in memory first: two to six times faster.
  """
  x_axes, w_axes, y_axes = spec.replace("->", ",").split(",")
  if platform != "cpu" or x.dtype == jnp.float32:
    return einsum(f"{x_axes},{y_axes}->{w_axes}", x, dy, platform)
  first, a_axes, a, b_axes, b = (
    (w_axes[0], x_axes, x, y_axes, dy) if w_axes[0] in x_axes else (w_axes[0], y_axes, dy, x_axes, x)
  )
  kept = [axis for axis in w_axes if axis in a_axes]
  assert kept[0] == first
  order = [a_axes.index(axis) for axis in kept + [axis for axis in a_axes if axis not in kept]]
  a = with_layout_constraint(a.transpose(order), Layout(tuple(range(a.ndim))))
  return einsum(f"{''.join(a_axes[i] for i in order)},{b_axes}->{w_axes}", a, b, platform)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def matmul(spec: str, a: Array, b: Array, platform: str) -> Array:
  """A dot of two activations with batch axes (attention), in float32; backward like `linear`."""
  return _batched(spec, a, b, platform)


def _batched(spec: str, a: Array, b: Array, platform: str) -> Array:
  """The dot, float32. XLA:CPU has no bfloat16 dot whose first operand is not contracted along its last axis: it is
  transposed in memory, the smaller of the two."""
  a_axes, b_axes, y_axes = spec.replace("->", ",").split(",")
  summed = next(axis for axis in a_axes if axis not in y_axes)
  shared = [axis for axis in a_axes if axis in b_axes and axis != summed]
  if platform == "cpu" and a.dtype != jnp.float32:
    if b_axes[-1] == summed != a_axes[-1] or (summed not in (a_axes[-1], b_axes[-1]) and b.size < a.size):
      a_axes, b_axes, a, b = b_axes, a_axes, b, a
    if a_axes[-1] != summed:
      order = "".join([*shared, *(axis for axis in a_axes if axis not in shared and axis != summed), summed])
      a = with_layout_constraint(jnp.einsum(f"{a_axes}->{order}", a), Layout(tuple(range(a.ndim))))
      a_axes = order
  # Not einsum, which would choose the order of the operands itself.
  batch_a, batch_b = (tuple(axes.index(axis) for axis in shared) for axes in (a_axes, b_axes))
  y = jax.lax.dot_general(
    a,
    b,
    (((a_axes.index(summed),), (b_axes.index(summed),)), (batch_a, batch_b)),
    precision="highest" if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
  free = [axis for axes in (a_axes, b_axes) for axis in axes if axis not in shared and axis != summed]
  return jnp.einsum(f"{''.join([*shared, *free])}->{y_axes}", y)


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

  Ids must lie in [0, V): they are checked where data is made.
  """
  return table_VD.at[ids].get(mode="promise_in_bounds")


def _embed_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
  table, ids = saved
  zeros = jnp.zeros(table.shape, jnp.float32)
  return zeros.at[ids].add(dy.astype(jnp.float32), mode="promise_in_bounds").astype(table.dtype), None


embed.defvjp(lambda table, ids: (embed(table, ids), (table, ids)), _embed_backward)
