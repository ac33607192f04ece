"""The linear on a mesh: stored weights are gathered at use, and their gradients are scattered back."""

from functools import partial

import jax
from jax import Array

from tfm_jax.ops import linear as ops
from tfm_jax.sharding.placement import Axes, Placement

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
