"""Rates that depend on the layer: layer-wise decay of the learning rate, and gradual unfreezing.

Both go by the distance of a parameter from the head: 0 for the head, 1 for the last block, N for the first of N blocks,
N + 1 for the embeddings. Blocks are stacked, so that their distances are a vector along the axis of layers.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.models.heads.head import of_head
from tfm_jax.runtime.trees import flat, nested
from tfm_jax.training.optimization.lora import ROOT, axes_of


def distances(shapes: Any) -> dict[str, np.ndarray]:
  """Path -> the distance from the head, of a shape that broadcasts with the parameter: [] or [N, 1, ...].

  An encoder-decoder's blocks are counted through: the decoder follows the encoder, whose last norm is beside the
  decoder's first block. Other towers, such as those of images and of texts, are counted each by itself.

  Args:
    shapes: the parameters of the whole model, and its adapters.
  """
  leaves = flat(shapes)
  depth: dict[str, int] = {}  # tower, such as "encoder/", or "" for the only one -> its blocks
  for path, leaf in leaves.items():
    if axes_of(path).layers and not of_head(_weight(path)):
      depth[_weight(path).partition("blocks/")[0]] = leaf.shape[0]
  above = {"encoder/": depth.get("decoder/", 0)}  # blocks between a tower and the head
  lowest = max((blocks + above.get(tower, 0) for tower, blocks in depth.items()), default=0)

  def distance(path: str, leaf: Any) -> np.ndarray:
    weight = _weight(path)
    tower = next((tower for tower in depth if tower and weight.startswith(tower)), "")
    first, blocks = above.get(tower, 0), depth.get(tower, 0)
    if of_head(weight):  # a generator's blocks too
      far: Any = 0
    elif axes_of(path).layers:
      far = (first + blocks - np.arange(leaf.shape[0])).reshape(-1, *[1] * (len(leaf.shape) - 1))
    else:
      part = weight.removeprefix(tower).split("/")[0]
      # An encoder-decoder's embeddings are all below its encoder. What else is above the blocks, such as the attention
      # of a recurrent decoder, is beside the last one.
      bottom = blocks + 1 if tower and tower not in ("encoder/", "decoder/") else lowest + 1
      far = {"final_norm": first, "embed": bottom, "relative": bottom}.get(part, first + 1)
    return np.asarray(far, np.float32)

  return {path: distance(path, leaf) for path, leaf in leaves.items()}


def _weight(path: str) -> str:
  """The path without that of adapters around it."""
  return path.removeprefix(ROOT)


def make_rates(shapes: Any, trained: Any, decay: float, unfreeze_every: int) -> Callable[[Array], Any] | None:
  """step -> a tree of factors by which the update of each parameter is multiplied; None: all are 1.

  Args:
    shapes: the parameters of the whole model, and its adapters.
    trained: those that are trained.
    decay: the factor is decay^distance, as in BEiT (Bao et al. 2021).
    unfreeze_every: steps after which one more layer is trained, from the head down (Howard & Ruder 2018): the factor is
      0 before. 0: all are from the start.
  """
  if decay == 1 and not unfreeze_every:
    return None
  everywhere = distances(shapes)
  far = {path: everywhere[path] for path in flat(trained)}

  def rates(step: Array) -> Any:
    factors = {path: jnp.float32(decay) ** distance for path, distance in far.items()}
    if unfreeze_every:
      reached = (step // unfreeze_every).astype(jnp.float32)
      factors = {path: jnp.where(far[path] <= reached, factor, 0.0) for path, factor in factors.items()}
    return nested(factors)

  return rates
