"""Forecasts for GPUs: the rules, schedules written by hand, and small programs compiled for GPUs that are not here."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.support.launching import environment
from tests.support.programs import fake_mesh, program
from tfm_jax.compare.compiled import hlo
from tfm_jax.compare.compiled.collectives import collectives
from tfm_jax.compare.compiled.products import Attention, Gemm, executed_flops
from tfm_jax.compare.forecast.gpu import GpuForecast, attention_seconds, collective_seconds, gemm_seconds
from tfm_jax.compare.forecast.topology import ALLOCATED_VARIABLE, chip_of, compiler_options, topology_devices
from tfm_jax.compare.plan.torus import Wires, wires
from tfm_jax.errors import UserError
from tfm_jax.runtime.chips import GPUS
from tfm_jax.sharding.placement import make_mesh
from tfm_jax.sharding.strategy import AXES

H100, A100 = GPUS["h100"], GPUS["a100"]
COMPILER = pytest.mark.skipif(
  importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the GPU compiler: pip install -e '.[forecast]'"
)

# --- rules


@pytest.mark.parametrize("chip", GPUS.values(), ids=GPUS)
def test_larger_products_are_more_efficient_up_to_the_best_that_was_measured(chip):
  reached = [
    Gemm(1, n, n, n, 2).flops / gemm_seconds(chip, Gemm(1, n, n, n, 2)) / chip.peak for n in 2 ** np.arange(8, 15)
  ]
  assert reached == sorted(reached) and reached[0] < 0.1 and 0.9 * chip.matrix < reached[-1] <= chip.matrix


def test_a_tile_more_than_there_are_cores_costs_another_wave():
  full, more = (gemm_seconds(H100, Gemm(1, 128 * n, 256, 512, 2)) for n in (H100.cores, H100.cores + 1))
  assert more > 1.3 * full
  assert gemm_seconds(H100, Gemm(1, 128 * H100.cores, 256, 512, 4)) == pytest.approx(2 * full)  # TF32


def test_a_deep_product_with_few_tiles_is_split():
  """As gradients of weights are: eight tiles alone would keep all but eight cores idle."""
  deep = Gemm(1, 128, 256, 65536, 2)
  assert gemm_seconds(H100, deep) < deep.flops / (H100.peak * H100.matrix * 8 / H100.cores)


@pytest.mark.parametrize(
  ("chip", "width", "published"),
  [(H100, 64, 410e12), (H100, 128, 600e12), (A100, 64, 185e12), (A100, 128, 215e12)],
  ids=lambda value: "" if isinstance(value, float) else str(getattr(value, "kinds", [value])[0]),
)
def test_attention_is_as_fast_as_its_authors_measured(chip, width, published):
  """Forward, as in the plots of FlashAttention 3 (for cuDNN) and 2."""
  call = Attention(16 * 8192**2, width, 2)
  assert call.flops / attention_seconds(chip, call) == pytest.approx(published, rel=0.12)


KINDS = some.sampled_from(["all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"])


@given(KINDS, some.floats(1, 1e9), some.floats(1, 10), some.sampled_from([1, 2, 16]), some.sampled_from([2, 4, 8]))
def test_more_bytes_or_more_hosts_never_make_a_collective_faster(kind, size, factor, nodes, members):
  for chip in (H100, A100, GPUS["gb200"]):
    before = collective_seconds(chip, kind, size, nodes, members)
    assert collective_seconds(chip, kind, size * factor, nodes, members) >= before
    whole = size / 2 if kind == "reduce-scatter" else size  # of which each device has half as much on twice as many
    assert collective_seconds(chip, kind, whole, 2 * nodes, members) >= before * (1 - 1e-9)


def test_small_collectives_cost_latency_and_large_ones_bandwidth():
  gather = lambda size, nodes=1: collective_seconds(H100, "all-gather", size, nodes, 8)
  assert gather(1e5) < 1.1 * gather(1e3) < 20e-6
  assert gather(1e10) == pytest.approx(1e10 * 7 / 8 / 370e9, rel=0.01)
  assert gather(1e10, 16) == pytest.approx(1e10 / 360e9, rel=0.02)  # eight cards of 50 GB/s, of which 90 %
  reduce = collective_seconds(H100, "all-reduce", 1e10, 1, 8)
  assert reduce == pytest.approx(1e10 / 275e9, rel=0.01)  # the switches add up
  assert collective_seconds(A100, "all-reduce", 1e10, 1, 8) == pytest.approx(
    2e10 * 7 / 8 / (300e9 * 370 / 450), rel=0.01
  )


# --- programs as XLA:GPU writes them

PRODUCT = (
  '  %m = (bf16[4096,4096]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", '
  'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
  '"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]},"epilogue":"DEFAULT"}}'
)
START = (
  "  %g = ((bf16[512,4096]{1,0}, bf16[512,64]{1,0}), (bf16[4096,4096]{1,0}, bf16[4096,64]{1,0})) "
  "all-gather-start(%p, %q), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}"
)
DONE = "  %gd = (bf16[4096,4096]{1,0}, bf16[4096,64]{1,0}) all-gather-done(%g)"


def schedule(*lines):
  inputs = (("x", "bf16[4096,4096]"), ("w", "bf16[4096,4096]"), ("p", "bf16[512,4096]"), ("q", "bf16[512,64]"))
  parameters = [f"  %{name} = {shape}{{1,0}} parameter({n})" for n, (name, shape) in enumerate(inputs)]
  return hlo.parse(program("\n".join([*parameters, *lines, "  ROOT %end = bf16[4096,4096]{1,0} bitcast(%w)"])))


def seconds(*lines, hosts=1):
  mesh = fake_mesh({"a": 8}, hosts)
  return GpuForecast(schedule(*lines), mesh, H100).seconds()


def test_a_call_of_cublas_is_a_product():
  assert executed_flops(schedule(PRODUCT)) == 2 * 4096**3
  forecast, bound = seconds(PRODUCT)
  assert bound == "compute" and forecast.total == pytest.approx(gemm_seconds(H100, Gemm(1, *3 * [4096], 2)) + 2.5e-6)


def test_a_gather_hides_behind_the_product_between_its_start_and_its_done():
  alone, product = seconds(START, DONE)[0], seconds(PRODUCT)[0]
  assert alone.total == alone.communication and alone.hidden == 0
  hidden, exposed = seconds(START, PRODUCT, DONE)[0], seconds(START, DONE, PRODUCT)[0]
  assert hidden.total == pytest.approx(product.total) and hidden.hidden == pytest.approx(alone.total)
  assert exposed.total == pytest.approx(product.total + alone.total)
  assert seconds(START, DONE, hosts=4)[0].total > alone.total


def test_an_all_reduce_that_names_its_operand_beside_its_result_is_counted_once():
  start = "  %r = ((f32[1024]{0}), f32[1024]{0}) all-reduce-start(%v), replica_groups=[1,8]<=[8], to_apply=%sum"
  other = "  %r = f32[1024]{0} all-reduce-start(%v), replica_groups=[1,8]<=[8], to_apply=%sum"
  sent = [
    collectives(schedule("  %v = f32[1024]{0} bitcast(%x)", line), fake_mesh({"a": 8})) for line in (start, other)
  ]
  assert sent[0] == sent[1] and sent[0][0].bytes == 2 * 4096 * 7 / 8


def test_cudnn_attention_counts_the_tiles_that_the_mask_leaves():
  def line(mask, name, outputs):
    shape = '"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "12", "1024", "1024"]}'
    return (
      f'  %f = ({outputs}, u8[0]{{0}}) custom-call(%h, %h, %h), custom_call_target="__cudnn$fmhaSoftmax{name}", '
      f'backend_config={{"cudnn_fmha_backend_config": {{{shape}, "mask_type": "{mask}", "sliding_window_length": 0}}}}'
    )

  head, out = "  %h = bf16[2,1024,12,64]{3,2,1,0} bitcast(%x)", "bf16[2,12,1024,64]{3,1,2,0}"
  count = lambda *args: executed_flops(schedule(head, line(*args)))
  assert count("NO_MASK", "", out) == 2 * 2 * 2 * 12 * 1024**2 * 64
  assert count("CAUSAL", "", out) == count("NO_MASK", "", out) * 9 / 16
  assert count("NO_MASK", "Backward", ", ".join(3 * [out])) == 2.5 * count("NO_MASK", "", out)


def test_an_asynchronous_fusion_takes_its_traffic_where_it_starts():
  line = (
    "  %f = ((bf16[4096,4096]{1,0}), bf16[4096,4096]{1,0}, u32[]) fusion-start(%x), kind=kLoop, calls=%none\n"
    "  %fd = bf16[4096,4096]{1,0} fusion-done(%f)"
  )
  forecast, bound = seconds(line)
  assert bound == "hbm" and forecast.total == pytest.approx(2 * 4096**2 * 2 / (H100.hbm * 0.85) + 2.5e-6)


# --- topologies


def test_the_allocator_leaves_a_share_of_the_memory(monkeypatch):
  monkeypatch.delenv(ALLOCATED_VARIABLE, raising=False)
  assert chip_of("h100:8").memory == int(0.75 * H100.memory)
  monkeypatch.setenv(ALLOCATED_VARIABLE, "0.9")
  assert chip_of("h100:8").memory == int(0.9 * H100.memory)
  monkeypatch.setenv(ALLOCATED_VARIABLE, "most")
  with pytest.raises(UserError, match="MEM_FRACTION=most is not a number"):
    chip_of("h100:8")


def test_the_outermost_axis_crosses_hosts():
  found = wires("4*h100:8", dict.fromkeys(AXES, 1) | {"data": 16, "model": 2})
  assert found == {"data": Wires(1.0, 3, 4), "model": Wires(1.0, 1, 1)}


@COMPILER
def test_described_gpus_have_hosts_and_the_name_of_real_ones():
  chip, devices = topology_devices("2*h200:8")
  mesh = make_mesh(dict.fromkeys(AXES, 1) | {"data": 4, "model": 4}, devices)
  hosts = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(4, 4)
  assert devices[0].device_kind == chip.kinds[0] == "NVIDIA H200" and (hosts == [[0], [0], [1], [1]]).all()
  assert compiler_options("2*h200:8") and not compiler_options("v5e:4x4")


@COMPILER
@pytest.mark.slow
def test_the_command_forecasts_for_hosts_of_gpus(experiment, tmp_path):
  command = [sys.executable, "-m", "tfm_jax.compare", f"--config={experiment}:gpt", "--strategies=hsdp"]
  command += ["--topology=2*h100:2", f"--out={tmp_path / 'out'}", "--config.train.batch_size=8"]
  done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  (result,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["strategies"]
  assert result["status"] == "ok" and result["fits"], result["reason"]
  total, parts = result["forecast_step_seconds"]["total"], result["forecast_step_seconds"]
  assert total == pytest.approx(parts["compute"] + parts["hbm"] + parts["communication"]) and total > 0
  assert result["flops"] >= result["model_flops"] > 0 and 0 < result["mfu"] < 1
  assert result["mesh"]["replica"] == 2 and any("replica" in c["axes"] for c in result["collectives"])
  assert "published runs of 2023" in result["calibration_error"]
  entry = json.loads((tmp_path / "out" / "forecasts.jsonl").read_text().splitlines()[0])
  assert entry["device_kinds"] == ["NVIDIA H100 80GB HBM3"] and "jax-cuda13-plugin" in entry["versions"]
