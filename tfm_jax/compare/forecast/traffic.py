"""The bytes that an operation of a compiled program reads from and writes to a device's memory."""

from tfm_jax.compare.compiled.hlo import Computation, Instruction, Module, Shape, shape_bytes


def traffic(i: Instruction, where: Computation, module: Module, results: tuple[Shape, ...] | None = None) -> int:
  """Bytes that an operation reads and writes; of arrays that it slices, the slices. On-chip memory is left out.

  Args:
    i: the operation.
    where: the computation that holds it.
    module: the program.
    results: the arrays that it writes; None: all of its result.
  """
  called = module.computations.get(i.called("calls") or "")
  written = sum(shape_bytes(s) for s in (i.shapes if results is None else results) if not s[2])
  read = 0
  parameters = {int(p.arguments): p for p in called.instructions if p.op == "parameter"} if called else {}
  for n, name in enumerate(i.operands):
    operand = where.by_name.get(name)
    if operand is None or any(s[2] for s in operand.shapes):
      continue
    whole = operand.bytes
    if called is not None and n in parameters:
      part, updated = _part_read(called, parameters[n].name)
      if updated is not None:  # updated in place: the rest is neither read nor written
        written -= whole - updated
      whole = whole if part is None else min(part, whole)
    read += whole
  return max(read + written, 0)


def _part_read(called: Computation, name: str) -> tuple[int | None, int | None]:
  """(bytes read of a fusion's parameter, None for all of it; bytes updated in place, None if it is not)."""
  names, read = {name}, 0
  for i in called.instructions:
    if not names.intersection(i.operands):
      continue
    if i.op == "bitcast":
      names.add(i.name)
    elif i.op in ("dynamic-slice", "slice") or (i.op == "gather" and i.operands[0] in names):
      read += i.bytes
    elif i.op == "dynamic-update-slice" and i.operands[0] in names:
      update = called.by_name.get(i.operands[1])
      return 0, update.bytes if update else 0
    else:
      return None, None
  return read, None
