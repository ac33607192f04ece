"""Comparisons written by hand: measured on eight emulated devices, forecast for 512; strategies of every status."""

import dataclasses
import itertools

import pytest

from tfm_jax.compare.results import (
  COMPILER_CRASH,
  OUT_OF_MEMORY,
  REFUSED,
  Collective,
  Comparison,
  Memory,
  Piece,
  Seconds,
  ShardMap,
  StrategyResult,
)

MIB, GIB = 2**20, 2**30
AXES = ("replica", "data", "model", "context", "stage")
NASTY = '<script>alert("no & never")</script>'


def mesh(**sizes):
  return dict.fromkeys(AXES, 1) | sizes


def shard_map(sizes, spec, shape=(12, 768, 12, 64), axes=("layer", "embed", "heads", None)):
  """The shard map of a parameter, with devices in the order of the mesh."""
  pieces = []
  for device, place in enumerate(itertools.product(*(range(n) for n in sizes.values()))):
    coordinates = dict(zip(sizes, place, strict=True))
    start, stop = [], []
    for length, over in zip(shape, spec, strict=True):
      index, parts = 0, 1
      for axis in filter(None, over.split(",")):
        index, parts = index * sizes[axis] + coordinates[axis], parts * sizes[axis]
      start.append(length * index // parts)
      stop.append(length * (index + 1) // parts)
    pieces.append(Piece(device, coordinates, tuple(start), tuple(stop)))
  return ShardMap("blocks/attn/wq", shape, axes, spec, tuple(pieces))


def measured():
  """Eight emulated devices: four strategies that ran, and one per status that did not."""

  def result(name, sizes, spec, state, step, sent, **more):
    sizes = mesh(**sizes)
    memory = Memory(state, 2 * state, state, 150 * MIB, 61 * MIB, 4 * state + 211 * MIB)
    more = {"microbatches": 1, "compile_seconds": 9.4321, "flops": 3.1e12, "model_flops": 2.4e12} | more
    return StrategyResult(
      name,
      sizes,
      "ok",
      memory_bytes=memory,
      collectives=tuple(sent),
      step_seconds=step,
      step_seconds_range=(step * 0.93, step * 1.21),
      tokens_per_second_per_device=512 / step,
      tokens_per_second_per_device_range=(512 / step / 1.21, 512 / step / 0.93),
      loss_difference=3.1e-7,
      grad_norm_difference=2.2e-6,
      shard_map=shard_map(sizes, spec),
      **more,
    )

  whole = 420 * MIB
  return Comparison(
    kind="measured",
    config="configs/bert_base.py",
    devices="8 x cpu (emulated)",
    topology=None,
    batch_size=32,
    tokens_per_step=4096,
    parameters=109_482_240,
    remat="none",
    notes=(
      "The 8 devices are emulated on one processor: step times and tokens/s are shown, but rank nothing.",
      "Bytes, counts and differences are those of the real programs.",
    ),
    strategies=(
      result("dp", {"data": 8}, ("", "", "", ""), whole, 1.53, [Collective("all-reduce", "data", 1, 735 * MIB)]),
      result(
        "fsdp",
        {"data": 8},
        ("", "data", "", ""),
        whole // 8,
        1.91,
        [Collective("all-gather", "data", 26, 735 * MIB), Collective("reduce-scatter", "data", 13, 367 * MIB)],
        microbatches=2,
      ),
      result(
        "tp",
        {"replica": 2, "model": 4},
        ("", "", "model", ""),
        whole // 4,
        2.4,
        [Collective("all-reduce", "model", 48, 144 * MIB), Collective("all-reduce", "replica", 3, 105 * MIB)],
      ),
      result(
        "fsdp_tp",
        {"data": 4, "model": 2},
        ("", "data", "model", ""),
        whole // 8,
        2.02,
        [
          Collective("all-gather", "data", 26, 157 * MIB),
          Collective("reduce-scatter", "data", 13, 157 * MIB),
          Collective("all-reduce", "model", 48, 48 * MIB),
          Collective("all-to-all", "?", 2, 3 * MIB),
        ],
      ),
      StrategyResult(
        "cp", mesh(context=8), REFUSED, reason="sharding.context=8 does not divide the model's 12 heads " + NASTY
      ),
      StrategyResult(
        "pp", mesh(data=2, stage=4), COMPILER_CRASH, reason="XLA: RET_CHECK failure in spmd_partitioner.cc:1234"
      ),
      StrategyResult(
        "hsdp", mesh(replica=2, data=4), OUT_OF_MEMORY, reason="the step needs 19.1 GiB of a device's 16 GiB"
      ),
    ),
    versions={"tfm_jax": "0.1.0", "jax": "0.12.0.1", "numpy": "2.5.5"},
  )


def forecast():
  """512 devices: strategies that fit, one that does not, one refused, one that crashed."""
  limit, whole = 16 * GIB, 13 * GIB
  error = "Largest relative error against 14 published runs 21%, median 8%."

  def result(name, sizes, spec, share, activations, parts, sent, minimum, bound, **more):
    sizes = mesh(**sizes)
    state = int(whole * share)
    temporaries = 900 * MIB
    peak = 4 * state + activations + temporaries
    over = peak - limit if peak > limit else None
    seconds = Seconds(sum(parts[:3]), *parts)
    more = {"status": OUT_OF_MEMORY if over else "ok"} | more
    if over:
      more["reason"] = "the program needs more memory than a device has"
    return StrategyResult(
      name,
      sizes,
      microbatches=4,
      compile_seconds=71.2,
      memory_bytes=Memory(state, 2 * state, state, activations, temporaries, peak),
      memory_limit=limit,
      flops=5.2e14,
      model_flops=4.1e14,
      collectives=tuple(sent),
      tokens_per_second_per_device=4096 / seconds.total,
      forecast_step_seconds=seconds,
      fits=over is None,
      over_bytes=over,
      mfu=4.1e14 / seconds.total / 197e12 / 6,
      bound_by=bound,
      minimum_bytes=minimum,
      calibration_error=error,
      shard_map=shard_map(sizes, spec, (32, 4096, 32, 128)),
      **more,
    )

  return Comparison(
    kind="forecast",
    config="configs/gpt_7b.py",
    devices="512 x TPU v5 lite",
    topology="v5e:16x32",
    batch_size=1024,
    tokens_per_step=1024 * 2048,
    parameters=6_738_415_616,
    remat="block",
    notes=("Compiled by the real TPU compiler; times are a model of the chip, not a measurement.",),
    strategies=(
      result(
        "dp",
        {"data": 512},
        ("", "", "", ""),
        1.0,
        3 * GIB,
        (0.41, 0.09, 0.31, 0.02),
        [Collective("all-reduce", "data", 1, 26 * GIB)],
        {"data": 26 * GIB},
        "compute",
      ),
      result(
        "fsdp",
        {"data": 512},
        ("", "data", "", ""),
        1 / 512,
        5 * GIB,
        (0.41, 0.06, 0.12, 0.34),
        [Collective("all-gather", "data", 130, 27 * GIB), Collective("reduce-scatter", "data", 65, 13 * GIB)],
        {"data": 38.5 * GIB},
        "compute",
      ),
      result(
        "fsdp_tp",
        {"data": 128, "model": 4},
        ("", "data", "model", ""),
        1 / 512,
        4 * GIB,
        (0.42, 0.07, 0.35, 0.11),
        [
          Collective("all-gather", "data", 130, 6.6 * GIB),
          Collective("reduce-scatter", "data", 65, 3.3 * GIB),
          Collective("all-reduce", "model", 128, 24 * GIB),
          Collective("collective-permute", "model", 12, 300 * MIB),
        ],
        {"data": 9.1 * GIB, "model": 12.0 * GIB},
        "communication over model",
      ),
      result(
        "pp",
        {"replica": 2, "data": 16, "model": 4, "stage": 4},
        ("stage", "data", "model", ""),
        1 / 256,
        6 * GIB,
        (0.43, 0.21, 0.16, 0.0),
        [Collective("collective-permute", "stage", 64, 2 * GIB), Collective("all-reduce", "replica,data", 3, 3 * GIB)],
        {"stage": 2 * GIB, "replica,data": 1.5 * GIB, "model": 0.0},
        "compute",
      ),
      StrategyResult(
        "tp", mesh(data=8, model=64), REFUSED, reason="sharding.model=64 does not divide the model's 32 (heads)"
      ),
      StrategyResult(
        "cp", mesh(data=64, context=8), COMPILER_CRASH, reason="Mosaic failed to compile the kernel: " + NASTY
      ),
    ),
    versions={"tfm_jax": "0.1.0", "jax": "0.12.0.1", "libtpu": "0.0.30"},
  )


def with_first(comparison, **changes):
  """The comparison with the result of its first strategy changed."""
  first, *rest = comparison.strategies
  return dataclasses.replace(comparison, strategies=(dataclasses.replace(first, **changes), *rest))


COMPARISONS = pytest.mark.parametrize("comparison", [measured(), forecast()], ids=["measured", "forecast"])
