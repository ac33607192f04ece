"""The memory of the host: an optimizer's state that is there changes nothing but where it is."""

import jax
import numpy as np
import pytest

from tests.support.tiny import make_batch, make_model, make_program, placement
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.compiled.memory import bytes_per_device


def program(offload, strategy="fsdp", devices=8):
  model = make_model("gpt", placement(strategy, devices), dropout=0.1, remat="offload" if offload else "none")
  return make_program(model, make_batch("gpt"), offload=offload)


def losses(program, state, steps):
  """Of these steps, and the last state."""
  step, values = program.compile(1), []
  for n in steps:
    state, metrics = step(state, program.put(make_batch("gpt", n)))
    values.append((float(metrics["loss"]), float(metrics["grad_norm"])))
  return values, state


def kinds(state):
  """Where the arrays of the optimizer's state are; counters stay on the device."""
  return {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim}


def test_the_state_on_the_host_takes_no_memory_of_a_device():
  here, there = program(False).state, program(True).state
  assert kinds(there) == {"pinned_host"} and "pinned_host" not in kinds(here)
  moments = 2 * bytes_per_device(here.params)
  assert bytes_per_device(here) - bytes_per_device(there) == moments


@pytest.mark.slow
def test_a_run_goes_on_from_the_host_and_back(tmp_path):
  here, there = program(False), program(True)
  expected, _ = losses(here, here.init(), range(4))
  first, state = losses(there, there.init(), range(2))
  assert kinds(state) == {"pinned_host"}
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(2, there.stored(state))
  for other in (here, there):
    restored = state._replace(**Checkpoints(tmp_path / "checkpoints").restore(2, other.stored(other.state)))
    assert kinds(restored) == kinds(other.state)
    second, last = losses(other, restored, range(2, 4))
    assert kinds(last) == kinds(other.state)
    np.testing.assert_allclose(first + second, expected, rtol=1e-6)
