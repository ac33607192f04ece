"""`Placement`: a strategy on a mesh, which constrains activations and gathers weights."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tfm_jax.runtime.devices import all_devices, first_device
from tfm_jax.sharding.strategy import AXES, BATCH_AXES, STAYING, STRATEGIES, Strategy

Axes = tuple[str | None, ...]


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with all of `AXES`, GSPMD (Auto) axes, over all devices or the given ones."""
  shape = tuple(sizes[axis] for axis in AXES)
  auto = (AxisType.Auto,) * len(AXES)
  devices = all_devices() if devices is None else devices
  slices = slice_count(devices)
  # The outermost axis that the slices divide runs across slices, where the network is slow: replica, else data, ...
  between = next((i for i, size in enumerate(shape) if size % slices == 0), None)
  if slices == 1 or between is None:
    try:
      return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices)
    except NotImplementedError:  # a mesh axis is not a product of whole axes of the TPUs' torus: 4 chips of 8
      return Mesh(create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES, axis_types=auto)
  across = tuple(slices if i == between else 1 for i in range(len(shape)))
  within = tuple(size // n for size, n in zip(shape, across, strict=True))
  return Mesh(create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True), AXES, axis_types=auto)


def slice_count(devices: Sequence[jax.Device]) -> int:
  """Number of groups of devices connected only by a network: TPU slices, or hosts of GPUs."""
  return len({getattr(device, "slice_index", None) or 0 for device in devices})


@dataclasses.dataclass(frozen=True)
class Placement:
  """A strategy on a mesh: static, hashable data that models have as a field.

  `attention`: how devices compute attention over sequences that they share, see `sharding.context`.
  """

  strategy: Strategy
  mesh: Mesh
  attention: str = "auto"

  @property
  def platform(self) -> str:
    """The platform of the mesh's devices (real or described for compilation ahead of time): "cpu", "gpu" or "tpu"."""
    return self.mesh.devices.flat[0].platform

  @property
  def lone_cpu(self) -> bool:
    """Whether this is a single CPU, for which some forms differ; several emulated ones run an accelerator's program."""
    return self.platform == "cpu" and self.mesh.size == 1

  def spec(self, axes: Axes) -> PartitionSpec:
    """The partition of an array with these logical axes. A mesh axis is used by the first axis that maps to it."""
    used: set[str] = set()
    parts = []
    for axis in axes:
      free = tuple(a for a in self.strategy.mesh_axes(axis) if a not in used)
      used.update(free)
      parts.append(free[0] if len(free) == 1 else free or None)
    return PartitionSpec(*parts)

  def sharding(self, axes: Axes) -> NamedSharding:
    """`spec` on the mesh."""
    return NamedSharding(self.mesh, self.spec(axes))

  @property
  def replicated(self) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch_shards(self) -> int:
    """Number of parts into which the rows of a batch are split."""
    return self.mesh.shape["replica"] * self.mesh.shape["data"]

  def constrain(self, x: Array, axes: Axes) -> Array:
    """x, constrained to the sharding of these logical axes."""
    return x if self.mesh.size == 1 else jax.lax.with_sharding_constraint(x, self.sharding(axes))

  def parts(self, axes: Axes) -> tuple[int, ...]:
    """Number of parts into which each axis of an array with these logical axes is split."""
    of = lambda part: (part,) if isinstance(part, str) else part or ()
    return tuple(math.prod(self.mesh.shape[axis] for axis in of(part)) for part in self.spec(axes))

  def local(self, f: Callable[..., Array], in_axes: tuple[Any, ...], out_axes: Axes) -> Callable[..., Array]:
    """f, applied on each device to its part of the arguments: for kernels that XLA cannot partition.

    `in_axes` are the logical axes of each argument: a tuple, or a tree of tuples with the argument's structure.
    """
    if self.mesh.size == 1:
      return f
    specs = tuple(jax.tree.map(self.spec, axes, is_leaf=lambda x: type(x) is tuple) for axes in in_axes)
    return jax.shard_map(f, mesh=self.mesh, in_specs=specs, out_specs=self.spec(out_axes), check_vma=False)

  def weight(self, w: Array, axes: Axes, dtype: jnp.dtype | str, looked_up: bool = False) -> Array:
    """A stored weight, ready for use: cast to the compute dtype, then gathered over the batch's mesh axes.

    Its gradient is scattered to the sharding of the stored weight (so that the sum over devices is a reduce-scatter,
    which TPUs overlap with the matrix product), then cast to the weight's dtype. The gradient of an embedding table
    (`looked_up`) is summed in full first: if only a part were requested, XLA might move all devices' activations.
    """
    if self.mesh.size == 1:
      return w.astype(dtype)
    stored = self.spec(axes)
    parts = zip(axes, stored, strict=True)
    gathered = PartitionSpec(*(part if axis in STAYING else _without_batch(part) for axis, part in parts))
    return _gather(w, NamedSharding(self.mesh, stored), NamedSharding(self.mesh, gathered), jnp.dtype(dtype), looked_up)


def _without_batch(part: Any) -> Any:
  """An element of a PartitionSpec without the mesh axes that split the batch."""
  axes = (part,) if isinstance(part, str) else part or ()
  kept = tuple(axis for axis in axes if axis not in BATCH_AXES)
  return kept[0] if len(kept) == 1 else kept or None


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(w: Array, stored: NamedSharding, gathered: NamedSharding, dtype: jnp.dtype, looked_up: bool) -> Array:
  """w, cast to the compute dtype and gathered."""
  w = jax.lax.with_sharding_constraint(w.astype(dtype), stored)
  return jax.lax.with_sharding_constraint(w, gathered)


def _scatter(
  stored: NamedSharding, gathered: NamedSharding, dtype: jnp.dtype, looked_up: bool, like: Array, dw: Array
) -> tuple[Array]:
  """The gradient of the stored weight."""
  if looked_up:
    dw = jax.lax.with_sharding_constraint(dw, gathered)
  return (jax.lax.with_sharding_constraint(dw, stored).astype(like.dtype),)


_gather.defvjp(lambda w, *static: (_gather(w, *static), jnp.zeros((), w.dtype)), _scatter)


def single_device(device: jax.Device | None = None) -> Placement:
  """The trivial placement, on one device."""
  mesh = make_mesh(dict.fromkeys(AXES, 1), [device or first_device()])
  return Placement(STRATEGIES["dp"], mesh)
