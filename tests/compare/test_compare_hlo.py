"""Reading compiled programs: loops, groups, collectives.

Small programs are written by hand, as XLA:CPU and XLA:TPU write them; others are compiled for the emulated devices.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from jax.sharding import AxisType, PartitionSpec

from tests.support.programs import CONSTANT, STATE, SUM, between_slices, fake_mesh, loop, program
from tfm_jax.compare.compiled import hlo
from tfm_jax.compare.compiled.collectives import collectives, groups_of, sent
from tfm_jax.compare.results import Collective


def collectives_of(text, mesh=None):
  return collectives(hlo.parse(text), mesh or fake_mesh())


# --- single lines


def test_lines_of_both_compilers_are_read():
  text = program("""
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/f32[3]{0:T(128)}) parameter(0)
  %get-tuple-element.7 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1, metadata={op_name="a(b)={c"}
  %t = (bf16[8,128]{1,0}, f32[]) tuple(%get-tuple-element.7, %p.2), backend_config={"x":{"y":"1"}}
  ROOT %add.1 = f32[4,2]{1,0} add(f32[4,2]{1,0} %left, f32[4,2]{1,0} %right)""")
  module = hlo.parse(text)
  where = module.computations["main"]
  assert module.entry == "main" and where.root.name == "add.1"
  parameter, element, both, added = where.instructions
  assert parameter.shapes == (("s32", (), False), ("bf16", (8, 128), True), ("f32", (3,), False))
  assert (parameter.op, parameter.arguments) == ("parameter", "0")
  assert parameter.bytes == 4 + 8 * 128 * 2 + 3 * 4
  assert (element.op, element.operands, element.shapes) == ("get-tuple-element", ("p",), (("bf16", (8, 128), True),))
  assert both.operands == ("get-tuple-element.7", "p.2") and added.operands == ("left", "right")


@pytest.mark.parametrize(
  ("kind", "size"),
  [
    ("f32", 40),
    ("bf16", 20),
    ("f16", 20),
    ("s8", 10),
    ("u32", 40),
    ("pred", 10),
    ("s4", 5),
    ("f64", 80),
    ("c64", 80),
    ("f8e4m3fn", 10),
  ],
)
def test_bytes_of_types(kind, size):
  ((dtype, dims, _),) = hlo.shapes_of(f"{kind}[2,5]{{1,0}}")
  assert hlo.shape_bytes((dtype, dims, False)) == size


# --- loops

FUSED = """%compared (q: s32[], l: s32[]) -> pred[] {
  %q = s32[] parameter(0)
  %l = s32[] parameter(1)
  ROOT %less = pred[] compare(%q, %l), direction=LT
}
"""
FUSED_CONSTANT = """%compared (q: s32[]) -> pred[] {
  %q = s32[] parameter(0)
  %l = s32[] constant(10)
  ROOT %less = pred[] compare(%q, %l), direction=LT
}
"""


@pytest.mark.parametrize(
  ("text", "trips"),
  [
    (loop(CONSTANT, config=', backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0"}}'), 7),
    (loop(CONSTANT), 10),
    (loop(CONSTANT, start="4"), 6),
    (loop(CONSTANT, step="2"), 5),
    (loop(CONSTANT, step="2", start="1"), 5),  # 1 3 5 7 9
    (loop(CONSTANT, step="4"), 3),  # 0 4 8
    (loop(CONSTANT, step="three"), 4),  # 0 3 6 9; the step is an element that the loop does not change
    (loop(CONSTANT.replace("LT", "LE")), 11),
    (loop(CONSTANT.replace("LT", "LE"), step="2"), 6),  # 0 2 4 6 8 10
    (
      loop(
        "  %limit = s32[] constant(10)\n  ROOT %f = pred[] fusion(%n, %limit), kind=kLoop, calls=%compared",
        before=FUSED,
      ),
      10,
    ),
    (loop("  ROOT %f = pred[] fusion(%n), kind=kLoop, calls=%compared", before=FUSED_CONSTANT), 10),
  ],
)
def test_loops_are_multiplied_out(text, trips):
  assert collectives_of(text) == (Collective("all-reduce", "b", trips, trips * 2 * 3 * 256),)  # 2 x 3/4 x 256 x 4 bytes


def test_loops_within_loops_are_multiplied():
  text = loop(CONSTANT)
  inner = f"  %again = {STATE} while(%p.1), condition=%few, body=%inside"
  few = re.search(r"%cond .*?\n}\n", text, re.S)[0].replace("%cond", "%few").replace("10", "3")
  inside = re.search(r"%body .*?\n}\n", text, re.S)[0].replace("%body", "%inside")
  text = text.replace("%body (", f"{few}\n{inside}\n%body (").replace("  %r = f32", f"{inner}\n  %r = f32", 2)
  text = text.replace(f"{inner}\n", "", 1)  # the inner loop has no loop
  assert collectives_of(text)[0].count == 10 + 10 * 3


# --- groups


def one(line, **mesh):
  """The only collective of a program of one line over a float32 operand."""
  (only,) = collectives_of(program(f"  %p = f32[256]{{0}} parameter(0)\n  ROOT %c = {line}", SUM), fake_mesh(**mesh))
  return only.kind, only.axes, only.count, only.bytes


REDUCED = "f32[256]{0:T(256)S(1)} all-reduce(%p), channel_id=3, to_apply=%sum, "


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    ("{{0,1,2,3},{4,5,6,7}}", "b"),
    ("{{0,4},{1,5},{2,6},{3,7}}", "a"),
    ("{{0,1,2,3,4,5,6,7}}", "a,b"),
    ("{}", "a,b"),
    ("[2,4]<=[8]", "b"),
    ("[1,8]<=[8]", "a,b"),
    ("[4,2]<=[2,4]T(1,0)", "a"),
    ("mesh['a'=2,'b'=4] {'b'}", "b"),
    ("mesh['a'=2,'b'=4] {'a'}", "a"),
    ("mesh['a'=2,'b'=4] {'a','b'}", "a,b"),
    ("mesh['x'=4,'y'=2] {'y'}", None),
    ("{{0,1,4,5},{2,3,6,7}}", "?"),
    ("[4,2]<=[8]", "?"),  # halves of b
  ],
)
def test_groups_in_every_notation_name_their_axes(groups, axes):
  size = {"a": 2, "b": 4, "a,b": 8, None: 2, "?": 4}[axes] if groups != "[4,2]<=[8]" else 2
  kind, named, count, sent = one(f"{REDUCED}replica_groups={groups}, use_global_device_ids=true")
  assert (kind, count) == ("all-reduce", 1)
  assert axes is None or named == axes
  assert sent == 2 * 1024 * (size - 1) // size


def test_groups_list_their_devices():
  def devices(groups):
    module = hlo.parse(program(f"  ROOT %c = {REDUCED}replica_groups={groups}"))
    return groups_of(module.computations["main"].root, 8)

  columns = [[0, 4], [1, 5], [2, 6], [3, 7]]
  for text in ("{{0,4},{1,5},{2,6},{3,7}}", "[4,2]<=[2,4]T(1,0)", "mesh['a'=2,'b'=4] {'a'}"):
    np.testing.assert_array_equal(devices(text), columns)
  np.testing.assert_array_equal(devices("[2,4]<=[8]"), [[0, 1, 2, 3], [4, 5, 6, 7]])
  np.testing.assert_array_equal(devices("[2,4]<=[2,2,2]T(1,0,2)"), [[0, 1, 4, 5], [2, 3, 6, 7]])
  np.testing.assert_array_equal(devices("mesh['a'=2,'b'=2,'c'=2] {'a','c'}"), [[0, 1, 4, 5], [2, 3, 6, 7]])


def test_collectives_of_one_device_are_left_out():
  line = f"  ROOT %c = {REDUCED}replica_groups={{{{0}},{{1}},{{2}},{{3}},{{4}},{{5}},{{6}},{{7}}}}"
  assert collectives_of(program(line, SUM)) == ()


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("f32[8,128]{1,0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}", ("all-gather", "b", 1, 3072)),
    ("f32[64]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], to_apply=%sum", ("reduce-scatter", "b", 1, 768)),
    (
      "(f32[64]{0}, f32[64]{0}, f32[64]{0}, f32[64]{0}) all-to-all(%p, %p, %p, %p), replica_groups=[2,4]<=[8]",
      ("all-to-all", "b", 1, 768),
    ),
    (
      "f32[256]{0} collective-permute(%p), source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}",
      ("collective-permute", "b", 1, 1024),
    ),
    (
      "f32[256]{0} collective-permute(%p), source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,6},{6,2},{3,7},{7,3}}",
      ("collective-permute", "a", 1, 1024),
    ),
  ],
)
def test_bytes_are_those_of_a_ring(line, expected):
  assert one(line) == expected


@given(some.integers(1, 2**40), some.integers(2, 4096))
def test_an_all_reduce_sends_as_much_as_a_scatter_and_a_gather(size, group):
  parts = sent("reduce-scatter", size, group) + sent("all-gather", size * group, group)
  assert sent("all-reduce", size * group, group) == pytest.approx(parts)
  assert size * (group - 1) == pytest.approx(sent("reduce-scatter", size, group))


# --- asynchronous collectives


def test_an_asynchronous_collective_counts_once():
  gather = """  %p = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(0)
  %s = (bf16[2,128]{1,0:T(8,128)(2,1)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%p), channel_id=4, \
replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true
  ROOT %d = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%s)"""
  assert collectives_of(program(gather)) == (Collective("all-gather", "b", 1, 8 * 128 * 2 * 3 // 4),)
  permute = """  %p = bf16[8,128]{1,0} parameter(0)
  %s = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), channel_id=5, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  ROOT %d = bf16[8,128]{1,0} collective-permute-done(%s)"""
  assert collectives_of(program(permute)) == (Collective("collective-permute", "b", 1, 2048),)
  reduce = """  %p = f32[256]{0} parameter(0)
  %s = f32[256]{0} all-reduce-start(%p), channel_id=6, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %d = f32[256]{0} all-reduce-done(%s)"""
  assert collectives_of(program(reduce, SUM)) == (Collective("all-reduce", "b", 1, 1536),)


def test_a_collective_in_several_fusions_counts_once():
  """XLA:TPU writes an asynchronous collective into the fusions of its start, its end and what overlaps."""
  fusion = """%{name} (q: f32[64]) -> f32[256] {{
  %q = f32[64]{{0}} parameter(0)
  ROOT %gathered = f32[256]{{0}} all-gather(%q), channel_id={channel}, replica_groups=[2,4]<=[8], dimensions={{0}}
}}

