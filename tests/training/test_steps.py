"""How long a run trains and warms up: epochs and fractions become numbers of steps."""

import json

import pytest

from tests.support.launching import exact_rows, quick_fit, rows, tiny
from tfm_jax.errors import UserError
from tfm_jax.training.config import resolve
from tfm_jax.training.loop import fit
from tfm_jax.training.pretraining import Pretraining
from tfm_jax.training.start import resolve_steps

SMALL = {"data__seq_len": 64, "optimizer__warmup_steps": 0, "train__batch_size": 16, "eval__batches": 1}


class Rows:
  """A task of so many rows."""

  def __init__(self, num_rows):
    self.num_rows = num_rows


@pytest.mark.parametrize(("epochs", "rows", "steps"), [(1.0, 100, 13), (2.0, 96, 24), (0.01, 96, 1), (2.5, 10, 4)])
def test_epochs_become_steps_rounded_up(experiment, epochs, rows, steps):
  config = resolve(tiny(experiment, train__epochs=epochs, optimizer__warmup_steps=0))
  assert resolve_steps(config, Rows(rows)).train.steps == steps


def test_the_warm_up_is_a_share_of_the_steps_unless_it_is_set(experiment):
  share = {"optimizer__warmup_fraction": 0.1, "train__epochs": 2.0}
  assert (
    resolve_steps(resolve(tiny(experiment, optimizer__warmup_steps=0, **share)), Rows(400)).optimizer.warmup_steps == 10
  )
  assert (
    resolve_steps(resolve(tiny(experiment, optimizer__warmup_steps=3, **share)), Rows(400)).optimizer.warmup_steps == 3
  )
  config = resolve(tiny(experiment, train__steps=30, optimizer__warmup_steps=0, optimizer__warmup_fraction=0.2))
  assert resolve_steps(config, Rows(400)).optimizer.warmup_steps == 6
  assert resolve_steps(config, Rows(400)).train.steps == 30


@pytest.mark.slow
def test_a_run_of_one_epoch_resumes_and_its_files_have_the_numbers(experiment, tmp_path):
  """Stopped halfway by train.steps, it ends like the uninterrupted run; config.json has steps and warm-up."""
  settings = SMALL | {"optimizer__warmup_fraction": 0.25, "optimizer__schedule": "constant", "checkpoint__every": 4}
  config = tiny(experiment, train__epochs=1.0, **settings)
  num_rows = Pretraining(resolve(config)).num_rows
  steps = -(-num_rows // 16)
  quick_fit(config, tmp_path / "whole")
  stored = json.loads((tmp_path / "whole" / "config.json").read_text())
  assert stored["train"]["steps"] == steps == max(row["step"] for row in rows(tmp_path / "whole"))
  assert stored["optimizer"]["warmup_steps"] == round(steps / 4) > 1
  warming = exact_rows(tmp_path / "whole")["train", 1]["learning_rate"]
  assert warming == pytest.approx(config.optimizer.learning_rate / round(steps / 4), rel=1e-6)
  quick_fit(tiny(experiment, train__epochs=0.5, **settings | {"optimizer__warmup_fraction": 0.5}), tmp_path / "parts")
  half = json.loads((tmp_path / "parts" / "config.json").read_text())
  assert half["optimizer"]["warmup_steps"] == round(half["train"]["steps"] / 2)
  quick_fit(tiny(experiment, train__epochs=1.0, **settings | {"optimizer__warmup_fraction": 0.5}), tmp_path / "parts")
  resumed = exact_rows(tmp_path / "parts")
  assert half["optimizer"]["warmup_steps"] == stored["optimizer"]["warmup_steps"]
  assert resumed["train", steps] == exact_rows(tmp_path / "whole")["train", steps]
  assert max(step for _, step in resumed) == steps


def test_a_task_without_rows_has_no_epochs(experiment, tmp_path):
  class Endless(Pretraining):
    def __init__(self, *arguments):
      super().__init__(*arguments)
      self.num_rows = 0

  with pytest.raises(UserError, match=r"train\.epochs=2 has no meaning for Endless.*: set train\.steps"):
    fit(tiny(experiment, train__epochs=2.0), tmp_path / "run", Endless)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("key", "value"), [("train__epochs", -1.0), ("optimizer__warmup_fraction", 1.5), ("optimizer__warmup_fraction", -0.1)]
)
def test_values_that_cannot_be(experiment, key, value):
  with pytest.raises(UserError, match=key.replace("__", r"\.")):
    resolve(tiny(experiment, **{key: value}))
