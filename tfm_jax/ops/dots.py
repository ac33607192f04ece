"""Dots as they are written, and their forms for XLA:CPU.

XLA:CPU keeps the order of the operands and the layouts that a program asks for; other compilers choose their own.
With bfloat16 operands XLA:CPU uses the matrix unit (AMX) only if the result is float32, and for a weight gradient only
if the transposed operand is stored that way, which is two to six times faster. Processors without such a unit lose
nothing by these forms.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint


def dot(spec: str, a: Array, b: Array) -> Array:
  """`einsum(spec, a, b)` in float32, with a as the first operand.

  `jnp.einsum` may put a weight first. On CPU the activations are then computed with their features outermost, and each
  later pass over them reads across memory.
  """
  a_axes, b_axes, y_axes = spec.replace("->", ",").split(",")
  shared = [axis for axis in a_axes if axis in b_axes and axis in y_axes]
  summed = [axis for axis in a_axes if axis in b_axes and axis not in y_axes]
  places = lambda names, axes: tuple(axes.index(name) for name in names)
  y = jax.lax.dot_general(
    a,
    b,
    ((places(summed, a_axes), places(summed, b_axes)), (places(shared, a_axes), places(shared, b_axes))),
    precision="highest" if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
  axes = [*shared, *(axis for axes in (a_axes, b_axes) for axis in axes if axis not in shared and axis not in summed)]
  return y.transpose(places(y_axes, axes))


def cpu_linear(spec: str, x: Array, w: Array) -> Array:
  """The linear `einsum(spec, x, w)`, float32.

  XLA:CPU has no bfloat16 dot of a single row: it would write all weights in float32 first, at each step of generation
  anew. Four equal rows go to the kernel that reads them as they are, in half the time.
  """
  x_axes, w_axes, y_axes = spec.replace("->", ",").split(",")
  rows = [i for i, axis in enumerate(x_axes) if axis not in w_axes]
  if x.dtype == jnp.float32 or not rows or math.prod(x.shape[i] for i in rows) != 1:
    return dot(spec, x, w)
  return jax.lax.slice_in_dim(dot(spec, jnp.repeat(x, 4, axis=rows[0]), w), 0, 1, axis=y_axes.index(x_axes[rows[0]]))


def _stored(x: Array, order: tuple[int, ...]) -> Array:
  """x with its axes in this order, and stored in memory in this order."""
  return with_layout_constraint(x.transpose(order), Layout(tuple(range(x.ndim))))


def cpu_weight_gradient(spec: str, x: Array, dy: Array) -> Array:
  """dW of the linear y = einsum(spec, x, w), float32. The operand with the first axis of W is transposed in memory."""
  x_axes, w_axes, y_axes = spec.replace("->", ",").split(",")
  a_axes, a, b_axes, b = (x_axes, x, y_axes, dy) if w_axes[0] in x_axes else (y_axes, dy, x_axes, x)
  kept = [axis for axis in w_axes if axis in a_axes]
  order = [a_axes.index(axis) for axis in kept + [axis for axis in a_axes if axis not in kept]]
  return dot(f"{''.join(a_axes[i] for i in order)},{b_axes}->{w_axes}", _stored(a, tuple(order)), b)


def cpu_matmul(spec: str, a: Array, b: Array) -> Array:
  """A dot of two activations with batch axes, float32.

  XLA:CPU has no bfloat16 dot whose first operand is not contracted along its last axis: the smaller operand is
  transposed in memory. Nor may XLA exchange the operands to save a transposition of the result.
  """
  a_axes, b_axes, y_axes = spec.replace("->", ",").split(",")
  summed = next(axis for axis in a_axes if axis not in y_axes)
  if a.dtype != jnp.float32:
    if b_axes[-1] == summed != a_axes[-1] or (summed not in (a_axes[-1], b_axes[-1]) and b.size < a.size):
      a_axes, b_axes, a, b = b_axes, a_axes, b, a
    if a_axes[-1] != summed:
      shared = [axis for axis in a_axes if axis in b_axes and axis != summed]
      order = [*shared, *(axis for axis in a_axes if axis not in shared and axis != summed), summed]
      a = _stored(a, tuple(a_axes.index(axis) for axis in order))
      a_axes = "".join(order)
    free = lambda axes, others: "".join(axis for axis in axes if axis in y_axes and axis not in others)
    both = "".join(axis for axis in a_axes if axis in b_axes and axis in y_axes)
    if y_axes == both + free(b_axes, a_axes) + free(a_axes, b_axes):
      y = both + free(a_axes, b_axes) + free(b_axes, a_axes)
      kept = jax.lax.optimization_barrier(dot(f"{a_axes},{b_axes}->{y}", a, b))
      return kept.transpose([y.index(axis) for axis in y_axes])
  return dot(f"{a_axes},{b_axes}->{y_axes}", a, b)
