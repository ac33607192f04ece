"""Programs that XLA:TPU compiles for the strategies, compared with the analytic minimum.

The difference of a program of four blocks and one of two is two blocks, without embeddings and output layer.
"""

import functools
import importlib.util
import os
import subprocess
import sys

import pytest

from tests.support.launching import ROOT
from tfm_jax.compare.worker import FORECAST_ENV, run_worker
from tfm_jax.training.config import load, to_dict

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'jax[tpu]'"
)

EMBED, MLP, TOKENS, ROWS, DEVICES = 1024, 4096, 2048, 32, 16
WEIGHTS = 4 * EMBED * EMBED + 3 * EMBED * MLP  # of a block
CLOSE = 0.05


@functools.cache
def result(strategy, remat, layers, attention="auto"):
  """The forecast of a small decoder for 16 chips, compiled in a process of its own."""
  model = {"num_layers": layers, "embed_dim": EMBED, "num_heads": 8, "head_dim": 128, "mlp_dim": MLP, "remat": remat}
  others = {"data.seq_len": TOKENS, "train.batch_size": ROWS, "train.microbatches": 1, "tokenizer.vocab_size": 32_000}
  others |= {"sharding.strategy": strategy, "sharding.attention": attention}
  config = load(str(ROOT / "configs/decoder.py"), {f"model.{key}": value for key, value in model.items()} | others)
  request = {"task": "forecast", "topology": "v5e:4x4", "strategy": strategy, "parameter": "", "steps": 1}
  forecast = run_worker(request | {"config": to_dict(config)}, FORECAST_ENV)["result"]
  assert forecast["status"] == "ok", forecast["reason"]
  return forecast


def sent(program, axes, *kinds):
  """(count, bytes) of the collectives over these mesh axes."""
  chosen = [c for c in program["collectives"] if c["axes"] == axes and (not kinds or c["kind"] in kinds)]
  return sum(c["count"] for c in chosen), sum(c["bytes"] for c in chosen)


def difference(large, small, axes, *kinds):
  """(count, bytes, analytic minimum) of one program minus those of the other."""
  (count, size), (count_small, size_small) = sent(large, axes, *kinds), sent(small, axes, *kinds)
  return count - count_small, size - size_small, large["minimum_bytes"][axes] - small["minimum_bytes"][axes]


@pytest.mark.slow
def test_fsdp_sends_its_weights_and_their_gradients_and_nothing_else():
  large, small = (result("fsdp", "full", layers) for layers in (4, 2))
  whole = 2 * WEIGHTS * 2 * (DEVICES - 1) / DEVICES  # two blocks in bfloat16, with ring algorithms
  _, size, minimum = difference(large, small, "data")
  assert minimum == pytest.approx(3 * whole, rel=0.001)  # two all-gathers, one reduce-scatter
  assert minimum * 0.999 <= size <= minimum * (1 + CLOSE)
  # Each block gathers its four weights twice, and no activations.
  gathers, gathered, _ = difference(large, small, "data", "all-gather")
  assert gathers == 2 * 4 * 2 and gathered == pytest.approx(2 * whole, rel=0.001)
  assert {c["axes"] for c in large["collectives"]} == {"data"}


@pytest.mark.slow
def test_tp_reduces_the_stream_four_times_a_block_and_once_more_with_remat():
  large, small = result("tp", "full", 4), result("tp", "none", 2)
  assert large["mesh"]["model"] == 8
  stream = ROWS // 2 * TOKENS * EMBED * 2
  count, size, minimum = difference(large, small, "model")
  assert count == 4 * (4 + 1) - 2 * 4
  assert minimum == pytest.approx(count * 2 * stream * 7 / 8)
  assert minimum * 0.999 <= size <= minimum * (1 + CLOSE)
  for one in (large, small):
    assert sent(one, "model", "all-gather") == sent(one, "data", "all-gather") == (0, 0)
    assert {c["axes"] for c in one["collectives"]} == {"data", "model"}
  # The gradients of the weights' pieces, over the two halves of the batch.
  _, size, minimum = difference(large, small, "data")
  assert minimum == pytest.approx(2 * 2 * WEIGHTS / 8 * 2 / 2, rel=0.01)
  assert minimum * 0.999 <= size <= minimum * (1 + CLOSE)


