"""Recurrent layers: the gates of an LSTM and of a GRU, and the scan over time.

Axes: T time steps, B batch, G gates, F cells (and K, the same cells as outputs of a product).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.ops.linear import einsum, input_gradient, weight_gradient

State = tuple[Array, ...]  # float32 [B, F] each; the first is h, the layer's output


class Cell(NamedTuple):
  """One kind of recurrent layer.

  Attributes:
    gates: number of gates; each is a linear of the input and of h.
    vectors: number of vectors of the state.
    step: (products [B, G, F], state) -> the next state, all float32.
    separate: whether the products are two, of the input and of h, each with a bias; otherwise they are one, their sum.
    forget: the gate whose bias starts at 1, so that a fresh layer remembers (Jozefowicz et al. 2015); None: there is
      none.
  """

  gates: int
  vectors: int
  step: Callable[[tuple[Array, ...], State], State]
  separate: bool = False
  forget: int | None = None


def _lstm(products: tuple[Array, ...], state: State) -> State:
  """Gates: input, forget, candidate, output."""
  i, f, g, o = products[0].swapaxes(0, 1)
  c_BF = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
  return jax.nn.sigmoid(o) * jnp.tanh(c_BF), c_BF


def _gru(products: tuple[Array, ...], state: State) -> State:
  """Gates: reset, update, candidate; the reset gate is applied to the candidate's product of h."""
  (ri, zi, ni), (rh, zh, nh) = (product_BGF.swapaxes(0, 1) for product_BGF in products)
  z_BF = jax.nn.sigmoid(zi + zh)
  return ((1 - z_BF) * jnp.tanh(ni + jax.nn.sigmoid(ri + rh) * nh) + z_BF * state[0],)


LSTM = Cell(gates=4, vectors=2, step=_lstm, forget=1)
"""Hochreiter & Schmidhuber 1997, with forget gates (Gers et al. 2000)."""

GRU = Cell(gates=3, vectors=1, step=_gru, separate=True)
"""Cho et al. 2014, in the form of cuDNN: one product of h for all gates."""


class Steps(NamedTuple):
  """Which time steps begin a document, and which are tokens at all; bool [T, B] each.

  At the first the state is zero; at padding it stays what it was.
  """

  begins: Array
  real: Array


def steps_of(segments_BT: Array, before_B: Array | None = None) -> tuple[Steps, Array]:
  """The steps of rows of documents, and the segment of the last token of each row, [B].

  A token begins a document if the last token before it has another segment; padding between them does not count.

  Args:
    segments_BT: number of each token's document; 0: padding.
    before_B: the segment of the token before the first; None: there is none.
  """
  before_B = jnp.zeros(len(segments_BT), segments_BT.dtype) if before_B is None else before_B
  whole = jnp.concatenate([before_B[:, None], segments_BT], axis=1)
  places = jax.lax.cummax(jnp.where(whole > 0, jnp.arange(whole.shape[1], dtype=jnp.int32)[None], 0), axis=1)
  last = jnp.take_along_axis(whole, places, axis=1)  # the segment of the last token up to here
  real = segments_BT > 0
  return Steps((real & (segments_BT != last[:, :-1])).T, real.T), last[:, -1]


def _where(condition_B: Array, new: Any, old: Any) -> Any:
  """Elementwise over states whose first axis is B."""
  return jax.tree.map(lambda x, y: jnp.where(condition_B[:, None], x, y), new, old)


def _next(cell: Cell, real_B: Array | None, products: tuple[Array, ...], state: State) -> State:
  """The state after one time step."""
  new = cell.step(tuple(product_BGF.astype(jnp.float32) for product_BGF in products), state)
  return new if real_B is None else _where(real_B, new, state)


class Saved(NamedTuple):
  """What the backward pass reads beside the weights.

  Attributes:
    products: of all steps [T, B, G, F], in the compute dtype: see `Cell.step`.
    before: the state before each step.
    b_GK, steps: arguments of `forward`.
  """

  products: tuple[Array, ...]
  before: State
  b_GK: Array | None
  steps: Steps | None


_HIDDEN = "BF,FGK->BGK"


def forward(
  cell: Cell,
  platform: str,
  inputs_TBGF: Array,
  w_FGK: Array,
  b_GK: Array | None,
  state: State,
  steps: Steps | None,
) -> tuple[tuple[Array, State], Saved]:
  """A recurrent layer over time: h after each step [T, B, F], in the dtype of the inputs, and the last state.

  Only the product with h is inside the scan.

  Args:
    cell: LSTM or GRU.
    platform: see `ops.linear.linear`.
    inputs_TBGF: the products of the inputs with their weights, with bias, in the compute dtype.
    w_FGK: the weights of h, in the compute dtype.
    b_GK: the bias of the product with h, float32, or None.
    state: the state before the first step.
    steps: where documents begin, and padding; None: one document without padding, which continues the state.
  """
  dtype = inputs_TBGF.dtype

  def step(state: State, of_step: tuple[Array, Steps | None]) -> tuple[State, tuple]:
    input_BGF, marks = of_step
    if marks is not None:
      state = _where(marks.begins, jax.tree.map(jnp.zeros_like, state), state)
    hidden_BGF = einsum(_HIDDEN, state[0].astype(dtype), w_FGK, platform)
    if b_GK is not None:
      hidden_BGF = hidden_BGF + b_GK[None]
    if cell.separate:
      products: tuple[Array, ...] = input_BGF, hidden_BGF.astype(dtype)
    else:
      products = ((input_BGF.astype(jnp.float32) + hidden_BGF.astype(jnp.float32)).astype(dtype),)
    new = _next(cell, marks and marks.real, products, state)
    return new, (new[0].astype(dtype), products, state)

  last, (h_TBF, products, before) = jax.lax.scan(step, state, (inputs_TBGF, steps))
  return (h_TBF, last), Saved(products, before, b_GK, steps)


def backward(cell: Cell, platform: str, saved: Saved, w_FGK: Array, gradients: tuple[Array, State]) -> tuple:
  """The gradients of the arguments of `forward` from `inputs_TBGF` on, those of arrays in the compute dtype in it.

  That of `w_FGK` is one product over all time steps after the scan, instead of a sum that each step reads and writes.
  """
  dh_TBF, dlast = gradients
  dtype = w_FGK.dtype

  def step(dstate: State, of_step: tuple) -> tuple[State, tuple]:
    products, state, dh_BF, marks = of_step
    dstate = (dstate[0] + dh_BF.astype(jnp.float32), *dstate[1:])
    dproducts, dbefore = jax.vjp(partial(_next, cell, marks and marks.real), products, state)[1](dstate)
    through_w = input_gradient(_HIDDEN, dproducts[-1], w_FGK, platform).astype(jnp.float32)
    dbefore = (dbefore[0] + through_w, *dbefore[1:])
    if marks is not None:
      dbefore = _where(marks.begins, jax.tree.map(jnp.zeros_like, dbefore), dbefore)
    return dbefore, dproducts

  of_steps = (saved.products, saved.before, dh_TBF, saved.steps)
  dstate, dproducts = jax.lax.scan(step, dlast, of_steps, reverse=True)
  dhidden_TBGF = dproducts[-1]
  dw = weight_gradient("TBF,FGK->TBGK", saved.before[0].astype(dtype), dhidden_TBGF, platform).astype(dtype)
  db = None if saved.b_GK is None else dhidden_TBGF.astype(jnp.float32).sum((0, 1))
  return dproducts[0], dw, db, dstate, None