"""
  middle = loop(CONSTANT).replace(
    "  %r = f32", "  %mid = f32[256]{0} fusion(%v), kind=kCustom, calls=%middle\n  %r = f32"
  )
  names = (("first", 1), ("middle", 1), ("last", 1), ("other", 2))
  text = middle.replace("%cond (", "".join(fusion.format(name=n, channel=c + 10) for n, c in names) + "%cond (", 1)
  text = text.replace(
    "  %while.1",
    "  %async-collective-start.1 = f32[256]{0} fusion(%small), kind=kCustom, calls=%first\n"
    "  %another = f32[256]{0} fusion(%small), kind=kCustom, calls=%other\n  %while.1",
  ).replace("  ROOT %result", "  %end = f32[256]{0} fusion(%small), kind=kCustom, calls=%last\n  ROOT %result")
  gathers = next(c for c in collectives_of(text) if c.kind == "all-gather")
  assert (gathers.count, gathers.bytes) == (2, 2 * 768)


# --- between slices


@pytest.mark.parametrize(
  ("kind", "part", "whole", "moved"),
  [
    ("ALL_REDUCE", 512, 512, 2 * 2048 // 2),
    ("ALL_GATHER", 256, 512, 2048 // 2),
    ("REDUCE_SCATTER", 512, 256, 2048 // 2),
  ],
)
def test_collectives_between_slices_are_sends_to_the_host_and_back(kind, part, whole, moved):
  """A collective of 2048 bytes over two slices, which sends `part` elements and receives `whole`."""
  text = between_slices(kind, f"f32[{part}]{{0:T(512)}}", f"f32[{whole}]{{0:T(512)}}")
  sent = collectives_of(program("\n".join([f"  %p = f32[{part}]{{0}} parameter(0)", *text])), fake_mesh(slices=2))
  assert sent == (Collective(kind.lower().replace("_", "-"), "a", 1, moved),)


# --- the reduce-scatter of XLA:TPU

BIG = "f32[64,1024]{1,0:T(8,128)}"
REDUCE_BIG = f"  %p = {BIG} parameter(0)\n  %i = s32[] parameter(1)\n  %zero = s32[] constant(0)\n  %c = {BIG} " + (
  "all-reduce(%p), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%sum\n"
)
SLICE = "f32[16,1024]{1,0} dynamic-slice(%c, %i, %zero), dynamic_slice_sizes={16,1024}"
PART = """%part (q: f32[64,1024], j: s32[]) -> f32[16,1024] {
  %q = f32[64,1024]{1,0} parameter(0)
  %flat = f32[64,1024]{1,0} bitcast(%q)
  %j = s32[] parameter(1)
  %nought = s32[] constant(0)
  %cut = f32[16,1024]{1,0} dynamic-slice(%flat, %j, %nought), dynamic_slice_sizes={16,1024}
  ROOT %double = f32[16,1024]{1,0} add(%cut, %cut)
}

