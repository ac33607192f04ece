"""A recurrent layer on a mesh: the stored weights of h are gathered at use, and their gradient is scattered back."""

from functools import partial

import jax
from jax import Array

from tfm_jax.ops import recurrent as ops
from tfm_jax.ops.recurrent import Cell, Saved, State, Steps
from tfm_jax.sharding.placement import Axes, Placement


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def recur(
  cell: Cell,
  axes: Axes,
  st: Placement,
  inputs_TBGF: Array,
  w_FGK: Array,
  b_GK: Array | None,
  state: State,
  steps: Steps | None = None,
) -> tuple[Array, State]:
  """The output of `ops.recurrent.forward`, with a weight as it is stored: see `sharding.linear`. `axes`: its own."""
  return _forward(cell, axes, st, inputs_TBGF, w_FGK, b_GK, state, steps)[0]


def _forward(
  cell: Cell,
  axes: Axes,
  st: Placement,
  inputs_TBGF: Array,
  w_FGK: Array,
  b_GK: Array | None,
  state: State,
  steps: Steps | None,
) -> tuple[tuple[Array, State], tuple[Saved, Array]]:
  w = st.weight(w_FGK, axes, inputs_TBGF.dtype)
  out, saved = ops.forward(cell, st.platform, inputs_TBGF, w, b_GK, state, steps)
  return out, (saved, w_FGK)


def _backward(
  cell: Cell, axes: Axes, st: Placement, kept: tuple[Saved, Array], gradients: tuple[Array, State]
) -> tuple:
  saved, w_FGK = kept
  w = st.weight(w_FGK, axes, saved.products[0].dtype)
  dinputs, dw, *others = ops.backward(cell, st.platform, saved, w, gradients)
  return dinputs, st.constrain(dw, axes).astype(w_FGK.dtype), *others


recur.defvjp(_forward, _backward)
