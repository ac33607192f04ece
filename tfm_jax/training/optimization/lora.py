"""LoRA (Hu et al. 2021): weights stay as they are, and a product of two thin matrices is added to each.

The parameters of a run with `adapter.rank` are those of the model and, under `lora`, `PATH/a` and `PATH/b` of each
adapted weight. Before the model is applied, `merge` adds (alpha / rank) a @ b to the weight: a pure function, the same
for every family and sharding strategy. b starts at 0, so that step 0 is the model that the run starts from.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.errors import UserError
from tfm_jax.models.config import Axes, param_axes
from tfm_jax.models.init import normal
from tfm_jax.runtime.trees import flat, nested
from tfm_jax.sharding.placement import Placement

ROOT = "lora/"  # first part of the paths of all adapters


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """LoRA adapters, which are trained in place of the weights that they are added to."""

  rank: int = 0  # rank of each adapter; 0: no adapters
  alpha: float = 16.0  # adapters are multiplied by alpha / rank
  # regular expression; weights whose path starts with a match have an adapter. The default: attention's projections
  targets: str = r".*(attn|cross)/w[qkvo]"


def targets_of(config: AdapterConfig, shapes: Any) -> list[str]:
  """The paths of the weights that have an adapter; none if the rank is 0.

  Args:
    config: the adapters.
    shapes: the parameters of the model.

  Raises:
    UserError: the expression is not valid, or matches no weight or something that is not a matrix.
  """
  if not config.rank:
    return []
  paths = sorted(flat(shapes))
  try:
    found = [path for path in paths if re.match(config.targets, path)]
  except re.error as error:
    raise UserError(f"adapter.targets={config.targets!r} is not a regular expression: {error}") from error
  if not found:
    raise UserError(f"adapter.targets={config.targets!r} matches no parameter; they are {', '.join(paths)}")
  for path in found:
    if not param_axes(path).is_matrix:
      raise UserError(f"adapter.targets={config.targets!r} matches {path}, which is not a matrix: name weights only")
  return found


def axes_of(path: str) -> Axes:
  """The logical axes of a parameter of a model, or of an adapter.

  `lora/PATH/a` is [layers, inputs, rank] and `lora/PATH/b` [layers, rank, outputs], with the axes of the weight, so
  that every strategy shards them as it does the weight. The axis of ranks is never split.
  """
  if not path.startswith(ROOT):
    return param_axes(path)
  weight, side = path.removeprefix(ROOT).rsplit("/", 1)
  axes = param_axes(weight)
  layers, inputs, outputs = _parts(axes, axes.names)
  if side == "a":
    return Axes((*layers, *inputs, None), axes.layers, axes.inputs)
  return Axes((*layers, None, *outputs), axes.layers, 1)


def _parts(axes: Axes, values: tuple) -> tuple[tuple, tuple, tuple]:
  """What belongs to the axes of layers, of inputs and of outputs."""
  middle = axes.layers + axes.inputs
  return values[: axes.layers], values[axes.layers : middle], values[middle:]


def adapter_shapes(config: AdapterConfig, shapes: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Path -> shape of all adapters of a model."""
  adapters = {}
  for path in targets_of(config, shapes):
    weight = flat(shapes)[path]
    layers, inputs, outputs = _parts(param_axes(path), weight.shape)
    adapters[f"{ROOT}{path}/a"] = jax.ShapeDtypeStruct((*layers, *inputs, config.rank), weight.dtype)
    adapters[f"{ROOT}{path}/b"] = jax.ShapeDtypeStruct((*layers, config.rank, *outputs), weight.dtype)
  return adapters


def fresh_adapters(config: AdapterConfig, shapes: Any, key: Array) -> dict[str, Array]:
  """Path -> array of new adapters: a normal with standard deviation 1 / sqrt(inputs), b zero."""
  adapters = {}
  for path, leaf in adapter_shapes(config, shapes).items():
    if path.endswith("/b"):
      adapters[path] = jnp.zeros(leaf.shape, leaf.dtype)
    else:
      _, inputs, _ = _parts(axes_of(path), leaf.shape)
      own = jax.random.fold_in(key, zlib.crc32(path.encode()))
      adapters[path] = normal(math.prod(inputs) ** -0.5)(own, leaf.shape)
  return adapters


def merge(config: AdapterConfig, params: Any, placement: Placement) -> Any:
  """The parameters of the model, with the adapters among `params` added to its weights."""
  if not config.rank:
    return params
  leaves = flat(params)
  merged = {path: leaf for path, leaf in leaves.items() if not path.startswith(ROOT)}
  for path in merged:
    if f"{ROOT}{path}/a" in leaves:
      axes = param_axes(path)
      product = _product(axes, leaves[f"{ROOT}{path}/a"], leaves[f"{ROOT}{path}/b"])
      delta = placement.constrain(product, axes.names)
      merged[path] = merged[path] + (config.alpha / config.rank) * delta
  return nested(merged)


def _product(axes: Axes, a: Array, b: Array) -> Array:
  """a @ b for each layer, in the weight's shape."""
  letters = "ABCDEFGH"
  layers, inputs = letters[: axes.layers], letters[axes.layers : axes.layers + axes.inputs]
  outputs = letters[axes.layers + axes.inputs : len(axes.names)]
  spec = f"{layers}{inputs}r,{layers}r{outputs}->{layers}{inputs}{outputs}"
  return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)


def merged_loss(
  config: AdapterConfig, loss: Callable[..., Any], placement: Placement
) -> Callable[[Any, Mapping[str, Array], Any], Any]:
  """A loss of the model's parameters as one of parameters with adapters."""
  if not config.rank:
    return loss
  return lambda params, batch, noise: loss(merge(config, params, placement), batch, noise)
