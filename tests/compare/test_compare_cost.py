"""Forecasts: schedules written by hand are simulated."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.support.programs import ALL_REDUCE, CONSTANT, SUM, between_slices, fake_mesh, loop, program
from tfm_jax.compare.compiled import hlo
from tfm_jax.compare.forecast.tpu import TpuForecast as Forecast
from tfm_jax.runtime.chips import TPUS

CHIP = TPUS["v5e"]
INNER = 2048


def schedule(*lines):
  """A program of operations in this order; the fusion `%rowsM` multiplies [M, INNER] by [INNER, INNER]."""
  rows = sorted({int(n) for line in lines for n in re.findall(r"rows(\d+)", line)})
  fusions = "".join(
    f"""%rows{m} (x: bf16[{m},{INNER}], w: bf16[{INNER},{INNER}]) -> bf16[{m},{INNER}] {{
  %x = bf16[{m},{INNER}]{{1,0:T(8,128)(2,1)}} parameter(0)
  %w = bf16[{INNER},{INNER}]{{1,0:T(8,128)(2,1)}} parameter(1)
  ROOT %y = bf16[{m},{INNER}]{{1,0:T(8,128)(2,1)}} convolution(%x, %w), dim_labels=bf_io->bf
}}

"""
    for m in rows
  )
  inputs = "".join(f"  %in{m} = bf16[{m},{INNER}]{{1,0}} parameter({n + 2})\n" for n, m in enumerate(rows))
  return program(
    f"""  %w = bf16[{INNER},{INNER}]{{1,0}} parameter(0)
  %piece = bf16[512,{INNER}]{{1,0}} parameter(1)
{inputs}"""
    + "\n".join(lines)
    + f"\n  ROOT %end = bf16[{INNER},{INNER}]{{1,0}} bitcast(%w)",
    fusions,
  )


def matmul(name, rows):
  return (
    f"  %{name} = bf16[{rows},{INNER}]{{1,0}} fusion(%in{rows}, %w), kind=kOutput, calls=%rows{rows}, "
    f'backend_config={{"estimated_cycles":"1000"}}'
  )


def gather(name, groups="[2,4]<=[8]"):
  """Start and done of an all-gather of 8 MiB, over b unless `groups` says otherwise."""
  size = 4 if groups == "[2,4]<=[8]" else 2
  part = f"bf16[{INNER // size},{INNER}]{{1,0}}"
  whole = f"bf16[{INNER},{INNER}]{{1,0}}"
  return (
    f"  %{name} = ({part}, {whole}) all-gather-start(%piece), channel_id=1, replica_groups={groups}, dimensions={{0}}",
    f"  %{name}d = {whole} all-gather-done(%{name})",
  )


def synchronous(start):
  """The synchronous form of the same collective."""
  return re.sub(r"\(bf16.*?, (bf16\S+)\) all-gather-start", r"\1 all-gather", start)


def forecast(*lines, chip=CHIP, mesh=None):
  seconds, bound_by = Forecast(hlo.parse(schedule(*lines)), mesh or fake_mesh(), chip).seconds()
  assert seconds.total == pytest.approx(seconds.compute + seconds.hbm + seconds.communication)
  assert min(dataclasses.asdict(seconds).values()) >= 0
  return seconds, bound_by


LARGE, SMALL = 65536, 512  # rows of products that take longer, and shorter, than the gather
START, DONE = gather("g")


def test_a_product_takes_about_its_share_of_the_peak():
  seconds, bound_by = forecast(matmul("m", LARGE))
  at_peak = 2 * LARGE * INNER**2 / CHIP.peak
  assert at_peak <= seconds.total <= 1.5 * at_peak
  assert bound_by == "compute" and seconds.compute == seconds.total and not seconds.hidden


def test_a_product_of_few_rows_waits_for_its_weights():
  seconds, bound_by = forecast(matmul("m", 8))
  read = INNER**2 * 2 / CHIP.hbm
  assert read <= seconds.total <= 2 * read
  assert bound_by == "hbm" and seconds.hbm == seconds.total


def test_a_gather_takes_about_its_bytes_over_its_links():
  seconds, bound_by = forecast(START, DONE)
  one_link = INNER**2 * 2 * 3 / 4 / CHIP.link
  assert one_link / 4 <= seconds.total <= 1.5 * one_link
  assert bound_by == "communication over b" and seconds.communication == seconds.total


def test_a_collective_hides_behind_a_product_that_runs_meanwhile():
  product_alone, gather_alone = forecast(matmul("m", LARGE))[0], forecast(START, DONE)[0]
  assert product_alone.total > gather_alone.total
  behind, bound_by = forecast(START, matmul("m", LARGE), DONE)
  assert behind.total == pytest.approx(product_alone.total) and behind.communication == 0
  assert behind.hidden == pytest.approx(gather_alone.communication)
  assert bound_by == "compute"
  for lines in ((matmul("m", LARGE), START, DONE), (START, DONE, matmul("m", LARGE))):
    exposed, _ = forecast(*lines)
    assert exposed.total == pytest.approx(product_alone.total + gather_alone.total)
    assert exposed.communication == pytest.approx(gather_alone.communication)
    assert exposed.hidden == pytest.approx(0, abs=1e-12)


def test_what_a_short_product_leaves_of_a_collective_is_exposed():
  product_alone, gather_alone = forecast(matmul("m", SMALL))[0], forecast(START, DONE)[0]
  assert product_alone.total < gather_alone.total
  seconds, bound_by = forecast(START, matmul("m", SMALL), DONE)
  assert seconds.total == pytest.approx(gather_alone.total)
  assert seconds.hidden == pytest.approx(product_alone.total)
  assert seconds.communication == pytest.approx(gather_alone.total - product_alone.total)
  assert bound_by == "communication over b"


def test_collectives_over_the_same_links_queue_and_over_others_do_not():
  over_a = gather("h", "[4,2]<=[2,4]T(1,0)")
  b, a = forecast(START, DONE)[0].total, forecast(*over_a)[0].total
  again = gather("i")
  assert forecast(START, again[0], DONE, again[1])[0].total == pytest.approx(2 * b)
  assert forecast(START, over_a[0], DONE, over_a[1])[0].total == pytest.approx(max(a, b))


def permute(name, step):
  """Start and done of a permutation of 8 MiB along b, to the next device (step 1) or the previous one (-1)."""
  pairs = ",".join(f"{{{r * 4 + n},{r * 4 + (n + step) % 4}}}" for r in range(2) for n in range(4))
  whole = f"bf16[{INNER},{INNER}]{{1,0}}"
  return (
    f"  %{name} = ({whole}, {whole}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) collective-permute-start(%w), channel_id=3, "
    f"source_target_pairs={{{pairs}}}",
    f"  %{name}d = {whole} collective-permute-done(%{name})",
  )


def test_permutations_in_one_direction_queue():
  on, on_too = permute("on", 1), permute("too", 1)
  alone = forecast(*on)[0].total
  assert INNER**2 * 2 / CHIP.link <= alone <= 1.5 * INNER**2 * 2 / CHIP.link
  assert forecast(on[0], on_too[0], on[1], on_too[1])[0].total == pytest.approx(2 * alone)


def test_permutations_in_both_directions_overlap():
  on, back = permute("on", 1), permute("back", -1)
  assert forecast(on[0], back[0], on[1], back[1])[0].total == pytest.approx(forecast(*on)[0].total)


def test_collectives_between_slices_take_the_network_and_hide_too():
  part = f"bf16[512,{INNER}]{{1,0}}"
  send, recv, sent, received = (line.replace("%p,", "%piece,") for line in between_slices("ALL_REDUCE", part, part))
  mesh = fake_mesh(slices=2)
  seconds, bound_by = forecast(send, recv, sent, received, mesh=mesh)
  over_network = 512 * INNER * 2 / CHIP.network
  assert over_network <= seconds.communication <= 1.5 * over_network and bound_by == "communication over a"
  behind, _ = forecast(send, recv, sent, matmul("m", LARGE), received, mesh=mesh)
  product_alone = forecast(matmul("m", LARGE))[0].total
  assert behind.total == pytest.approx(max(seconds.total, product_alone))
  assert behind.hidden == pytest.approx(min(seconds.total, product_alone))


def host(name, kind="to"):
  """Start and done of a copy of 2 MiB to the host, into a larger array there, or of one from there."""
  there, part = f"bf16[8,512,{INNER}]{{2,1,0:T(8,128)(2,1)S(5)}}", f"bf16[1,512,{INNER}]{{2,1,0:T(8,128)(2,1)}}"
  op, shapes, done = {
    "to": ("dynamic-update-slice", f"(({there}, {part}, s32[]), {there}, u32[]{{:S(2)}})", there),
    "from": ("dynamic-slice", f"(({there}, s32[]), {part}, u32[]{{:S(2)}})", part),
  }[kind]
  return f"  %{name} = {shapes} {op}-start(%piece)", f"  %{name}d = {done} {op}-done(%{name})"


def test_copies_to_and_from_the_host_take_its_link_in_either_direction():
  (to, to_done), (back, back_done), again = host("h"), host("i", "from"), host("j")
  alone, bound_by = forecast(to, to_done)
  assert alone.total == alone.communication == pytest.approx(512 * INNER * 2 / CHIP.host)
  assert bound_by == "communication over host"
  assert forecast(to, back, to_done, back_done)[0].total == pytest.approx(alone.total)
  assert forecast(to, again[0], to_done, again[1])[0].total == pytest.approx(2 * alone.total)
  hidden, _ = forecast(to, matmul("m", LARGE), to_done)
  assert hidden.communication == 0 and hidden.hidden == pytest.approx(alone.total)


def test_a_synchronous_collective_is_exposed():
  whole = synchronous(START)
  assert forecast(whole)[0] == forecast(START, DONE)[0]
  seconds, _ = forecast(matmul("m", LARGE), whole, matmul("n", LARGE))
  assert seconds.communication == pytest.approx(forecast(START, DONE)[0].total)
  assert seconds.hidden == pytest.approx(0, abs=1e-12)


def test_the_time_of_a_loop_is_multiplied_by_its_trips():
  text = loop(CONSTANT)
  total = lambda text: Forecast(hlo.parse(text), fake_mesh(), CHIP).seconds()[0].total
  once = total(program(f"  ROOT %r = {ALL_REDUCE}", SUM))
  assert total(text) == pytest.approx(10 * once) and once > 0


LINES = some.permutations(
  [START, DONE, matmul("m", LARGE), matmul("n", SMALL), matmul("o", 8), synchronous(gather("h")[0])]
)


@settings(max_examples=40)
@given(LINES, some.sampled_from(["link", "network", "hbm", "peak"]), some.floats(1, 100), some.sampled_from([1, 2]))
def test_a_slower_part_never_makes_a_step_faster(lines, part, factor, slices):
  first, last = lines.index(DONE), lines.index(START)
  if first < last:
    lines = [*lines]
    lines[first], lines[last] = START, DONE
  mesh = fake_mesh({"b": 8, "a": 1}, slices)
  lines = [line.replace("[2,4]<=[8]", "[1,8]<=[8]") for line in lines]
  slower = dataclasses.replace(CHIP, **{part: getattr(CHIP, part) / factor})
  before, after = forecast(*lines, mesh=mesh)[0].total, forecast(*lines, mesh=mesh, chip=slower)[0].total
  assert after >= before * (1 - 1e-9)
  assert slices > 1 or part != "network" or after == before


def test_a_longer_line_or_more_slices_never_make_a_collective_faster():
  """An all-gather of the same 8 MiB, on lines whose ends are not connected."""
  open_ended = dataclasses.replace(CHIP, ring=10**6)

  def seconds(devices, slices=1):
    lines = [line.replace("[2,4]<=[8]", f"[1,{devices}]<=[{devices}]") for line in gather("g")]
    return forecast(*lines, chip=open_ended, mesh=fake_mesh({"b": devices, "a": 1}, slices))[0].total

  lengths = [seconds(n) for n in (2, 4, 8, 16, 64, 256)]
  assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
  apart = [seconds(16, n) for n in (1, 2, 4)]
  assert apart == sorted(apart) and apart[0] < apart[1]


def test_a_closed_ring_is_faster_than_a_line():
  lines = [line.replace("[2,4]<=[8]", "[1,16]<=[16]") for line in gather("g")]
  total = lambda ring: (
    forecast(*lines, chip=dataclasses.replace(CHIP, ring=ring), mesh=fake_mesh({"b": 16, "a": 1}))[0].total
  )
  assert total(16) < 0.6 * total(10**6)


def test_what_the_forward_loop_stores_for_the_backward_loop():
  def stored(block):
    """Stored bytes, as a multiple of one residual stream [8, 32] per block."""
    loss = lambda ws, x: jax.lax.scan(lambda x, w: (block(x, w), None), x, ws)[0].sum()
    text = jax.jit(jax.grad(loss)).lower(jnp.ones((6, 32, 32)), jnp.ones((8, 32))).compile().as_text()
    return hlo.stored_bytes(hlo.parse(text)) / (6 * 8 * 32 * 4)

  block = lambda x, w: jnp.sin(jnp.sin(x @ w))
  assert stored(jax.checkpoint(block)) == 1  # the input of each
  assert stored(block) == 3  # the input, and two cosines


@pytest.mark.parametrize(("size", "measured"), [(2048, 679e12), (4096, 893e12), (32768, 956e12)])
def test_matrix_products_on_tpu7x_are_as_fast_as_google_measured(size, measured):
  """A single efficiency for all sizes and generations would give 1061 TFLOP/s for each of them."""
  square = f"bf16[{size},{size}]{{1,0:T(8,128)(2,1)}}"
  lines = [f"  %{name} = {square} parameter({n})" for n, name in enumerate("ab")]
  cycles = 'backend_config={"estimated_cycles":"1"}'
  product = f"  ROOT %c = {square} convolution(%a, %b), dim_labels=bf_io->bf, {cycles}"
  module = hlo.parse(program("\n".join([*lines, product])))
  seconds, bound = Forecast(module, fake_mesh(), TPUS["tpu7x"]).seconds()
  assert 2 * size**3 / seconds.total == pytest.approx(measured, rel=0.03) and bound == "compute"
