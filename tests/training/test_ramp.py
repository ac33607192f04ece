"""A batch that grows: the same rows in the same order as full batches have, and the same losses as by hand."""

import logging

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.support.launching import (
  SHORT_RUN,
  assert_same_state,
  exact_rows,
  quick_fit,
  rows,
  state,
  tiny,
)
from tfm_jax.errors import UserError
from tfm_jax.training.compiled.program import build_program
from tfm_jax.training.compiled.ramp import Ramp, Ramped
from tfm_jax.training.compiled.step import make_train_step
from tfm_jax.training.config import resolve
from tfm_jax.training.optimization.optimizer import schedule
from tfm_jax.training.pretraining import Pretraining

GROWING = SHORT_RUN | {"train__batch_size": 32, "train__ramp_from": 8, "train__ramp_steps": 4, "train__steps": 10}


class Numbers:
  """The arrays of samples are their numbers, and the steps in whose batches they stand."""

  def arrays(self, samples, steps):
    return {"rows": samples, "steps": steps}


@given(some.integers(1, 6), some.integers(0, 4), some.integers(1, 3), some.integers(0, 40))
def test_every_sample_comes_once_and_in_order(first, doublings, times, stop):
  ramp = Ramp(first, times << doublings, first << doublings)
  ramped = Ramped(Numbers(), ramp)
  arrays = [ramped.batch(step) for step in range(stop)]
  assert all((arrays[step]["steps"] == step).all() for step in range(stop))  # what schedules of the data go by
  batches = [batch["rows"] for batch in arrays]
  assert [len(batch) for batch in batches] == [ramp.size(step) for step in range(stop)]
  assert np.concatenate([*batches, []]).tolist() == list(range(sum(map(len, batches))))
  for start in range(stop):
    stages = list(ramp.stages(start, stop))
    assert [step for a, b, _ in stages for step in range(a, b)] == list(range(start, stop))
    assert all(ramp.size(step) == size for a, b, size in stages for step in range(a, b))


def test_sizes_are_doubled():
  ramp = Ramp(8, 4, 32)
  assert [ramp.size(step) for step in range(10)] == [8] * 4 + [16] * 4 + [32] * 2
  assert list(ramp.stages(2, 9)) == [(2, 4, 8), (4, 8, 16), (8, 9, 32)]
  assert ramp.place(8) == (3, 0) and Ramp(8, 1, 8).place(5) == (5, 0)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"train__ramp_from": 3, "train__ramp_steps": 4}, "train.ramp_from=3 is doubled until it is train.batch_size=16"),
    ({"train__ramp_from": 4}, "train.ramp_steps=0: each size"),
    ({"train__ramp_from": 4, "train__ramp_steps": 6}, "train.ramp_steps=6: each size .* multiple of 4"),
    ({"train__ramp_steps": 4}, "train.ramp_steps=4 is a part of a ramp: set train.ramp_from"),
    ({"train__ramp_from": 32, "train__ramp_steps": 4}, "train.ramp_from=32 is doubled"),
    ({"train__ramp_from": 4, "train__ramp_steps": 4, "train__epochs": 1.0}, "train.epochs counts batches of one size"),
    ({"train__ramp_from": 4, "train__ramp_steps": 4, "task__name": "sst2"}, "is for pre-training .* task.name=sst2"),
  ],
)
def test_ramps_that_cannot_be(experiment, settings, message):
  with pytest.raises(UserError, match=message):
    resolve(tiny(experiment, train__batch_size=16, **settings))


def test_shards_take_whole_rows_of_the_smallest_batch(experiment, tmp_path):
  with pytest.raises(UserError, match=r"train\.ramp_from=4 does not divide into the 8 parts"):
    quick_fit(tiny(experiment, **GROWING | {"train__ramp_from": 4, "train__ramp_steps": 8}), tmp_path / "run")


def batches(experiment, steps, **settings):
  """The ids of the rows of each step."""
  task = Pretraining(resolve(tiny(experiment, train__batch_size=32, **settings)))
  return [batch["rows"] for _, batch in task.train_batches(0, steps, None)]


def test_a_growing_batch_has_the_rows_of_full_batches(experiment):
  grown, full = batches(experiment, 10, train__ramp_from=8, train__ramp_steps=4), batches(experiment, 5)
  assert [len(batch) for batch in grown] == [8] * 4 + [16] * 4 + [32] * 2
  assert np.concatenate(grown).tolist() == np.concatenate(full).tolist()


@pytest.mark.slow
def test_a_growing_batch_has_the_losses_of_steps_on_batches_cut_by_hand(experiment, tmp_path):
  """Two steps on the halves of a full batch, then one on the next full batch."""
  settings = SHORT_RUN | {"train__batch_size": 16, "train__steps": 3}
  quick_fit(tiny(experiment, **settings, train__ramp_from=8, train__ramp_steps=2), tmp_path / "run")
  config = resolve(tiny(experiment, **settings))
  task = Pretraining(config)
  (_, first), (_, second) = task.train_batches(0, 2, None)
  program = build_program(config, task.tokenizer.vocab_size, task.fields, jax.devices()[:1])
  now = program.init()
  step = make_train_step(
    program.loss, program.tx, schedule(config.optimizer, 3), program.placement, task.fields, 1, config.seed
  )
  for number, batch in enumerate([*({k: x[i : i + 8] for k, x in first.items()} for i in (0, 8)), second], 1):
    now, metrics = jax.jit(step)(now, batch)
    (row,) = (row for row in rows(tmp_path / "run") if row["split"] == "train" and row["step"] == number)
    for name in ("loss", "accuracy", "grad_norm"):
      assert float(metrics[name]) == pytest.approx(row[name], rel=1e-4 if name == "grad_norm" else 1e-5), (number, name)


@pytest.mark.slow
def test_a_growing_batch_trains_and_resumes_within_its_ramp(experiment, tmp_path, caplog):
  """Ten steps of 8, 16 and 32 rows; stopped and resumed inside the ramp, it ends with the same state."""
  settings = GROWING | {"sharding__strategy": "fsdp_tp"}
  with caplog.at_level(logging.INFO, "tfm_jax"):
    quick_fit(tiny(experiment, **settings), tmp_path / "whole")
  compiled = [message.split(":")[0] for message in caplog.messages if "train step for batches" in message]
  assert compiled == ["train step for batches of 8 rows", "train step for batches of 16 rows"]
  training = [row for row in rows(tmp_path / "whole") if row["split"] == "train"]
  tokens = [round(row["tokens_per_second"] * row["step_seconds"]) for row in training]
  assert tokens == [8 * 16] * 4 + [16 * 16] * 4 + [32 * 16] * 2
  for steps in (6, 10):
    quick_fit(tiny(experiment, **settings | {"train__steps": steps}), tmp_path / "parts")
  assert exact_rows(tmp_path / "parts") == exact_rows(tmp_path / "whole")
  for run in ("parts", "whole"):
    counted = [(row["tokens"], row["flop"]) for row in rows(tmp_path / run) if row["split"] == "train"]
    assert [n for n, _ in counted] == np.cumsum(tokens).tolist()
    assert counted[-1][1] == pytest.approx(counted[0][1] * sum(tokens) / tokens[0])
  assert_same_state(state(tmp_path / "parts"), state(tmp_path / "whole"))
