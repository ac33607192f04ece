"""Activations, computed in float32 and returned in the input's dtype."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.ops.recompute import from_inputs

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
  "gelu": partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "tanh": jnp.tanh,
}


def _plain(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
  return from_inputs(lambda x: function(x.astype(jnp.float32)).astype(x.dtype))


def _gated(function: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
  return from_inputs(lambda x, gate: (function(x.astype(jnp.float32)) * gate.astype(jnp.float32)).astype(x.dtype))


# name -> x -> act(x)
ACTIVATIONS = {name: _plain(function) for name, function in FUNCTIONS.items()}
# name -> (x, gate) -> act(x) * gate (Shazeer 2020)
GATED = {name: _gated(function) for name, function in FUNCTIONS.items()}
