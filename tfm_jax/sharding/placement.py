"""A strategy on a mesh: the one function that constrains activations, and the one that gathers weights."""

import dataclasses
import glob
import math
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.extend.backend import register_backend_factory
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tfm_jax.sharding.strategy import AXES, BATCH_AXES, STRATEGIES, Strategy

Axes = tuple[str | None, ...]


def _give_emulated_devices_threads() -> None:
  """More threads for emulated CPU devices, before JAX starts its backend (later this does nothing).

  A collective holds its thread until all devices have joined it, and XLA's pool has one thread a device: where a
  program has two collectives ready at once, devices that take them in different orders wait for each other for ever.
  """
  flag = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
  devices = max(int(flag[1]) if flag else 1, jax.config.jax_num_cpu_devices)
  if devices > 1:
    os.environ.setdefault("PJRT_NPROC", str(4 * devices))


_give_emulated_devices_threads()


def _leave_the_tpu_library_alone() -> None:
  """Where there are no TPU chips, JAX does not start the TPU library to find that out, before JAX starts its backends.

  The library is there for its compiler, which forecasts use: described devices need no backend, and are not touched
  by this. Started without chips it writes several lines of errors on stderr, and takes a lock of the whole machine.
  """
  # On import JAX looks for chips on the PCI bus, and notes that there are none. Those of later generations than it
  # knows have their device files all the same.
  chips = "TPU_SKIP_MDS_QUERY" not in os.environ or glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")
  if not chips and "JAX_FORCE_TPU_INIT" not in os.environ:
    register_backend_factory("tpu", _no_chips, priority=300, fail_quietly=True)  # JAX's own priority


def _no_chips() -> None:
  """A backend that is not there."""
  raise RuntimeError("this machine has no TPU chips")


_leave_the_tpu_library_alone()


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with all of `AXES`, GSPMD (Auto) axes, over all devices or the given ones."""
  shape = tuple(sizes[axis] for axis in AXES)
  auto = (AxisType.Auto,) * len(AXES)
  devices = jax.devices() if devices is None else devices
  slices = slice_count(devices)
  # The outermost axis that can goes between slices, where the network is slow: replica, else data, ...
  between = next((i for i, size in enumerate(shape) if size % slices == 0), None)
  if slices == 1 or between is None:
    try:
      return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices)
    except NotImplementedError:  # a mesh axis that is no product of whole axes of the TPUs' torus: 4 chips of 8
      return Mesh(create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES, axis_types=auto)
  across = tuple(slices if i == between else 1 for i in range(len(shape)))
  within = tuple(size // n for size, n in zip(shape, across, strict=True))
  return Mesh(create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True), AXES, axis_types=auto)


def slice_count(devices: Sequence[jax.Device]) -> int:
  """Groups of devices that only a network joins: TPU slices, or hosts of GPUs."""
  return len({getattr(device, "slice_index", None) or 0 for device in devices})


@dataclasses.dataclass(frozen=True)
class Placement:
  """A strategy bound to a mesh: static, hashable data that models take as a field."""

  strategy: Strategy
  mesh: Mesh

  @property
  def platform(self) -> str:
    """ "cpu", "gpu" or "tpu": what the mesh's devices are, also when they are only described (compiling ahead)."""
    return self.mesh.devices.flat[0].platform

  def spec(self, axes: Axes) -> PartitionSpec:
    """The partition of an array with these logical axes; a mesh axis is used once, by the first that asks for it."""
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
    """Every device holds all of it."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch_shards(self) -> int:
    """Into how many parts the rows of a batch are cut."""
    return self.mesh.shape["replica"] * self.mesh.shape["data"]

  def constrain(self, x: Array, axes: Axes) -> Array:
    """x with the layout of these logical axes."""
    return x if self.mesh.size == 1 else jax.lax.with_sharding_constraint(x, self.sharding(axes))

  def parts(self, axes: Axes) -> tuple[int, ...]:
    """Into how many parts each axis of an array with these logical axes is cut."""
    of = lambda part: (part,) if isinstance(part, str) else part or ()
    return tuple(math.prod(self.mesh.shape[axis] for axis in of(part)) for part in self.spec(axes))

  def local(self, f: Callable[..., Array], in_axes: tuple[Any, ...], out_axes: Axes) -> Callable[..., Array]:
    """f, applied on each device to its own part of the arguments: for kernels that XLA cannot split.

    `in_axes` are the logical axes of the arguments: each a tuple, or a tree of tuples like the argument.
    """
    if self.mesh.size == 1:
      return f
    specs = tuple(jax.tree.map(self.spec, axes, is_leaf=lambda x: type(x) is tuple) for axes in in_axes)
    return jax.shard_map(f, mesh=self.mesh, in_specs=specs, out_specs=self.spec(out_axes), check_vma=False)

  def weight(self, w: Array, axes: Axes, dtype: jnp.dtype | str, looked_up: bool = False) -> Array:
    """A stored weight, ready for use: cast to the compute dtype, then gathered over the batch's mesh axes.

    Its gradient goes the other way: scattered to where the weight is stored (which makes the sum over devices a
    reduce-scatter, in step with the matrix product on TPUs), then cast to the weight's own dtype. The gradient of a
    table of embeddings (`looked_up`) is summed whole first: asked for a part of it, XLA may move the activations of
    all devices instead.
    """
    if self.mesh.size == 1:
      return w.astype(dtype)
    stored = self.spec(axes)
    gathered = PartitionSpec(*(_without_batch(part) for part in stored))
    return _gather(w, NamedSharding(self.mesh, stored), NamedSharding(self.mesh, gathered), jnp.dtype(dtype), looked_up)


def _without_batch(part: Any) -> Any:
  """A part of a PartitionSpec without the mesh axes that split the batch."""
  axes = (part,) if isinstance(part, str) else part or ()
  kept = tuple(axis for axis in axes if axis not in BATCH_AXES)
  return kept[0] if len(kept) == 1 else kept or None


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(w: Array, stored: NamedSharding, gathered: NamedSharding, dtype: jnp.dtype, looked_up: bool) -> Array:
  """w in the compute dtype, in its gathered layout."""
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
  mesh = make_mesh(dict.fromkeys(AXES, 1), [device or jax.local_devices()[0]])
  return Placement(STRATEGIES["dp"], mesh)
