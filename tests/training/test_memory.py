"""The memory that a step needs on a device, and the choice of microbatches."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.support.tiny import make_batch, make_model, make_program, model_config
from tfm_jax.errors import UserError
from tfm_jax.sharding.placement import single_device
from tfm_jax.training.compiled import memory, program
from tfm_jax.training.compiled.step import TrainState


def compiler(model, rows, variant="bert", length=16):
  program = make_program(model, make_batch(variant, rows=rows, length=length))
  return program.state, functools.cache(program.compile)


def compiled_with(peak=None, arguments=0, temporaries=0):
  """A compiled step whose memory analysis has these figures."""
  sizes = {"argument_size_in_bytes": arguments, "output_size_in_bytes": arguments, "alias_size_in_bytes": arguments}
  sizes |= {"temp_size_in_bytes": temporaries} | ({} if peak is None else {"peak_memory_in_bytes": peak})
  return SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**sizes))


def test_the_peak_is_what_the_compiler_says():
  GiB = 2**30
  assert memory.peak_bytes(compiled_with(30.35 * GiB, 12 * GiB, 29.2 * GiB), "tpu") == 30.35 * GiB
  # Not reported; or reported by XLA:CPU, which leaves the temporaries out.
  for peak, platform in ((None, "tpu"), (0, "gpu"), (12 * GiB, "cpu")):
    assert memory.peak_bytes(compiled_with(peak, 12 * GiB, 29.2 * GiB), platform) == pytest.approx(41.2 * GiB)
  assert memory.peak_bytes(SimpleNamespace(memory_analysis=lambda: None), "tpu") == 0


ON_TPU = SimpleNamespace(batch_shards=1, platform="tpu")


def chosen(limit, rows, steps, requested=0):
  """(microbatches, the numbers tried); `steps` maps a number of microbatches to the peak, or to a compiler's error."""
  tried = []

  def compile_with(count):
    tried.append(count)
    peak = steps(count)
    if isinstance(peak, str):
      raise jax.errors.JaxRuntimeError(peak)
    return compiled_with(peak, 0, 10 * peak)

  nothing = TrainState(*[jax.ShapeDtypeStruct((0,), np.float32, sharding=single_device().replicated)] * 4)
  return memory.choose_microbatches(ON_TPU, nothing, rows, requested, compile_with, limit)[0], tried


def test_a_sum_above_the_limit_is_no_reason_to_cut_the_batch():
  assert chosen(1000, 64, lambda count: 990) == (1, [1])


@pytest.mark.parametrize("kept", [0, 50, 500, 900])
@pytest.mark.parametrize("each", [1, 7, 15, 60])
def test_the_fewest_microbatches_that_fit_are_found_in_few_compilations(kept, each):
  need = lambda count: kept + each * 96 // count + 3 * (count > 1)
  fewest = next((n for n in range(1, 97) if 96 % n == 0 and need(n) <= 1000), None)
  count, tried = chosen(1000, 96, need)
  assert count == fewest and len(tried) <= 5 and len(set(tried)) == len(tried)


def test_errors_of_the_compiler_lead_on_with_and_without_a_number():
  reported = lambda count: (
    f"RESOURCE_EXHAUSTED: Ran out of memory. Used {8 / count:.2f}G of 1.00G hbm." if count < 8 else 2**30
  )
  assert chosen(2**30, 64, reported) == (8, [1, 8])
  silent = lambda count: "RESOURCE_EXHAUSTED: too large" if count < 8 else 2**29
  count, tried = chosen(2**30, 64, silent)
  assert count == 8 and tried == [1, 2, 4, 8]
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    chosen(2**30, 64, lambda count: "INTERNAL: something else")


def test_what_is_requested_must_fit_a_described_device():
  assert chosen(1000, 64, lambda count: 4000 // count, requested=4) == (4, [4])
  with pytest.raises(memory.DoesNotFit, match=r"train\.microbatches=2: needs .* of .*; ask for more") as raised:
    chosen(1000, 64, lambda count: 4000 // count, requested=2)
  assert raised.value.needed == 2000 and raised.value.microbatches == 2


@pytest.mark.slow
def test_fewer_rows_at_once_where_memory_is_short(monkeypatch):
  model = make_model("bert")
  state, compile_with = compiler(model, 16)
  choose = lambda requested=0: memory.choose_microbatches(model.placement, state, 16, requested, compile_with)[0]
  assert choose() == 1
  assert choose(requested=4) == 4
  needed = memory.peak_bytes(compile_with(4), "cpu")
  monkeypatch.setattr(memory, "device_limit", lambda device: needed)
  assert choose() in (4, 8)  # not fewer: these need more
  monkeypatch.setattr(memory, "device_limit", lambda device: 1000)
  with pytest.raises(UserError, match=r"not even one row .* per device, .* a row"):
    choose()
  with pytest.raises(UserError, match=r"train\.microbatches=3"):
    choose(requested=3)


def test_memory_is_split_among_the_emulated_devices():
  limits = {memory.device_limit(device) for device in jax.local_devices()}
  assert 0 < max(limits) * len(jax.local_devices()) < 2**44


def test_bytes_per_device_count_shards():
  state, _ = compiler(make_model("gpt"), 16, "gpt")
  total = sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
  assert memory.bytes_per_device(state) == total
  assert model_config().embed_dim == 32


def test_freed_memory_is_kept_only_where_there_is_plenty(monkeypatch):
  """The heap may grow beyond the peak of a step."""
  small = make_program(make_model("bert", num_layers=1), make_batch("bert", rows=2))
  kept = []
  monkeypatch.setattr(program, "keep_freed_memory", lambda: kept.append(True))
  peak = memory.peak_bytes(small.compile(1), "cpu")
  kept.clear()
  for limit, expected in ((2 * peak, []), (4 * peak, [True])):
    monkeypatch.setattr(program, "device_limit", lambda device, limit=limit: limit)
    small.compile(1)
    assert kept == expected
