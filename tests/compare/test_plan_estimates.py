"""Estimates of a plan, held against programs that the TPU compiler makes: memory, time, and which of two is faster."""

import functools
import importlib.util
import itertools

import pytest

from tests.support.launching import ROOT, tiny
from tfm_jax.compare.compiled.minimum import minimum_bytes
from tfm_jax.compare.forecast import calibration
from tfm_jax.compare.forecast.topology import chip_of
from tfm_jax.compare.plan.estimate import Step
from tfm_jax.compare.plan.paper import Paper
from tfm_jax.compare.plan.space import Candidate
from tfm_jax.compare.plan.torus import device_count, slices_of
from tfm_jax.compare.program import build_program
from tfm_jax.compare.worker import FORECAST_ENV, run_worker
from tfm_jax.sharding.strategy import AXES, mesh_sizes
from tfm_jax.training.compiled.memory import bytes_per_device
from tfm_jax.training.config import load, to_dict

MEMORY_ERROR, TIME_ERROR = 0.2, 0.25  # relative to the compiled program
CLEAR = 1.15  # ratio of two forecasts from which on the estimates must rank them alike
MODEL = {"num_layers": 8, "embed_dim": 2048, "num_heads": 16, "mlp_dim": 5632, "max_positions": 2048}
TOPOLOGY, ROWS, TOKENS = "v5e:4x4", 64, 2048
# strategy, data, model, remat, microbatches
PROGRAMS = (
  ("fsdp", 16, 1, "none", 2),
  ("fsdp_tp", 4, 4, "dots", 4),
)


@functools.cache
def decoder():
  """The configuration of all programs."""
  others = {"data.seq_len": TOKENS, "train.batch_size": ROWS, "tokenizer.vocab_size": 32_000}
  return load(str(ROOT / "configs/decoder.py"), {f"model.{key}": value for key, value in MODEL.items()} | others)


@functools.cache
def paper():
  return Paper(decoder())


def estimate(strategy, data, model, remat, microbatches, topology=TOPOLOGY):
  sizes = dict.fromkeys(AXES, 1) | {"data": data, "model": model}
  return paper().estimate(topology, strategy, sizes, remat, microbatches)


@pytest.fixture(scope="module")
def programs():
  """(layout, estimate, forecast) of each program."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("needs the TPU compiler: pip install 'jax[tpu]'")
  found = []
  for strategy, data, model, remat, microbatches in PROGRAMS:
    one = Candidate(TOPOLOGY, strategy, (1, data, model, 1, 1), remat, microbatches)
    request = {"task": "forecast", "topology": TOPOLOGY, "strategy": one.name, "parameter": "", "steps": 1}
    forecast = run_worker(request | {"config": to_dict(one.of(decoder()))}, FORECAST_ENV)["result"]
    assert forecast["status"] == "ok", forecast["reason"]
    found.append((one.name, estimate(strategy, data, model, remat, microbatches), forecast))
  return found


@pytest.mark.slow
def test_memory_is_near_that_of_the_compiled_program(programs):
  for name, expected, forecast in programs:
    assert expected.memory == pytest.approx(forecast["memory_bytes"]["peak"], rel=MEMORY_ERROR), name


@pytest.mark.slow
def test_time_is_near_that_of_the_forecast_and_ranks_alike(programs):
  for name, expected, forecast in programs:
    assert expected.seconds == pytest.approx(forecast["forecast_step_seconds"]["total"], rel=TIME_ERROR), name
  for (_, one, fast), (_, other, slow) in itertools.permutations(programs, 2):
    if slow["forecast_step_seconds"]["total"] > CLEAR * fast["forecast_step_seconds"]["total"]:
      assert other.seconds > one.seconds


# --- without a compiler


PUBLISHED = [run for run in calibration.read() if run["run"] in ("v5e_16b", "v5e_16b_4_slices", "v5p_512b")]


@pytest.mark.slow
@pytest.mark.parametrize("run", PUBLISHED, ids=lambda run: run["run"])
def test_published_runs_are_estimated_as_they_were_forecast(run):
  """Slices of up to 1,024 chips, models of up to 512 billion parameters: beyond what a test can compile."""
  config = load(str(ROOT / f"configs/decoder.py:{run['run']}"))
  large, topology = Paper(config), run["topology"]
  mesh = mesh_sizes(config.sharding, device_count(topology), large.admits, slices_of(topology))
  expected = large.estimate(topology, config.sharding.strategy, mesh, config.model.remat, 1)
  assert expected.seconds == pytest.approx(float(run["forecast"]), rel=TIME_ERROR)
  assert expected.memory < chip_of(topology).memory  # they ran


@pytest.mark.parametrize("strategy", ["dp", "fsdp_tp"])
def test_state_and_bytes_sent_are_those_of_the_program_itself(experiment, strategy):
  """On eight devices that exist: the mesh of the estimate has none."""
  config = tiny(experiment, sharding__strategy=strategy)
  program, small = build_program(config), Paper(config)
  sizes = tuple(program.placement.mesh.shape.values())
  assert small._placed(strategy, sizes).state == bytes_per_device(program.state)
  for remat, count in (("none", 1), ("none", 3), ("full", 1)):
    model = build_program(tiny(experiment, sharding__strategy=strategy, model__remat=remat))
    assert small._minimum(strategy, sizes, remat, count) == pytest.approx(minimum_bytes(model, count))


@pytest.mark.parametrize("family", ["gpt", "transformer"])
def test_what_is_left_of_the_products_is_the_output_layer(experiment, family):
  """The linears of all blocks and attention, counted from shapes, are all other FLOPs of the gradient."""
  small = Paper(tiny(experiment, family))
  sizes, chip = tuple((dict.fromkeys(AXES, 1) | {"data": 4}).values()), chip_of("v5e:2x2")
  step = Step(small._placed("dp", sizes), small.linears, small.lengths[0], False, chip, "none", 1, True)
  flops = 4 * step.rest() * chip.peak * chip.matrix
  assert flops == pytest.approx(6 * 8 * small.lengths[-1] * 384 * 32, rel=0.02)  # rows, tokens, ids, width


def test_remat_trades_memory_for_time():
  none, dots, full = (estimate("fsdp", 16, 1, remat, 1) for remat in ("none", "dots", "full"))
  assert none.activations > dots.activations > full.activations
  assert none.compute < dots.compute < full.compute


def test_microbatches_trade_memory_for_traffic():
  one, four = (estimate("fsdp", 16, 1, "full", count) for count in (1, 4))
  assert one.activations == pytest.approx(4 * four.activations) and one.gradients < four.gradients
  assert one.hbm < four.hbm and one.hidden < four.hidden


def test_a_slice_twice_as_large_halves_the_work():
  small, large = (estimate("fsdp", n, 1, "full", 1, topology) for n, topology in ((16, "v5e:4x4"), (32, "v5e:4x8")))
  assert 1.8 < small.compute / large.compute <= 2.05 and small.state == pytest.approx(2 * large.state, rel=0.01)


def test_another_batch_is_another_paper_without_tracing():
  base = estimate("fsdp", 16, 1, "full", 1)
  sizes = dict.fromkeys(AXES, 1) | {"data": 16}
  twice = paper().with_batch(2 * ROWS).estimate(TOPOLOGY, "fsdp", sizes, "full", 2)
  assert twice.compute == pytest.approx(2 * base.compute, rel=0.02) and twice.activations == base.activations