"""


@pytest.mark.parametrize(
  ("uses", "kind"),
  [
    (f"  ROOT %d = {SLICE}", "reduce-scatter"),
    (f"  %b = {BIG} bitcast(%c)\n  ROOT %d = {SLICE.replace('%c', '%b')}", "reduce-scatter"),
    ("  ROOT %f = f32[16,1024]{1,0} fusion(%c, %i), kind=kLoop, calls=%part", "reduce-scatter"),
    (f"  %d = {SLICE}\n  ROOT %n = {BIG} negate(%c)", "all-reduce"),  # all of it is used as well
    (f"  ROOT %n = {BIG} negate(%c)", "all-reduce"),
    (f"  ROOT %f = {BIG} fusion(%c, %i), kind=kLoop, calls=%whole", "all-reduce"),
  ],
)
def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter(uses, kind):
  whole = PART.replace("%part", "%whole").replace("add(%cut, %cut)", "add(%cut, %flat)")
  (only,) = collectives_of(program(REDUCE_BIG + uses, SUM + PART + whole))
  size = 64 * 1024 * 4 * 3 // 4
  assert only == Collective(kind, "b", 1, size if kind == "reduce-scatter" else 2 * size)


# --- real programs

TRIPS, ROWS, WIDTH = 5, 8, 16


@functools.cache
def real_mesh():
  return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


BODIES = {
  "psum": lambda x: jax.lax.psum(x, "model") * 0.5,
  "psum over both": lambda x: jax.lax.psum(x, ("data", "model")) * 0.5,
  "all_gather": lambda x: jax.lax.all_gather(x * 2, "data", tiled=True)[: x.shape[0]] + x,
  "psum_scatter": lambda x: jnp.concatenate([jax.lax.psum_scatter(x * 2, "model", tiled=True)] * 4),
  "ppermute": lambda x: jax.lax.ppermute(x * 2, "model", [(i, (i + 1) % 4) for i in range(4)]),
  "all_to_all": lambda x: jax.lax.all_to_all(x * 2, "data", 0, 0, tiled=True),
}


@functools.cache
def compiled_text(name):
  """A program whose loop runs five times, on parts [4, 4] (64 bytes) of a float32 array [8, 16]."""

  def local(x):
    return jax.lax.scan(lambda x, _: (BODIES[name](x), None), x, length=TRIPS)[0]

  spec = PartitionSpec("data", "model")
  f = jax.jit(jax.shard_map(local, mesh=real_mesh(), in_specs=spec, out_specs=spec, check_vma=False))
  return f.lower(jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)).compile().as_text()


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize(
  ("name", "kind", "axes", "sent"),
  [
    ("psum", "all-reduce", "model", 2 * 64 * 3 // 4),
    ("psum over both", "all-reduce", "data,model", 2 * 64 * 7 // 8),
    ("all_gather", "all-gather", "data", 128 // 2),
    ("psum_scatter", "reduce-scatter", "model", 64 * 3 // 4),
    ("ppermute", "collective-permute", "model", 64),
    ("all_to_all", "all-to-all", "data", 64 // 2),
  ],
)
def test_collectives_of_compiled_programs(name, kind, axes, sent, noted):
  """Also if the compiler does not write down how often the loop runs."""
  text = compiled_text(name)
  assert "known_trip_count" in text
  text = text if noted else re.sub(r'"known_trip_count":\{"n":"\d+"\}', '"none":{}', text)
  assert collectives_of(text, real_mesh()) == (Collective(kind, axes, TRIPS, TRIPS * sent),)
