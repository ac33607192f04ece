"""Reads compiled programs: instructions, loops multiplied out, and the collectives with the mesh axes they run over."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from tfm_jax.compare.record import Collective

Shape = tuple[str, tuple[int, ...], bool]  # dtype, dimensions, whether it lies in a core's own fast memory

_BITS = {"pred": 8, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="([A-Z_]+)"')
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program. `rest` is what follows the operands."""

  name: str
  shapes: tuple[Shape, ...]  # of the result; several for a tuple
  op: str
  operands: tuple[str, ...]
  arguments: str  # the operands as text: the number of a parameter, the value of a constant
  rest: str
  root: bool

  @property
  def bytes(self) -> int:
    """Bytes of the result."""
    return sum(map(shape_bytes, self.shapes))

  def called(self, attribute: str) -> str | None:
    """The computation that an attribute (`body`, `condition`, `calls`) names."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
    return found[1] if found else None

  @property
  def kind(self) -> str | None:
    """all-gather, ... for a collective (its start, if it is in two halves), else None."""
    name = self.op.removesuffix("-start")
    return name if name in KINDS else None

  @property
  def between_slices(self) -> tuple[str, str] | None:
    """(kind, name) of a collective between slices, which XLA:TPU writes as a send to the host and back."""
    found = _BETWEEN_SLICES.search(self.rest)
    name = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', self.rest)
    return (found[1].lower().replace("_", "-"), name[1]) if found and name else None


@dataclasses.dataclass(frozen=True)
class Computation:
  name: str
  instructions: tuple[Instruction, ...]

  @functools.cached_property
  def by_name(self) -> dict[str, Instruction]:
    """Instructions by name."""
    return {i.name: i for i in self.instructions}

  @functools.cached_property
  def root(self) -> Instruction:
    """What the computation returns."""
    return next((i for i in self.instructions if i.root), self.instructions[-1])


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program. `entry` is the computation where it starts."""

  entry: str
  computations: dict[str, Computation]

  def trips(self, loop: Instruction, where: Computation) -> int:
    """How often the body of a `while` runs: what the compiler notes, or else what its counter says."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if noted:
      return int(noted[1])
    condition, body = (self.computations[loop.called(name) or ""] for name in ("condition", "body"))
    compared = [self._affine(condition, name) for name in condition.root.operands]
    limit = next((offset for element, offset in compared if element is None), None)
    counter = next((element for element, _ in compared if element is not None), None)
    if limit is None or counter is None:  # compared inside a fusion: its constant, counted from 0 by 1
      constants = [i for name in self._with_called(condition.name) for i in self.computations[name].instructions]
      return max(
        (int(i.arguments) for i in constants if i.op == "constant" and re.fullmatch(r"\d+", i.arguments)), default=1
      )
    start = self._initial(loop, where, counter)
    element, step = self._affine(body, body.root.operands[counter], loop, where)
    step = step if element == counter and step > 0 else 1
    return max(-(-(limit - start + (condition.root.rest.find("direction=LE") > 0)) // step), 1)

  def _with_called(self, name: str) -> list[str]:
    """A computation and those that it calls."""
    called = [
      c for i in self.computations[name].instructions for c in _CALLED.findall(i.rest) if c in self.computations
    ]
    return [name, *called]

  def _initial(self, loop: Instruction, where: Computation, element: int) -> int:
    """The value with which an element of a loop's state starts; 0 if it is no constant."""
    state = where.by_name.get(loop.operands[0])
    if state is None or state.op != "tuple":
      return 0
    kind, value = self._affine(where, state.operands[element])
    return value if kind is None else 0

  def _affine(
    self, where: Computation, name: str, loop: Instruction | None = None, outside: Computation | None = None
  ) -> tuple[int | None, int]:
    """(k, n) for a scalar that is element k of the parameter plus n; (None, n) for the constant n; (-1, 0) if unknown.

    In the body of a `loop`, elements that it leaves alone are the constants that it was given.
    """
    i = where.by_name.get(name)
    if i is None:
      return -1, 0
    if i.op == "constant" and re.fullmatch(r"-?\d+", i.arguments):
      return None, int(i.arguments)
    if i.op in ("copy", "convert", "bitcast", "copy-done", "copy-start"):
      return self._affine(where, i.operands[0], loop, outside)
    if i.op == "get-tuple-element":
      index = int(re.findall(r"index=(\d+)", i.rest)[0])
      same = where.root.op == "tuple" and index < len(where.root.operands) and where.root.operands[index] == name
      if loop is not None and outside is not None and same:
        return None, self._initial(loop, outside, index)
      return index, 0
    if i.op == "add":
      (k, a), (m, b) = (self._affine(where, operand, loop, outside) for operand in i.operands)
      if k is None or m is None:
        return (m if k is None else k), a + b
    return -1, 0

  def executed(
    self, computation: str | None = None, times: int = 1, seen: set[str] | None = None
  ) -> Iterator[tuple[Instruction, Computation, int]]:
    """(instruction, its computation, executions a step): bodies of loops, of fusions and of asynchronous calls too.

    An asynchronous collective stands in the fusions of its start, its middles (which may be in an inner loop) and its
    end: the first of them is given. `seen` holds the channels of those given.
    """
    seen = set() if seen is None else seen
    where = self.computations[computation or self.entry]
    for i in where.instructions:
      yield i, where, times
      if i.op == "while":
        yield from self.executed(i.called("body"), times * self.trips(i, where), seen)
      elif i.op in ("fusion", "call", "async-start"):
        for name in _CALLED.findall(i.rest):
          for inner in self.executed(name, times, seen) if name in self.computations else ():
            channel = re.search(r"channel_id=(\d+)", inner[0].rest) if inner[0].kind else None
            if channel is None or channel[1] not in seen:
              yield inner
            if channel is not None:
              seen.add(channel[1])


