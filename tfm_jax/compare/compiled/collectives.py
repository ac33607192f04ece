"""The collectives of a compiled program: what they send, and over which mesh axes."""

import math
import re

import numpy as np
from jax.sharding import Mesh

from tfm_jax.compare.compiled.hlo import Computation, Instruction, Module, shape_bytes
from tfm_jax.compare.results import Collective
from tfm_jax.sharding.placement import slice_of


def payload(i: Instruction) -> int:
  """Bytes of the whole array that a collective gathers, reduces or moves; of a reduce-scatter, of its result."""
  shapes = i.shapes
  if i.op.endswith("-start"):  # its result is (operands, results, ...)
    arrays = [s for s in shapes if s[0] != "u32" or s[1]]
    alone = i.op == "all-reduce-start" and len(arrays) == len(i.operands)  # as XLA:TPU writes all-reduces
    shapes = shapes if alone else tuple(arrays[len(arrays) // 2 :])
  return sum(map(shape_bytes, shapes))


def sent(kind: str, size: int, group: int) -> float:
  """Bytes that one device of a group sends with a ring algorithm; `size` as `payload` has it."""
  if kind == "collective-permute":
    return size
  factor = {"all-reduce": 2.0, "reduce-scatter": float(group)}.get(kind, 1.0)
  return size * factor * (group - 1) / max(group, 1)


def groups_of(i: Instruction, devices: int) -> np.ndarray:
  """The device groups of a collective: device numbers [groups, size]; (sender, receiver) pairs of a permutation."""
  pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", i.rest)
  if pairs:
    return np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{(\d+,\d+)", pairs[0])])
  named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:\s*,?\s*device_ids=\[([^\]]*)\])?\s*\{([^}]*)\}", i.rest)
  if named:
    sizes = [(axis, int(size)) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])]
    inner = re.findall(r"'([^']+)'", named[3])
    ids = np.arange(math.prod(size for _, size in sizes)).reshape([size for _, size in sizes])
    names = [axis for axis, _ in sizes]
    order = [n for n, axis in enumerate(names) if axis not in inner] + [names.index(axis) for axis in inner]
    group = math.prod(dict(sizes)[axis] for axis in inner)
    return ids.transpose(order).reshape(-1, group)
  iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", i.rest)
  if iota:
    shape, dims = ([int(n) for n in iota[k].split(",")] for k in (1, 2))
    ids = np.arange(math.prod(dims)).reshape(dims)
    if iota[3]:
      ids = ids.transpose([int(n) for n in iota[3].split(",")])
    return ids.reshape(shape)
  listed = re.search(r"replica_groups=\{(\{.*?\})\}", i.rest)
  if listed:
    return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])
  return np.arange(devices)[None]


def axes_of(groups: np.ndarray, mesh: Mesh, pairs: bool = False) -> str:
  """The mesh axes along which the devices of a group differ; "?" if a group is not the whole of these axes.

  `pairs`: the groups are (sender, receiver) pairs of a permutation.
  """
  shape = tuple(mesh.shape.values())
  coordinates = np.stack(np.unravel_index(groups, shape), -1)  # [groups, size, axes]
  differ = (coordinates != coordinates[:, :1]).any((0, 1))
  whole = math.prod(size for size, varies in zip(shape, differ, strict=True) if varies)
  names = [name for name, varies in zip(mesh.axis_names, differ, strict=True) if varies]
  return ",".join(names) if groups.shape[1] == whole or pairs else "?"


def scatters(i: Instruction, where: Computation, module: Module) -> bool:
  """Whether each device uses only its slice of an all-reduce, which is how XLA:TPU writes reduce-scatters."""
  if i.kind != "all-reduce" or i.bytes < 2**16:
    return False
  names, sliced = {i.name}, False
  for user in where.instructions:
    if not names.intersection(user.operands):
      continue
    if user.op in ("bitcast", "copy", "copy-start", "copy-done", "get-tuple-element"):
      names.add(user.name)
    elif user.op == "dynamic-slice":
      sliced = True
    elif user.op == "fusion" and (fused := module.computations.get(user.called("calls") or "")):
      parameters = {int(p.arguments): p.name for p in fused.instructions if p.op == "parameter"}
      for n, operand in enumerate(user.operands):
        if operand in names:
          if not only_sliced(fused, parameters[n]):
            return False
          sliced = True
    else:
      return False
  return sliced


def only_sliced(called: Computation, name: str) -> bool:
  """Whether a fusion reads only slices of its parameter `name`."""
  names = {name}
  for i in called.instructions:
    if names.intersection(i.operands):
      if i.op in ("bitcast", "reshape", "transpose", "copy"):
        names.add(i.name)
      elif i.op != "dynamic-slice":
        return False
  return True


def slice_axes(mesh: Mesh) -> tuple[str, int]:
  """(the mesh axes that cross slices, number of slices)."""
  slices = np.vectorize(slice_of)(mesh.devices)
  names = [name for n, name in enumerate(mesh.axis_names) if (slices != slices.take([0], axis=n)).any()]
  return ",".join(names), len(np.unique(slices))


def sent_between_slices(i: Instruction, mesh: Mesh) -> tuple[str, float]:
  """(mesh axes, bytes that one device sends over the network) of a collective between slices."""
  assert i.between_slices is not None
  kind, size = i.between_slices[0], shape_bytes(i.shapes[0])
  axes, slices = slice_axes(mesh)
  # The send has the operand; `sent` needs the result of an all-gather or a reduce-scatter.
  whole = {"all-gather": size * slices, "reduce-scatter": size // slices}.get(kind, size)
  return axes, sent(kind, whole, slices)


def collectives(module: Module, mesh: Mesh) -> tuple[Collective, ...]:
  """The collectives of a step by kind and mesh axes, loops multiplied out; groups of one device are left out.

  An all-reduce of which each device uses only its slice counts as a reduce-scatter.
  """
  totals: dict[tuple[str, str], tuple[int, float]] = {}
  for i, where, times in module.executed():
    if i.op == "send" and i.between_slices:
      axes, size = sent_between_slices(i, mesh)
      key = (i.between_slices[0], axes)
      count, total = totals.get(key, (0, 0.0))
      totals[key] = (count + times, total + times * size)
    if i.kind is None:
      continue
    groups = groups_of(i, mesh.size)
    if groups.shape[1] < 2:
      continue
    kind, size = i.kind, payload(i)
    if scatters(i, where, module):
      kind, size = "reduce-scatter", size // groups.shape[1]
    key = (kind, axes_of(groups, mesh, kind == "collective-permute"))
    count, total = totals.get(key, (0, 0.0))
    totals[key] = (count + times, total + times * sent(kind, size, groups.shape[1]))
  return tuple(Collective(kind, axes, count, round(total)) for (kind, axes), (count, total) in sorted(totals.items()))
