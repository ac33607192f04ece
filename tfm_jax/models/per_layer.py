"""Stacked weights as an array per layer, for steps of few tokens on a CPU.

Such a step reads every weight for a few products. A scan would first copy each layer out of the stack, and XLA:CPU
reads a weight twice as fast if what is summed over is stored together: figures are in benchmarks/README.md.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import param_axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerLayer:
  """A weight [N, inputs ..., outputs ...] as N matrices [outputs, inputs].

  Attributes:
    layers: the matrices.
    shape: of the weight of one layer.
  """

  layers: tuple[Array, ...]
  shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

  def whole(self) -> Array:
    """The weight as it was. Within a program XLA takes a layer of it for what is stored, and moves no bytes."""
    return jnp.stack([matrix.T.reshape(self.shape) for matrix in self.layers])


@jax.jit
def per_layer(params: Any) -> Any:
  """The parameters with the weights of all stacked layers as `PerLayer`."""

  def cut(path: tuple, w: Array) -> Array | PerLayer:
    axes = param_axes("/".join(key.key for key in path))
    if axes.layers != 1 or not axes.inputs:
      return w
    inputs = math.prod(w.shape[1 : 1 + axes.inputs])
    return PerLayer(tuple(layer.reshape(inputs, -1).T for layer in w), w.shape[1:])

  return jax.tree.map_with_path(cut, params)


def whole(params: Any) -> Any:
  """The parameters as the model's modules read them."""
  is_cut = lambda x: isinstance(x, PerLayer)
  return jax.tree.map(lambda x: x.whole() if is_cut(x) else x, params, is_leaf=is_cut)
