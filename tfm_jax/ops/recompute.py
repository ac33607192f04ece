"""Cheap functions that keep only their inputs for the backward pass."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
from jax import Array


def from_inputs(function: Callable[..., Array]) -> Callable[..., Array]:
  """`function` of arrays (or None), whose backward pass computes it again from its inputs.

  For elementwise functions and norms, where that is cheaper than reading what autodiff would keep: of a GELU, four
  float32 arrays instead of its bfloat16 input.
  """
  recomputed = jax.custom_vjp(function)

  def forward(*inputs: Any) -> tuple[Array, tuple]:
    return function(*inputs), inputs

  def backward(inputs: tuple, dy: Array) -> tuple:
    return jax.vjp(function, *inputs)[1](dy)

  recomputed.defvjp(forward, backward)
  return wraps(function)(recomputed)
