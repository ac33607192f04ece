"""`Placement`: a strategy on a mesh, which constrains activations and gathers weights."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from tfm_jax.runtime.devices import all_devices, first_device
from tfm_jax.sharding.strategy import AXES, STAYING, STRATEGIES, Strategy

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
  by_process = len({getattr(device, "slice_index", None) for device in devices}) == 1  # described GPUs, see `slice_of`
  mesh = create_hybrid_device_mesh(
    within, across, devices, allow_split_physical_axes=True, process_is_granule=by_process
  )
  return Mesh(mesh, AXES, axis_types=auto)


def names(part: Any) -> tuple[str, ...]:
  """The mesh axes in one element of a PartitionSpec."""
  return (part,) if isinstance(part, str) else tuple(part or ())


def slice_count(devices: Sequence[jax.Device]) -> int:
  """Number of groups of devices connected only by a network: TPU slices, or hosts of GPUs."""
  return len({slice_of(device) for device in devices})


def slice_of(device: jax.Device) -> int:
  """The TPU slice, or host of GPUs, that a device belongs to: a network connects it to others.

  GPUs that are only described, to compile for them, have their host as `process_index`: their `slice_index` is 0.
  """
  if getattr(device, "platform", "") == "gpu" and type(device.client).__name__.startswith("CompileOnly"):
    return device.process_index
  return getattr(device, "slice_index", None) or 0


@dataclasses.dataclass(frozen=True)
class Placement:
  """A strategy on a mesh: static, hashable data that models have as a field.

  Attributes:
    strategy: see `Strategy`.
    mesh: a mesh with all of `AXES`.
    pipeline: the most microbatches in a pipeline; 0: see `sharding.pipeline`.
    rounds: how often each of them passes through the stages.
    attention: how devices compute attention over sequences that they share, see `sharding.context`.
    taken: mesh axes over which everything here is split already, by the `vmap` of a pipeline around it.
  """

  strategy: Strategy
  mesh: Mesh
  pipeline: int = 0
  rounds: int = 1
  attention: str = "auto"
  taken: tuple[str, ...] = ()

  @property
  def platform(self) -> str:
    """The platform of the mesh's devices (real or described for compilation ahead of time): "cpu", "gpu" or "tpu".

    Empty for a mesh without devices.
    """
    mesh: Any = self.mesh
    return "" if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform

  @property
  def lone_cpu(self) -> bool:
    """Whether this is a single CPU, for which some forms differ; several emulated ones run an accelerator's program."""
    return self.platform == "cpu" and self.mesh.size == 1

  def spec(self, axes: Axes) -> PartitionSpec:
    """The partition of an array with these logical axes. A mesh axis is used by the first axis that maps to it."""
    used = set(self.taken)
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
  def of_state(self) -> "Placement":
    """The placement of optimizer state, on the same mesh."""
    return dataclasses.replace(self, strategy=self.strategy.of_state)

  @property
  def of_gradients(self) -> "Placement":
    """The placement of the sum of the gradients, on the same mesh."""
    return dataclasses.replace(self, strategy=self.strategy.of_gradients)

  @property
  def batch_shards(self) -> int:
    """Number of parts into which the rows of a batch are split."""
    return math.prod(self.mesh.shape[axis] for axis in self.batch_axes)

  @property
  def batch_axes(self) -> tuple[str, ...]:
    """The mesh axes that split the rows of a batch."""
    return self.strategy.mesh_axes("batch")

  @property
  def stages(self) -> int:
    """Number of stages of a pipeline, over which layers are split; 1 without one."""
    return math.prod(self.mesh.shape[axis] for axis in self.strategy.mesh_axes("layers"))

  @property
  def group_axes(self) -> tuple[str, ...]:
    """The mesh axes that split the batch of a pipeline and nothing else: copies of the whole pipeline, side by side."""
    others = {axis for name, axes in self.strategy.rules if name != "batch" for axis in axes}
    return tuple(axis for axis in self.batch_axes if axis not in others)

  @property
  def groups(self) -> int:
    """Number of groups of devices along `group_axes`."""
    return math.prod(self.mesh.shape[axis] for axis in self.group_axes)

  @functools.cached_property
  def inside(self) -> "Placement":
    """The placement of what one stage of one group computes."""
    return dataclasses.replace(self, taken=(*self.group_axes, *self.strategy.mesh_axes("layers")))

  def staged(self, x: Array, axes: Axes) -> Array:
    """x, with its first axes constrained: "group" and "stage" to those of a pipeline, others as inside of it."""
    own: dict[str | None, Any] = {"group": self.group_axes, "stage": "stage"}
    parts = [own.get(axis, part) for axis, part in zip(axes, self.inside.spec(axes), strict=True)]
    spec = PartitionSpec(*parts, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - len(axes)))
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

  def constrain(self, x: Array, axes: Axes) -> Array:
    """x, constrained to the sharding of these logical axes."""
    return x if self.mesh.size == 1 else jax.lax.with_sharding_constraint(x, self.sharding(axes))

  def gather(self, x: Array, stored: Axes, used: Axes) -> Array:
    """x, which has the sharding of the axes `stored`, gathered to that of the axes `used`.

    Its gradient is scattered to the sharding of x; with `constrain`, it would be summed in full first.
    """
    if self.mesh.size == 1 or self.spec(stored) == self.spec(used):
      return self.constrain(x, used)
    whole, cut = self.sharding(used), self.sharding(stored)
    return _gather(x, cut, whole, cut, x.dtype, False)

  def scatter(self, x: Array, used: Axes, stored: Axes) -> Array:
    """The reverse of `gather`: x, a sum over devices with the axes `used`, scattered to the sharding of `stored`.

    Its gradient is gathered; with `constrain`, linears would read it in parts, and XLA would exchange them.
    """
    if self.mesh.size == 1 or self.spec(stored) == self.spec(used):
      return self.constrain(x, stored)
    return _spread(x, self.sharding(stored), self.sharding(used))

  def parts(self, axes: Axes) -> tuple[int, ...]:
    """Number of parts into which each axis of an array with these logical axes is split."""
    return tuple(math.prod(self.mesh.shape[axis] for axis in names(part)) for part in self.spec(axes))

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

    Its gradient is scattered to the sharding of gradients, which is that of the stored weight but for ZeRO (so that the
    sum over devices is a reduce-scatter, which TPUs overlap with the matrix product), then cast to the weight's dtype.
    The gradient of an embedding table (`looked_up`) is summed in full first: if only a part were requested, XLA might
    move all devices' activations.
    """
    if self.mesh.size == 1:
      return w.astype(dtype)
    stored = self.sharding(axes)
    parts = zip(axes, stored.spec, strict=True)
    gathered = PartitionSpec(*(part if axis in STAYING else self._without_batch(part) for axis, part in parts))
    scattered = self.of_gradients.sharding(axes)
    return _gather(w, stored, NamedSharding(self.mesh, gathered), scattered, jnp.dtype(dtype), looked_up)

  def _without_batch(self, part: Any) -> Any:
    """An element of a PartitionSpec without the mesh axes that split the batch."""
    kept = tuple(axis for axis in names(part) if axis not in self.batch_axes)
    return kept[0] if len(kept) == 1 else kept or None


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _gather(
  x: Array, stored: NamedSharding, used: NamedSharding, scattered: NamedSharding, dtype: jnp.dtype, summed: bool
) -> Array:
  """x, cast and gathered. Its gradient is `scattered`; `summed`: in full before that."""
  x = jax.lax.with_sharding_constraint(x.astype(dtype), stored)
  return jax.lax.with_sharding_constraint(x, used)


def _scatter(
  stored: NamedSharding,
  used: NamedSharding,
  scattered: NamedSharding,
  dtype: jnp.dtype,
  summed: bool,
  like: Array,
  dx: Array,
) -> tuple[Array]:
  """The gradient of what was gathered."""
  if summed:
    dx = jax.lax.with_sharding_constraint(dx, used)
  return (jax.lax.with_sharding_constraint(dx, scattered).astype(like.dtype),)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _spread(x: Array, stored: NamedSharding, used: NamedSharding) -> Array:
  """x, scattered. Its gradient is gathered to the sharding `used`."""
  return jax.lax.with_sharding_constraint(x, stored)


def _collect(stored: NamedSharding, used: NamedSharding, _: None, dx: Array) -> tuple[Array]:
  """The gradient of what was scattered."""
  dx = jax.lax.with_sharding_constraint(dx, stored)
  return (jax.lax.with_sharding_constraint(dx, used),)


_spread.defvjp(lambda x, *static: (_spread(x, *static), None), _collect)
_gather.defvjp(lambda w, *static: (_gather(w, *static), jnp.zeros((), w.dtype)), _scatter)


def single_device(device: jax.Device | None = None) -> Placement:
  """The trivial placement, on one device."""
  mesh = make_mesh(dict.fromkeys(AXES, 1), [device or first_device()])
  return Placement(STRATEGIES["dp"], mesh)
