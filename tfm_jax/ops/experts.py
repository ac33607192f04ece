"""Routing of tokens to experts, and their way there and back (Shazeer et al. 2017, Lepikhin et al. 2020).

Axes: B rows, T tokens of a row, E experts, K experts of a token, C places of an expert for the tokens of one row,
X = E * C places in all, D features.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.ops.linear import matmul

SHARE = "share_"  # see `share_scope`


class Choice(NamedTuple):
  """The experts of each token.

  Attributes:
    probabilities_BTE: softmax of the router's logits, float32.
    experts_BTK: the K most probable experts, int32.
    gates_BTK: the factors of their outputs, float32.
  """

  probabilities_BTE: Array
  experts_BTK: Array
  gates_BTK: Array


def share_scope(part: int, whole: int) -> str:
  """Name of a scope of whose products the share part / whole is needed. `training.compiled.flops` reads it."""
  return f"{SHARE}{part}_of_{whole}"


def choose(logits_BTE: Array, top_k: int) -> Choice:
  """The `top_k` experts of each token by the router's float32 logits.

  The gate of a single expert is its probability (Switch, Fedus et al. 2022). The gates of several sum to one: the
  softmax over their logits alone (GShard, Lepikhin et al. 2020; Mixtral, Jiang et al. 2024).
  """
  p_BTE = jax.nn.softmax(logits_BTE, axis=-1)
  gates_BTK, experts_BTK = jax.lax.top_k(p_BTE, top_k)
  if top_k > 1:
    gates_BTK = gates_BTK / gates_BTK.sum(-1, keepdims=True)
  return Choice(p_BTE, experts_BTK, gates_BTK)


def places_per_expert(factor: float, tokens: int, experts: int, top_k: int) -> int:
  """C: `factor` times an expert's share of the tokens of a row, rounded up; at most all of them."""
  return min(math.ceil(factor * tokens * top_k / experts - 1e-9), tokens)


def places(experts_BTK: Array, real_BT: Array, experts: int, capacity: int) -> Array:
  """The place of each token with each of its experts, int32 [B, T, K]: expert * C + its turn; X if it has none.

  Turns go by position in the row, so that no token takes the place of an earlier one. A token whose turn comes when all
  C places of an expert are taken is dropped there. Padding takes no places.
  """
  chosen_BTKE = (experts_BTK[..., None] == np.arange(experts)[None, None, None]) & real_BT[:, :, None, None]
  taken_BTE = chosen_BTKE.sum(2, dtype=jnp.int32)  # a token's experts differ
  before_BTE = jnp.cumsum(taken_BTE, axis=1) - taken_BTE
  turn_BTK = jnp.take_along_axis(before_BTE, experts_BTK, axis=2)
  has_place = (turn_BTK < capacity) & real_BT[:, :, None]
  return jnp.where(has_place, experts_BTK * capacity + turn_BTK, experts * capacity)


def balance_B(choice: Choice, real_BT: Array) -> Array:
  """n * E * sum over experts of f * P for each row, float32 [B] (Fedus et al. 2022, equation 4).

  n is the number of real tokens of the row, f the share of their choices that fall on an expert, P the expert's mean
  probability. E * sum(f * P) is 1 if the choices are spread evenly. f has no gradient.
  """
  E, K = choice.probabilities_BTE.shape[-1], choice.experts_BTK.shape[-1]
  real = real_BT.astype(jnp.float32)[:, :, None]
  chosen_BTE = (choice.experts_BTK[..., None] == np.arange(E)[None, None, None]).sum(2).astype(jnp.float32)
  n_B = jnp.maximum(real.sum((1, 2)), 1)
  return E / K * ((chosen_BTE * real).sum(1) * (choice.probabilities_BTE * real).sum(1)).sum(-1) / n_B


def z_B(logits_BTE: Array, real_BT: Array) -> Array:
  """Sum over the real tokens of each row of log(sum(exp(logits)))^2, float32 [B] (ST-MoE, Zoph et al. 2022)."""
  return (jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1)) * real_BT.astype(jnp.float32)).sum(1)


# The way there and back, in two forms. Products with matrices of zeros and ones: XLA partitions them well, and matrix
# units make them cheap. Copies of rows: for a CPU, where such products would take longer than the experts.


def send_by_products(x_BTD: Array, place_BTK: Array, count: int, platform: str) -> Array:
  """The token in each of X = `count` places, [B, X, D]; zeros where there is none."""
  sent_BTX = (place_BTK[..., None] == np.arange(count)[None, None, None]).any(2)
  return matmul("BTX,BTD->BXD", sent_BTX.astype(x_BTD.dtype), x_BTD, platform).astype(x_BTD.dtype)


def gather_by_products(y_BXD: Array, place_BTK: Array, gates_BTK: Array, platform: str) -> Array:
  """The sum of each token's outputs, times their gates, [B, T, D]; 0 for experts that dropped it."""
  at_BTKX = place_BTK[..., None] == np.arange(y_BXD.shape[1])[None, None, None]
  gates_BTX = jnp.where(at_BTKX, gates_BTK[..., None], 0.0).sum(2)
  return matmul("BTX,BXD->BTD", gates_BTX.astype(y_BXD.dtype), y_BXD, platform).astype(y_BXD.dtype)


def send_by_copies(x_BTD: Array, place_BTK: Array, count: int, platform: str) -> Array:
  """See `send_by_products`."""
  pairs_BP, from_BX = _both_ways(place_BTK, count)
  return _moved(jnp.repeat(x_BTD, place_BTK.shape[2], axis=1), from_BX, pairs_BP)


def gather_by_copies(y_BXD: Array, place_BTK: Array, gates_BTK: Array, platform: str) -> Array:
  """See `gather_by_products`."""
  pairs_BP, from_BX = _both_ways(place_BTK, y_BXD.shape[1])
  y_BTKD = _moved(y_BXD, pairs_BP, from_BX).reshape(*place_BTK.shape, -1)
  return (y_BTKD.astype(jnp.float32) * gates_BTK[..., None]).sum(2).astype(y_BXD.dtype)


def _both_ways(place_BTK: Array, count: int) -> tuple[Array, Array]:
  """The place of each pair of a token and an expert, [B, T * K], and the pair in each place, [B, X].

  Pairs without a place have place X, and empty places have pair T * K.
  """
  B, pairs = place_BTK.shape[0], place_BTK.shape[1] * place_BTK.shape[2]
  place_BP = place_BTK.reshape(B, pairs)
  empty = jnp.full((B, count), pairs, jnp.int32)
  return place_BP, empty.at[jnp.arange(B)[:, None], place_BP].set(jnp.arange(pairs)[None], mode="drop")


@jax.custom_vjp
def _moved(x_BND: Array, from_BM: Array, to_BN: Array) -> Array:
  """x[from] along the second axis, 0 where `from` is out of range. `to` is the inverse, by which gradients go back."""
  return jnp.take_along_axis(x_BND, from_BM[:, :, None], axis=1, mode="fill", fill_value=0)


_moved.defvjp(
  lambda x, there, back: (_moved(x, there, back), (there, back)),
  lambda saved, dy: (_moved(dy, saved[1], saved[0]), None, None),
)


PRODUCTS = (send_by_products, gather_by_products)
COPIES = (send_by_copies, gather_by_copies)
