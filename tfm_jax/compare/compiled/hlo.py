"""Reads the text of compiled programs: instructions, computations, and how often each instruction runs per step."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

Shape = tuple[str, tuple[int, ...], int]  # dtype, dimensions, and in which memory: 0 (HBM), ON_CHIP or HOST
ON_CHIP, HOST = 1, 5

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
  """One line of a program.

  Attributes:
    name: without the leading %.
    shapes: of the result; several for a tuple.
    op: the opcode, as "dot" or "all-gather-start".
    operands: the names of the operands.
    arguments: the operands as text: for a parameter its number, for a constant its value.
    rest: the attributes after the operands, as text.
    root: whether this is the result of its computation.
  """

  name: str
  shapes: tuple[Shape, ...]
  op: str
  operands: tuple[str, ...]
  arguments: str
  rest: str
  root: bool

  @property
  def bytes(self) -> int:
    """Size of the result."""
    return sum(map(shape_bytes, self.shapes))

  def called(self, attribute: str) -> str | None:
    """The name of the computation in an attribute: `body`, `condition` or `calls`."""
    match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
    return match[1] if match else None

  @property
  def kind(self) -> str | None:
    """The kind of a collective, as "all-gather"; None for other instructions, also for the -done of a collective."""
    name = self.op.removesuffix("-start")
    return name if name in KINDS else None

  @property
  def between_slices(self) -> tuple[str, str] | None:
    """(kind, name) of a collective between slices, which XLA:TPU writes as a send to the host and a receive."""
    kind = _BETWEEN_SLICES.search(self.rest)
    name = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', self.rest)
    return (kind[1].lower().replace("_", "-"), name[1]) if kind and name else None


@dataclasses.dataclass(frozen=True)
class Computation:
  """A function of a program: instructions in scheduled order."""

  name: str
  instructions: tuple[Instruction, ...]

  @functools.cached_property
  def by_name(self) -> dict[str, Instruction]:
    """Name -> instruction."""
    return {i.name: i for i in self.instructions}

  @functools.cached_property
  def root(self) -> Instruction:
    """The instruction whose result the computation returns."""
    return next((i for i in self.instructions if i.root), self.instructions[-1])


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program: its computations by name; `entry` is the one that starts it."""

  entry: str
  computations: dict[str, Computation]

  def trips(self, loop: Instruction, where: Computation) -> int:
    """How often the body of a `while` runs: the compiler's own count, or else derived from the loop counter."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
      return int(known[1])
    condition, body = (self.computations[loop.called(name) or ""] for name in ("condition", "body"))
    compared = [self._affine(condition, name) for name in condition.root.operands]
    limit = next((offset for element, offset in compared if element is None), None)
    counter = next((element for element, _ in compared if element is not None), None)
    if limit is None or counter is None:  # the comparison is inside a fusion: count from 0 to its constant
      constants = [i for name in self._with_called(condition.name) for i in self.computations[name].instructions]
      return max(
        (int(i.arguments) for i in constants if i.op == "constant" and re.fullmatch(r"\d+", i.arguments)), default=1
      )
    start = self._initial(loop, where, counter)
    element, step = self._affine(body, body.root.operands[counter], loop, where)
    step = step if element == counter and step > 0 else 1
    return max(-(-(limit - start + (condition.root.rest.find("direction=LE") > 0)) // step), 1)

  def _with_called(self, name: str) -> list[str]:
    """The names of a computation and of those it calls."""
    called = [
      c for i in self.computations[name].instructions for c in _CALLED.findall(i.rest) if c in self.computations
    ]
    return [name, *called]

  def _initial(self, loop: Instruction, where: Computation, element: int) -> int:
    """The initial value of an element of a loop's state; 0 if it is not a constant."""
    state = where.by_name.get(loop.operands[0])
    if state is None or state.op != "tuple":
      return 0
    kind, value = self._affine(where, state.operands[element])
    return value if kind is None else 0

  def _affine(
    self, where: Computation, name: str, loop: Instruction | None = None, outside: Computation | None = None
  ) -> tuple[int | None, int]:
    """A scalar as (k, n): element k of the parameter, plus n. (None, n) is the constant n; (-1, 0) is unknown.

    In the body of a `loop` of the computation `outside`, elements that the body does not change are constants.
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
      unchanged = where.root.op == "tuple" and index < len(where.root.operands) and where.root.operands[index] == name
      if loop is not None and outside is not None and unchanged:
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
    """(instruction, its computation, executions per step), with those inside loops, fusions and asynchronous calls.

    XLA:TPU writes an asynchronous collective into the fusions of its start, of its end, and of what overlaps with it
    (maybe in an inner loop). Only the first is yielded; `seen` holds the channel ids of those yielded so far.
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


def stored_bytes(module: Module) -> int:
  """Bytes that one loop writes and a later loop reads: the activations stored for the backward pass.

  Counts the computation with the most of them; loops nested in it pass on less, and reuse the memory.
  """
  return max(_stored_between_loops(module, where) for where in module.computations.values())


def _stored_between_loops(module: Module, where: Computation) -> int:
  """Bytes that the loops of one computation write for later loops of it."""
  stored: dict[tuple[str, int], int] = {}
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
      unchanged = last and last.op == "get-tuple-element" and body.by_name[last.operands[0]].op == "parameter"
      if not unchanged:
        stored[loop.name, index] = shape_bytes(loop.shapes[index])
  return sum(stored.values())


def shape_bytes(shape: Shape) -> int:
  """Size of one array."""
  dtype, dims, _ = shape
  bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype.split("e")[0].replace("bf", "")) or 0)
  return math.prod(dims) * bits // 8


def shapes_of(text: str) -> tuple[Shape, ...]:
  """The arrays in the text of a type, as "f32[2,3]" or a tuple of them."""
  return tuple(
    (dtype, tuple(int(n) for n in dims.split(",") if n), _memory(layout or ""))
    for dtype, dims, layout in _ARRAY.findall(text)
    if dtype not in ("token", "opaque")
  )


def _memory(layout: str) -> int:
  """The memory in the text of a layout, as "{1,0:T(8,128)S(5)}"."""
  space = re.search(r"S\((\d+)\)", layout)
  return int(space[1]) if space else 0


def _balanced(text: str, start: int) -> int:
  """The index after the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] in "({") - (text[i] in ")}")
    if depth == 0:
      return i + 1
  return len(text)


def _instruction(line: str) -> Instruction | None:
  """The instruction of a line; None if it has none."""
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
  """The program in `compiled.as_text()`."""
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
    elif (instruction := _instruction(line)) is not None:
      lines.append(instruction)
  return Module(entry, computations)
