"""The norms of the gradient, the parameters and the update of each layer, for the records of a run."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from tfm_jax.runtime.trees import flat
from tfm_jax.training.optimization.lora import axes_of


def layer_norms(trees: dict[str, Any]) -> dict[str, Array]:
  """The Euclidean norm of each layer: `NAME/blocks/0`, ... of the blocks, `NAME/embed`, `NAME/head`, ... of the rest.

  Of parts that have blocks of their own, such as an encoder: `NAME/encoder/blocks/0`, `NAME/encoder/final_norm`, ...

  Args:
    trees: name -> a tree like the parameters, blocks stacked.

  Returns:
    float32 scalars.
  """
  norms: dict[str, Array] = {}
  for name, tree in trees.items():
    squares: dict[str, Array] = {}
    leaves = flat(tree)
    towers = {path.partition("blocks/")[0] for path in leaves if axes_of(path).layers}
    for path, leaf in leaves.items():
      square = jnp.square(leaf.astype(jnp.float32))
      if axes_of(path).layers:
        before = path.partition("blocks/")[0]
        sums = square.sum(tuple(range(1, square.ndim)))
        parts = {f"{before}blocks/{layer}": sums[layer] for layer in range(square.shape[0])}
      else:
        first, *rest = path.split("/")
        parts = {f"{first}/{rest[0]}" if f"{first}/" in towers else first: square.sum()}
      for layer, value in parts.items():
        squares[layer] = squares.get(layer, jnp.float32(0)) + value
    norms |= {f"{name}/{layer}": jnp.sqrt(value) for layer, value in squares.items()}
  return norms
