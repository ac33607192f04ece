"""Which device holds which piece of a parameter."""

import math

import jax
import numpy as np

from tfm_jax.compare.results import Piece, ShardMap
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.sharding.placement import names
from tfm_jax.training.compiled.program import Program


def parameter_leaves(model: Model, parameter: str) -> dict[str, tuple[tuple, jax.ShapeDtypeStruct]]:
  """Name -> (path, shape) of all parameters. Raises UserError if `parameter` is none of them; "" is always fine."""
  leaves = {
    "/".join(str(key.key) for key in path): (path, leaf) for path, leaf in jax.tree.leaves_with_path(model.shapes())
  }
  if parameter and parameter not in leaves:
    raise UserError(f"--parameter={parameter}: the model has no such parameter, only {', '.join(leaves)}")
  return leaves


def shard_map_of(program: Program, parameter: str) -> ShardMap:
  """The shard map of a parameter; "" stands for the largest of the blocks. Raises UserError for an unknown name."""
  model = program.model
  leaves = parameter_leaves(model, parameter)
  blocks = [name for name in leaves if "blocks/" in name] or list(leaves)
  name = parameter or max(blocks, key=lambda n: math.prod(leaves[n][1].shape))
  path, leaf = leaves[name]
  axes = model.axes(path).names
  mesh = model.placement.mesh
  number = {device: n for n, device in enumerate(mesh.devices.flat)}
  pieces = []
  for device, index in model.placement.sharding(axes).devices_indices_map(leaf.shape).items():
    place = np.unravel_index(number[device], mesh.devices.shape)
    coordinates = {axis: int(n) for axis, n in zip(mesh.axis_names, place, strict=True)}
    bounds = [part.indices(n) for part, n in zip(index, leaf.shape, strict=True)]
    pieces.append(Piece(number[device], coordinates, tuple(b[0] for b in bounds), tuple(b[1] for b in bounds)))
  spec = tuple(",".join(names(part)) for part in model.placement.spec(axes))
  return ShardMap(name, leaf.shape, axes, spec, tuple(sorted(pieces, key=lambda p: p.device)))
