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
  decoder's first block.

  Args:
    shapes: the parameters of the whole model, and its adapters.
  """
  leaves = flat(shapes)
  depth: dict[str, int] = {}  # blocks of each tower
  for path, leaf in leaves.items():
    if axes_of(path).layers and not of_head(_weight(path)):
      depth[_tower(path)] = leaf.shape[0]
  total = sum(depth.values())
  before = {"decoder/": depth.get("encoder/", 0)}

  def distance(path: str, leaf: Any) -> np.ndarray:
    if of_head(_weight(path)):  # a generator's blocks too
      return np.zeros((), np.float32)
    tower = _tower(path)
    if axes_of(path).layers:
      layers = total - before.get(tower, 0) - np.arange(leaf.shape[0])
      return layers.astype(np.float32).reshape(-1, *[1] * (len(leaf.shape) - 1))
    inner = _weight(path).removeprefix(tower)
    if inner.startswith("final_norm"):
      return np.full((), total - before.get(tower, 0) - depth.get(tower, 0), np.float32)
    return np.full((), total + 1, np.float32)

  return {path: distance(path, leaf) for path, leaf in leaves.items()}


def _weight(path: str) -> str:
  """The path without that of adapters around it."""
  return path.removeprefix(ROOT)


def _tower(path: str) -> str:
  """The stack of blocks that a parameter belongs to: encoder/, decoder/, or the only one."""
  first = _weight(path).split("/")[0]
  return f"{first}/" if first in ("encoder", "decoder") else ""


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
