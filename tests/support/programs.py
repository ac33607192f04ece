"""Small programs written by hand in the text form of XLA, and a stand-in for the mesh that they run on."""

import math
from types import SimpleNamespace

import numpy as np

COLUMNS = {"a": 2, "b": 4}


def fake_mesh(shape=None, slices=1):
  """A stand-in for the Mesh of TPU slices; each mesh axis is one side of the grid of chips."""
  shape = shape or COLUMNS
  extents = tuple(shape.values())
  within = (extents[0] // slices, *extents[1:])
  devices = np.empty(extents, object)
  for place in np.ndindex(extents):
    devices[place] = SimpleNamespace(coords=(place[0] % within[0], *place[1:]), slice_index=place[0] // within[0])
  return SimpleNamespace(size=math.prod(extents), shape=shape, axis_names=tuple(shape), devices=devices)


def program(entry, others=""):
  """A module whose entry computation has these lines."""
  return f"HloModule step, is_scheduled=true\n\n{others}\nENTRY %main (p: f32[256]) -> f32[256] {{\n{entry}\n}}\n"


SUM = """%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}
"""
STATE = "(s32[]{:T(128)}, f32[256]{0:T(256)}, s32[]{:T(128)})"
ALL_REDUCE = "f32[256]{0} all-reduce(%v), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum"


def loop(condition, step="1", start="0", config="", before=""):
  """A program that loops over an all-reduce; its state is (counter, data, 3), and the body never changes the 3."""
  others = f"""{SUM}
{before}
%cond (p: {STATE}) -> pred[] {{
  %p = {STATE} parameter(0)
  %n = s32[]{{:T(128)}} get-tuple-element(%p), index=0
{condition}
}}

%body (p.1: {STATE}) -> {STATE} {{
  %p.1 = {STATE} parameter(0)
  %n.1 = s32[] get-tuple-element(%p.1), index=0
  %v = f32[256]{{0}} get-tuple-element(%p.1), index=1
  %three = s32[] get-tuple-element(%p.1), index=2
  %one = s32[] constant({step if step.isdigit() else 1})
  %next = s32[] add(%n.1, %{"one" if step.isdigit() else step})
  %r = {ALL_REDUCE}
  ROOT %out = {STATE} tuple(%next, %r, %three)
}}
"""
  entry = f"""  %data = f32[256]{{0}} parameter(0)
  %start = s32[] constant({start})
  %kept = s32[] constant(3)
  %state = {STATE} tuple(%start, %data, %kept)
  %while.1 = {STATE} while(%state), condition=%cond, body=%body{config}
  ROOT %result = f32[256]{{0}} get-tuple-element(%while.1), index=1"""
  return program(entry, others)


CONSTANT = """  %limit = s32[]{:T(128)} constant(10)
  ROOT %less = pred[]{:T(512)} compare(%n, %limit), direction=LT"""


def between_slices(kind, sent, received):
  """A collective between slices in four lines, as XLA:TPU writes it; it sends %p."""
  attributes = (
    'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    f'_xla_host_transfer_rendezvous="r.7_0",_xla_megascale_target="{{1,2}}x{{0:3}}",_xla_megascale_transfer_type="{kind}"}}'
  )
  return (
    f"  %send = ({sent}, u32[]{{:S(2)}}, token[]) send(%p, %after-all), channel_id=2, {attributes}",
    f"  %recv = ({received}, u32[]{{:S(2)}}, token[]) recv(%after-all), channel_id=1, {attributes}",
    "  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true",
    f"  %recv-done = ({received}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true",
  )
