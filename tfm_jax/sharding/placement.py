"""A strategy on a mesh: the one function that constrains activations, and the one that gathers weights."""

import dataclasses
import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
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


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with all of `AXES`, GSPMD (Auto) axes, over all devices or the given ones."""
  shape = tuple(sizes[axis] for axis in AXES)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


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

  def weight(self, w: Array, axes: Axes, dtype: jnp.dtype | str) -> Array:
    """A stored weight, ready for use: cast to the compute dtype, then gathered over the batch's mesh axes.

    Its gradient goes the other way: scattered to where the weight is stored (which makes the sum over devices a
    reduce-scatter), then cast to the weight's own dtype.
    """
    if self.mesh.size == 1:
      return w.astype(dtype)
    stored = self.spec(axes)
    gathered = PartitionSpec(*(_without_batch(part) for part in stored))
    return _gather(w, NamedSharding(self.mesh, stored), NamedSharding(self.mesh, gathered), jnp.dtype(dtype))


def _without_batch(part: Any) -> Any:
  """A part of a PartitionSpec without the mesh axes that split the batch."""
  axes = (part,) if isinstance(part, str) else part or ()
  kept = tuple(axis for axis in axes if axis not in BATCH_AXES)
  return kept[0] if len(kept) == 1 else kept or None


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(w: Array, stored: NamedSharding, gathered: NamedSharding, dtype: jnp.dtype) -> Array:
  """w in the compute dtype, in its gathered layout."""
  w = jax.lax.with_sharding_constraint(w.astype(dtype), stored)
  return jax.lax.with_sharding_constraint(w, gathered)


_gather.defvjp(
  lambda w, stored, gathered, dtype: (_gather(w, stored, gathered, dtype), jnp.zeros((), w.dtype)),
  # Summed over devices first, then cut: XLA makes one reduce-scatter of the two. Asked for the cut alone, it may move
  # activations instead (an "involuntary full rematerialization" for embeddings).
  lambda stored, gathered, dtype, like, dw: (
    jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(dw, gathered), stored).astype(like.dtype),
  ),
)


def single_device(device: jax.Device | None = None) -> Placement:
  """The trivial placement, on one device."""
  mesh = make_mesh(dict.fromkeys(AXES, 1), [device or jax.local_devices()[0]])
  return Placement(STRATEGIES["dp"], mesh)