def kept_bytes(module: Module) -> int:
  """Bytes that loops make and later loops read: what the blocks of the forward pass keep for the backward pass.

  Of the computation that has most of them: loops within loops hand over less, and again and again.
  """
  return max(_handed_over(module, where) for where in module.computations.values())


def _handed_over(module: Module, where: Computation) -> int:
  """Between the loops of one computation."""
  kept: dict[tuple[str, int], int] = {}
  for later in where.instructions:
    state = where.by_name.get(later.operands[0]) if later.op == "while" else None
    for name in state.operands if state is not None and state.op == "tuple" else ():
      part = where.by_name.get(name)
      while part is not None and part.op in ("bitcast", "copy", "copy-start", "copy-done"):
        part = where.by_name.get(part.operands[0])
      loop = where.by_name.get(part.operands[0]) if part is not None and part.op == "get-tuple-element" else None
      if part is None or loop is None or loop.op != "while":
        continue
      index = int(re.findall(r"index=(\d+)", part.rest)[0])
      body = module.computations[loop.called("body") or ""]
      last = body.by_name.get(body.root.operands[index])
      given = last and last.op == "get-tuple-element" and body.by_name[last.operands[0]].op == "parameter"
      if not given:  # else the loop only hands it on
        kept[loop.name, index] = shape_bytes(loop.shapes[index])
  return sum(kept.values())


def shape_bytes(shape: Shape) -> int:
  """Bytes of one array."""
  dtype, dims, _ = shape
  bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype.split("e")[0].replace("bf", "")) or 0)
  return math.prod(dims) * bits // 8


def shapes_of(text: str) -> tuple[Shape, ...]:
  """All arrays in the text of a type."""
  return tuple(
    (dtype, tuple(int(n) for n in dims.split(",") if n), "S(1)" in (layout or ""))
    for dtype, dims, layout in _ARRAY.findall(text)
    if dtype not in ("token", "opaque")
  )


