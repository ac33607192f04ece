"""Activations, computed in float32 and returned in the dtype of the input."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.ops.recompute import from_inputs


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """x times the standard normal distribution function at x (Hendrycks and Gimpel 2016), float32.

  By erf, as the reference implementations have it: the erfc of `jax.nn.gelu` takes XLA:CPU several passes. So does a
  backward pass that autodiff derives.
  """
  return x * _normal_cdf(x)


def _normal_cdf(x: Array) -> Array:
  return 0.5 * (1 + jax.lax.erf(x * np.float32(0.5**0.5)))


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
  return (dy * (_normal_cdf(x) + x * jnp.exp(-0.5 * x * x) * np.float32((2 * np.pi) ** -0.5)),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
  "gelu": gelu,
  "gelu_tanh": partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "tanh": jnp.tanh,
}


# Those that are several operations, of which XLA would keep each. The others need one array for the backward pass.
_COMPOSED = ("gelu", "gelu_tanh", "silu")


def _plain(name: str) -> Callable[[Array], Array]:
  function = FUNCTIONS[name]
  return from_inputs(lambda x: function(x.astype(jnp.float32)).astype(x.dtype), barrier=name in _COMPOSED)


def _gated(name: str) -> Callable[[Array, Array], Array]:
  function = FUNCTIONS[name]
  gated = lambda x, gate: (function(x.astype(jnp.float32)) * gate.astype(jnp.float32)).astype(x.dtype)
  return from_inputs(gated, barrier=name in _COMPOSED)


# name -> x -> act(x)
ACTIVATIONS = {name: _plain(name) for name in FUNCTIONS}
# name -> (x, gate) -> act(x) * gate (Shazeer 2020)
GATED = {name: _gated(name) for name in FUNCTIONS}
