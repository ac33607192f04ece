"""What XLA:TPU makes of the strategies: programs compiled for described TPUs, held against the analytic minimum.

Programs of four and of two blocks differ by two blocks: embeddings and output layer cancel.
"""

import functools
import importlib.util
import os
import subprocess
import sys

import pytest
from launching import ROOT

from tfm_jax.compare import compare as comparing
from tfm_jax.training.config import load, to_dict

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'jax[tpu]'"
)

EMBED, MLP, TOKENS, ROWS, DEVICES = 1024, 4096, 2048, 32, 16
WEIGHTS = 4 * EMBED * EMBED + 3 * EMBED * MLP  # of a block
CLOSE = 0.05


@functools.cache
def row(strategy, remat, layers):
  """The forecast of a small decoder for 16 chips, made in a process of its own."""
  model = {"num_layers": layers, "embed_dim": EMBED, "num_heads": 8, "head_dim": 128, "mlp_dim": MLP, "remat": remat}
  others = {"data.seq_len": TOKENS, "train.batch_size": ROWS, "train.microbatches": 1, "tokenizer.vocab_size": 32_000}
  config = load(str(ROOT / "configs/decoder.py"), {f"model.{key}": value for key, value in model.items()} | others)
  request = {"task": "forecast", "topology": "v5e:4x4", "strategy": strategy, "parameter": "", "steps": 1}
  made = comparing._ask(request | {"config": to_dict(config)}, comparing._DESCRIBED)
  assert "row" in made, made
  assert made["row"]["status"] == "ok", made["row"]["reason"]
  return made["row"]


def sent(row, axes, *kinds):
  """(count, bytes) of the collectives over these mesh axes."""
  chosen = [c for c in row["collectives"] if c["axes"] == axes and (not kinds or c["kind"] in kinds)]
  return sum(c["count"] for c in chosen), sum(c["bytes"] for c in chosen)


def difference(large, small, axes, *kinds):
  """(count, bytes, analytic minimum) that one program has more than the other."""
  (count, size), (count_small, size_small) = sent(large, axes, *kinds), sent(small, axes, *kinds)
  return count - count_small, size - size_small, large["minimum_bytes"][axes] - small["minimum_bytes"][axes]


def test_fsdp_sends_its_weights_and_their_gradients_and_nothing_else():
  large, small = (row("fsdp", "full", layers) for layers in (4, 2))
  whole = 2 * WEIGHTS * 2 * (DEVICES - 1) / DEVICES  # of two blocks in bfloat16, around a ring
  _, size, minimum = difference(large, small, "data")
  assert minimum == pytest.approx(3 * whole, rel=0.001)  # two gathers, one scattering
  assert minimum * 0.999 <= size <= minimum * (1 + CLOSE)
  # Each block gathers its four weights twice, and no activations.
  gathers, gathered, _ = difference(large, small, "data", "all-gather")
  assert gathers == 2 * 4 * 2 and gathered == pytest.approx(2 * whole, rel=0.001)
  assert {c["axes"] for c in large["collectives"]} == {"data"}


def test_tp_reduces_the_stream_four_times_a_block_and_once_more_with_remat():
  large, small = row("tp", "full", 4), row("tp", "none", 2)
  assert large["mesh"]["model"] == 8
  stream = ROWS // 2 * TOKENS * EMBED * 2
  count, size, minimum = difference(large, small, "model")
  assert count == 4 * (4 + 1) - 2 * 4
  assert minimum == pytest.approx(count * 2 * stream * 7 / 8)
  assert minimum * 0.999 <= size <= minimum * (1 + CLOSE)
  for one in (large, small):
    assert sent(one, "model", "all-gather") == sent(one, "data", "all-gather") == (0, 0)
    assert {c["axes"] for c in one["collectives"]} == {"data", "model"}
  # Gradients of the parts of the weights, over the two halves of the batch.
  _, size, minimum = difference(large, small, "data")
  assert minimum == pytest.approx(2 * 2 * WEIGHTS / 8 * 2 / 2, rel=0.01)
  assert minimum * 0.999 <= size <= minimum * (1 + CLOSE)


def test_products_of_a_block_are_those_of_its_formula():
  """Forward and backward, and forward again but for the last linear; splash attention skips what a mask hides."""
  made = row("fsdp", "full", 4)["flops"] - row("fsdp", "full", 2)["flops"]
  tokens = 2 * ROWS * TOKENS / DEVICES  # of two blocks
  linears = tokens * (8 * WEIGHTS - 2 * EMBED * MLP)
  attention = (2 + 2 + 7) * tokens * 2 * EMBED * TOKENS  # products of queries with all keys
  assert linears + attention / 2 <= made <= linears + attention * 3 / 4


@pytest.mark.parametrize(("strategy", "remat", "layers"), [("fsdp", "full", 4), ("tp", "none", 2)])
def test_a_forecast_is_whole(strategy, remat, layers):
  made = row(strategy, remat, layers)
  seconds = made["forecast_step_seconds"]
  assert seconds["total"] == pytest.approx(seconds["compute"] + seconds["hbm"] + seconds["communication"])
  assert seconds["total"] > made["flops"] / 197e12  # the peak of a v5e
  assert 0 < made["mfu"] < 1 and made["fits"] and made["over_bytes"] == 0
  assert made["tokens_per_second_per_device"] == pytest.approx(ROWS * TOKENS / DEVICES / seconds["total"])
  memory = dict(made["memory_bytes"])
  assert memory.pop("peak") == sum(memory.values()) < made["memory_limit"]


def test_more_blocks_take_longer():
  large, small = (row("fsdp", "full", layers)["forecast_step_seconds"] for layers in (4, 2))
  assert large["total"] > small["total"] and large["compute"] > small["compute"]


MESHES = """
from tfm_jax.compare.topology import topology_devices
from tfm_jax.compare.work import with_strategy
from tfm_jax.training.program import build_model
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
  env = os.environ | comparing._DESCRIBED
  done = subprocess.run([sys.executable, "-c", MESHES], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  made = [line.split() for line in done.stdout.splitlines()]
  assert [row[2] for row in made] == ["512"] * 6 + ["32"] * 6
  # The copies of hsdp are the slices.
  assert ["2*v5e:4x4", "hsdp", "32", "2", "True"] in made