@pytest.mark.slow
def test_devices_that_share_sequences_send_keys_values_and_gradients():
  """Splash attention inside the ring: keys, values and, in float32, their gradients. Nothing gathers the stream.

  XLA sends one of the float32 hops in bfloat16, so the program is a little below the formula.
  """
  large, small = (result("cp", "full", layers, "ring") for layers in (4, 2))
  assert large["mesh"]["context"] == 4
  _, size, minimum = difference(large, small, "context")
  part = ROWS // 4 * TOKENS // 4 * EMBED * 2  # of keys, in bfloat16
  assert minimum == pytest.approx(2 * 2 * part * (3 * 3 + 2 * 3 + 1))  # of two blocks
  assert minimum - 2 * 2 * part <= size <= minimum * (1 + CLOSE)
  _, size, minimum = difference(large, small, "data,context")
  assert minimum == pytest.approx(2 * 2 * WEIGHTS * 2 * 15 / 16, rel=0.01)
  assert minimum * 0.999 <= size <= minimum * (1 + CLOSE)


@pytest.mark.slow
def test_products_of_a_block_are_those_of_its_formula():
  """Forward, backward, and forward again without the last linear; splash attention skips masked tiles."""
  flops = result("fsdp", "full", 4)["flops"] - result("fsdp", "full", 2)["flops"]
  tokens = 2 * ROWS * TOKENS / DEVICES  # of two blocks
  linears = tokens * (8 * WEIGHTS - 2 * EMBED * MLP)
  attention = (2 + 2 + 7) * tokens * 2 * EMBED * TOKENS  # products of queries with all keys
  assert linears + attention / 2 <= flops <= linears + attention * 3 / 4


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "remat", "layers"), [("fsdp", "full", 4), ("tp", "none", 2)])
def test_the_figures_of_a_forecast_agree(strategy, remat, layers):
  values = result(strategy, remat, layers)
  seconds = values["forecast_step_seconds"]
  assert seconds["total"] == pytest.approx(seconds["compute"] + seconds["hbm"] + seconds["communication"])
  assert seconds["total"] > values["flops"] / 197e12  # the peak of a v5e
  assert 0 < values["mfu"] < 1 and values["fits"] and values["over_bytes"] == 0
  assert values["tokens_per_second_per_device"] == pytest.approx(ROWS * TOKENS / DEVICES / seconds["total"])
  memory = dict(values["memory_bytes"])
  assert memory.pop("peak") == sum(memory.values()) < values["memory_limit"]


@pytest.mark.slow
def test_more_blocks_take_longer():
  large, small = (result("fsdp", "full", layers)["forecast_step_seconds"] for layers in (4, 2))
  assert large["total"] > small["total"] and large["compute"] > small["compute"]


MESHES = """
from tfm_jax.compare.forecast.topology import topology_devices
from tfm_jax.compare.program import with_strategy
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.config import load, resolve
for topology in ("v5p:8x8x8", "2*v5e:4x4"):
  devices = topology_devices(topology)[1]
  for strategy in ("dp", "fsdp", "tp", "fsdp_tp", "hsdp", "fsdp_tp:model=16"):
    mesh = build_model(resolve(with_strategy(load("configs/decoder.py:7b"), strategy)), 32_000, devices).placement.mesh
    rows = mesh.devices.reshape(mesh.shape["replica"], -1)
    apart = all(len({getattr(d, "slice_index", 0) for d in row}) == 1 for row in rows)
    print(topology, strategy, mesh.size, mesh.shape["replica"], apart)
"""


def test_every_strategy_has_a_mesh_on_a_torus_and_on_slices():
  env = os.environ | FORECAST_ENV
  done = subprocess.run([sys.executable, "-c", MESHES], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  lines = [line.split() for line in done.stdout.splitlines()]
  assert [line[2] for line in lines] == ["512"] * 6 + ["32"] * 6
  # hsdp has one replica per slice.
  assert ["2*v5e:4x4", "hsdp", "32", "2", "True"] in lines
