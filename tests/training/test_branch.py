"""`branch_from`: a run that goes on from any checkpoint of another one, such as a cooldown, in its own directory."""

import json
from unittest.mock import ANY

import numpy as np
import pytest

from tests.support.launching import (
  SHORT_RUN,
  assert_same_state,
  exact_rows,
  quick_fit,
  rows,
  state,
  tiny,
  write_untrained_run,
)
from tfm_jax.errors import UserError
from tfm_jax.runtime.reporting.tracking import Tracker
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.training import loop
from tfm_jax.training.load import load_run
from tfm_jax.training.start import branch_point

SETTINGS = SHORT_RUN | {"optimizer__schedule": "wsd", "checkpoint__keep": 0, "train__steps": 8, "eval__metric": "loss"}


@pytest.fixture(scope="module")
def stable(experiment, tmp_path_factory):
  """A run of eight steps, evaluated and saved at every second."""
  workdir = tmp_path_factory.mktemp("stable") / "run"
  quick_fit(tiny(experiment, **SETTINGS), workdir)
  return workdir


def branch(experiment, stable, step, **changes):
  return tiny(experiment, **SETTINGS | {"branch_from": str(stable), "branch_at": step} | changes)


def test_a_cooldown_begins_where_the_stable_run_was_and_leaves_it_as_it_is(experiment, stable, tmp_path):
  before = {path: path.read_bytes() for path in stable.rglob("*") if path.is_file()}
  cooled = branch(experiment, stable, 4, train__steps=7, optimizer__decay_steps=2)
  result = quick_fit(cooled, tmp_path / "cooled")
  ours, theirs = exact_rows(tmp_path / "cooled"), exact_rows(stable)
  assert min(step for _, step in ours) == 4 and max(step for _, step in ours) == 7
  # The evaluation of the checkpoint, and step 5, whose rate is the peak still: the same rows and masks.
  assert ours["eval", 4] == theirs["eval", 4] and ours["train", 5] == theirs["train", 5]
  counted = [[(r["tokens"], r["flop"]) for r in rows(run) if r["step"] == 5] for run in (tmp_path / "cooled", stable)]
  assert counted[0] == counted[1] and counted[0][0][0] == 5 * 8 * 16  # those of the stable run are counted as well
  peak = theirs["train", 5]["learning_rate"]
  rates = [ours["train", step]["learning_rate"] for step in (5, 6, 7)]
  np.testing.assert_allclose(rates, [peak, peak * (1 - 0.5**0.5), 0.0], rtol=1e-5)
  assert before == {path: path.read_bytes() for path in before}
  entry = RunDirectory(tmp_path / "cooled").starts()[0]
  assert entry["branch"] == {"path": str(stable), "step": 4} and entry["step"] == 4
  run = load_run(tmp_path / "cooled")
  assert run.step in (6, 7) and result["loss"] == min(
    row["loss"] for row in rows(tmp_path / "cooled")[1:] if row["split"] == "eval" and row["step"] > 4
  )
  config = json.loads((tmp_path / "cooled" / "config.json").read_text())
  assert config["branch_at"] == 4


@pytest.mark.slow
def test_a_branch_with_the_same_settings_is_the_run_itself_and_resumes_without_it(experiment, stable, tmp_path):
  (stable.parent / "copy").symlink_to(stable)
  first = branch(experiment, stable.parent / "copy", 2, train__steps=6)
  quick_fit(first, tmp_path / "run")
  (stable.parent / "copy").unlink()
  quick_fit(branch(experiment, stable.parent / "copy", 2), tmp_path / "run")
  whole = exact_rows(stable)
  assert exact_rows(tmp_path / "run") == {key: row for key, row in whole.items() if key[1] > 2 or key == ("eval", 2)}
  assert_same_state(state(tmp_path / "run"), state(stable))
  assert "branch" not in RunDirectory(tmp_path / "run").starts()[1]


@pytest.mark.parametrize(
  ("changes", "requested"),
  [({}, 1), ({"seed": 1}, 1), ({"train__batch_size": 16}, 0), ({"data__seq_len": 8}, 0), ({"model__dropout": 0.0}, 0)],
)
def test_microbatches_are_chosen_anew_where_a_step_may_need_other_memory(
  changes, requested, experiment, stable, tmp_path, monkeypatch
):
  numbers = []

  def choose(placement, state, size, requested, compile_with):
    numbers.append(requested)
    raise UserError("far enough")

  monkeypatch.setattr(loop, "choose_microbatches", choose)
  with pytest.raises(UserError, match="far enough"):
    quick_fit(branch(experiment, stable, 4, **changes), tmp_path / "run")
  assert numbers == [requested]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"train__steps": 6, "optimizer__decay_steps": 2}, ""),
    (
      {"train__steps": 6, "optimizer__decay_steps": 4},
      "the learning rate jumps at step 4, from 0.003 to 0.000879: "
      "optimizer.decay_steps=4 is more than the 2 steps left",
    ),
    ({"optimizer__learning_rate": 1e-3}, "the learning rate jumps at step 4, from 0.003 to 0.001"),
  ],
)
def test_a_jump_of_the_learning_rate_is_logged(changes, message, experiment, stable, caplog):
  assert branch_point(branch(experiment, stable, 4, **changes)) == (ANY, 4)
  assert caplog.messages == [message] * bool(message)


def test_the_rate_of_a_run_that_was_made_longer_is_that_of_its_records(experiment, tmp_path, caplog):
  """It was started for fewer steps, after which its schedule would be at 0."""
  run, linear = RunDirectory(tmp_path / "run"), {"optimizer__schedule": "linear"}
  write_untrained_run(tiny(experiment, **SETTINGS | linear | {"train__steps": 2}), run.path, step=4)
  with Tracker(run, 8) as tracker:
    tracker.log("train", 4, {"loss": 1.0, "learning_rate": 3e-3 * 4 / 6})
  branch_point(branch(experiment, run.path, 4, **linear))
  assert not caplog.messages


@pytest.mark.slow
def test_the_step_is_by_default_the_last_one_and_the_data_may_change(experiment, stable, tmp_path):
  other = tmp_path / "other.txt"
  other.write_text("\n\n".join(f"a sentence of another kind, number {i}" for i in range(300)))
  quick_fit(branch(experiment, stable, 0, train__steps=10, data__path=str(other)), tmp_path / "run")
  assert min(row["step"] for row in rows(tmp_path / "run")) == 8


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"branch_from": "nowhere"}, "branch_from=nowhere is not a run directory"),
    ({"branch_at": 5}, r"no checkpoint of branch_at=5 \(it has 2, 4, 6, 8\)"),
    ({"train__steps": 4}, r"train\.steps=4 counts from the start of branch_from: set more than 4"),
    ({"branch_from": ""}, "branch_at=4 is a step of which run"),
    (
      {"optimizer__schedule": "linear", "optimizer__decay_steps": 2},
      r"decay_steps=2 is a part of optimizer.schedule=wsd, not of linear",
    ),
    ({"optimizer__name": "sgd"}, "unlike this model or optimizer|was saved from another"),
  ],
)
def test_mistakes_are_one_line_and_leave_nothing(changes, message, experiment, stable, tmp_path):
  with pytest.raises(UserError, match=message) as caught:
    quick_fit(branch(experiment, stable, 4, **changes), tmp_path / "run")
  assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