def _balanced(text: str, start: int) -> int:
  """The place after the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] in "({") - (text[i] in ")}")
    if depth == 0:
      return i + 1
  return len(text)


def _instruction(line: str) -> Instruction | None:
  match = _INSTRUCTION.match(line)
  if not match:
    return None
  root, name, rest = bool(match[1]), match[2], re.sub(r"/\*.*?\*/", "", match[3])
  end = _balanced(rest, 0) if rest.startswith("(") else len(rest.split(" ", 1)[0])
  opcode = re.match(r"\s*([\w\-]+)\(", rest[end:])
  if not opcode:
    return None
  opened = end + opcode.end() - 1
  closed = _balanced(rest, opened)
  arguments = rest[opened + 1 : closed - 1]
  return Instruction(
    name, shapes_of(rest[:end]), opcode[1], tuple(_NAME.findall(arguments)), arguments, rest[closed:], root
  )


def parse(text: str) -> Module:
  """The program of `compiled.as_text()`."""
  computations: dict[str, Computation] = {}
  entry = name = ""
  lines: list[Instruction] = []
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      name, lines = header[2], []
      entry = name if header[1] else entry
    elif line.startswith("}"):
      computations[name] = Computation(name, tuple(lines))
    elif (made := _instruction(line)) is not None:
      lines.append(made)
  return Module(entry, computations)


def payload(i: Instruction) -> int:
  """Bytes of the whole that a collective gathers, reduces or moves, in its result or, scattered, its operands."""
  shapes = i.shapes
  if i.op.endswith("-start"):  # (operands, results, ...): the results are the second half
    arrays = [s for s in shapes if s[0] != "u32" or s[1]]
    shapes = tuple(arrays[len(arrays) // 2 :]) if i.op != "all-reduce-start" else shapes
  return sum(map(shape_bytes, shapes))


def sent(kind: str, size: int, group: int) -> float:
  """Bytes that one device of a group sends around a ring; `size` as of `payload`."""
  if kind == "collective-permute":
    return size
  factor = {"all-reduce": 2.0, "reduce-scatter": float(group)}.get(kind, 1.0)
  return size * factor * (group - 1) / max(group, 1)


def groups_of(i: Instruction, devices: int) -> np.ndarray:
  """The groups of a collective: device numbers [groups, size]; pairs for a permutation."""
  pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", i.rest)
  if pairs:
    return np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{(\d+,\d+)", pairs[0])])
  named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:\s*,?\s*device_ids=\[([^\]]*)\])?\s*\{([^}]*)\}", i.rest)
  if named:
    sizes = [(axis, int(size)) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])]
    within = re.findall(r"'([^']+)'", named[3])
    ids = np.arange(math.prod(size for _, size in sizes)).reshape([size for _, size in sizes])
    names = [axis for axis, _ in sizes]
    order = [n for n, axis in enumerate(names) if axis not in within] + [names.index(axis) for axis in within]
    group = math.prod(dict(sizes)[axis] for axis in within)
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
  """The mesh axes along which a group's devices differ; "?" if the groups are not all devices that do so.

  `pairs`: the groups are senders and receivers of a permutation.
  """
  shape = tuple(mesh.shape.values())
  coordinates = np.stack(np.unravel_index(groups, shape), -1)  # [groups, size, axes]
  differ = (coordinates != coordinates[:, :1]).any((0, 1))
  whole = math.prod(size for size, varies in zip(shape, differ, strict=True) if varies)
  names = [name for name, varies in zip(mesh.axis_names, differ, strict=True) if varies]
  return ",".join(names) if groups.shape[1] == whole or pairs else "?"


def scatters(i: Instruction, where: Computation, module: Module) -> bool:
  """Whether each device keeps but its slice of an all-reduce: XLA:TPU writes every reduce-scatter so, asked or not."""
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
    elif user.op == "fusion" and (inner := module.computations.get(user.called("calls") or "")):
      parameters = {int(p.arguments): p.name for p in inner.instructions if p.op == "parameter"}
      for n, operand in enumerate(user.operands):
        if operand in names:
          if not only_sliced(inner, parameters[n]):
            return False
          sliced = True
    else:
      return False
  return sliced


def only_sliced(called: Computation, name: str) -> bool:
  """Whether a fusion reads nothing but slices of a parameter."""
  names = {name}
  for i in called.instructions:
    if names.intersection(i.operands):
      if i.op in ("bitcast", "reshape", "transpose", "copy"):
        names.add(i.name)
      elif i.op != "dynamic-slice":
        return False
  return True


def slice_axes(mesh: Mesh) -> tuple[str, int]:
  """(the mesh axes along which the slice changes, number of slices)."""
  of = np.vectorize(lambda device: getattr(device, "slice_index", None) or 0)(mesh.devices)
  names = [name for n, name in enumerate(mesh.axis_names) if (of != of.take([0], axis=n)).any()]
  return ",".join(names), len(np.unique(of))


def sent_between_slices(i: Instruction, mesh: Mesh) -> tuple[str, float]:
  """(mesh axes, bytes that one device sends over the network) of a send to the host: a part to gather, or the whole."""
  assert i.between_slices is not None
  kind, size = i.between_slices[0], shape_bytes(i.shapes[0])
  axes, slices = slice_axes(mesh)
  # `sent` wants what comes out of a gather and of a reduce-scatter.
  whole = {"all-gather": size * slices, "reduce-scatter": size // slices}.get(kind, size)
  return axes, sent(kind, whole, slices)


def collectives(module: Module, mesh: Mesh) -> tuple[Collective, ...]:
  """All collectives of a step by kind and mesh axes, loops multiplied out; those of one device alone are left out.

  An all-reduce of which each device keeps its slice counts as the reduce-scatter that it stands for.
  """
  found: dict[tuple[str, str], tuple[int, float]] = {}
  for i, where, times in module.executed():
    if i.op == "send" and i.between_slices:
      axes, size = sent_between_slices(i, mesh)
      key = (i.between_slices[0], axes)
      count, total = found.get(key, (0, 0.0))
      found[key] = (count + times, total + times * size)
    if i.kind is None:
      continue
    groups = groups_of(i, mesh.size)
    if groups.shape[1] < 2:
      continue
    kind, size = i.kind, payload(i)
    if scatters(i, where, module):
      kind, size = "reduce-scatter", size // groups.shape[1]
    key = (kind, axes_of(groups, mesh, kind == "collective-permute"))
    count, total = found.get(key, (0, 0.0))
    found[key] = (count + times, total + times * sent(kind, size, groups.shape[1]))
  return tuple(Collective(kind, axes, count, round(total)) for (kind, axes), (count, total) in sorted(found.items()))
