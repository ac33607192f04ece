"""The best checkpoint and early stopping."""

import json
import math

import jax
import numpy as np
import pytest

from tests.support.launching import WithoutSamples, exact_rows, rows, tiny
from tfm_jax.errors import UserError
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.training.best import Best, best_step, smaller_is_better
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.config import resolve
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit

SCORES = {0: 0.95, 2: 0.5, 4: 0.9, 6: 0.7, 8: 0.6, 10: 0.9, 12: 0.99}  # step 0 does not count
SETTINGS = {
  "model__num_layers": 1,
  "optimizer__schedule": "constant",
  "eval__every": 2,
  "eval__batches": 1,
  "eval__metric": "score",
  "checkpoint__every": 3,
  "checkpoint__keep": 1,
}


class Scripted(WithoutSamples):
  """Pre-training whose evaluations have a score that the test chooses, and that remembers what it reports."""

  scores: list = []
  reported: list = []

  def eval_metrics(self, split, totals, predictions):
    return super().eval_metrics(split, totals, predictions) | {"score": self.scores.pop(0)}

  def report(self, model, params, metrics, run):
    self.reported.append((jax.device_get(params), dict(metrics)))
    return []


def run(experiment, workdir, first=0, **overrides):
  """The result of `fit` from the evaluation of step `first` on, and the parameters that were reported."""
  Scripted.scores[:] = [score for step, score in SCORES.items() if step >= first]
  Scripted.reported.clear()
  result = fit(tiny(experiment, **(SETTINGS | {"train__steps": 12} | overrides)), workdir, Scripted)
  return result, Scripted.reported[0]


@pytest.fixture(scope="module")
def stopped(experiment, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("stopped") / "run"
  return run(experiment, workdir, eval__patience=3), workdir


@pytest.mark.slow
def test_training_ends_after_evaluations_without_improvement_and_the_best_is_reported(stopped):
  (result, (params, reported)), workdir = stopped
  assert [row["step"] for row in rows(workdir) if row["split"] == "eval"] == [0, 2, 4, 6, 8, 10]
  assert result["score"] == 0.9 and reported == result
  assert {**result, "step": 4, "split": "eval"} in rows(workdir)
  assert Checkpoints(workdir / "checkpoints").steps() == [4, 10]  # the best, and the last one that keep=1 keeps
  assert json.loads((workdir / "best.json").read_text()) == {
    "split": "eval",
    "metric": "score",
    "step": 4,
    "value": 0.9,
  }
  best, last = load_run(workdir), load_run(workdir, step=10)
  assert (best.step, last.step) == (4, 10)
  jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(best.params))
  assert not np.array_equal(params["embed"]["token"], last.params["embed"]["token"])


def test_a_run_that_ended_early_is_finished(stopped, experiment):
  (result, (params, _)), workdir = stopped
  before = (workdir / "metrics.jsonl").read_text()
  again, (same, _) = run(experiment, workdir, eval__patience=3)
  assert again == result and (workdir / "metrics.jsonl").read_text() == before
  jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_resumed_run_ends_like_an_uninterrupted_one(stopped, experiment, tmp_path):
  """Stopped after step 5: the best so far and the patience left follow from the records."""
  whole = stopped[1]
  run(experiment, tmp_path / "run", train__steps=6, eval__patience=3)
  assert best_step(RunDirectory(tmp_path / "run"), [4, 6]) == 4
  result, (params, _) = run(experiment, tmp_path / "run", first=8, eval__patience=3)
  assert result == stopped[0][0] and exact_rows(tmp_path / "run") == exact_rows(whole)
  assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [4, 10]
  jax.tree.map(np.testing.assert_array_equal, params, stopped[0][1][0])


@pytest.mark.slow
def test_more_patience_goes_on_and_finds_a_better_one(experiment, tmp_path):
  run(experiment, tmp_path / "run", eval__patience=3)
  result, _ = run(experiment, tmp_path / "run", first=12, eval__patience=4)
  assert result["score"] == 0.99 and load_run(tmp_path / "run").step == 12
  assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [12]  # the former best is gone


@pytest.mark.slow
def test_without_patience_training_goes_to_its_end_and_starts_from_the_best(experiment, tmp_path):
  """The smallest loss wins; a run that starts from this one takes the parameters of its best evaluation."""
  config = tiny(experiment, **(SETTINGS | {"train__steps": 4, "eval__metric": "loss", "optimizer__learning_rate": 0.3}))
  result = fit(config, tmp_path / "run", WithoutSamples)
  losses = {row["step"]: row["loss"] for row in rows(tmp_path / "run") if row["split"] == "eval" and row["step"]}
  best = min(losses, key=losses.get)
  assert result["loss"] == losses[best] and load_run(tmp_path / "run").step == best
  again = tiny(experiment, **(SETTINGS | {"eval__metric": "", "train__steps": 1, "optimizer__learning_rate": 0.0}))
  fit(_from(again, tmp_path / "run"), tmp_path / "next", WithoutSamples)
  source = load_run(tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, source.params, load_run(tmp_path / "next").params)


def _from(config, source):
  return type(config)(**{**{f: getattr(config, f) for f in config.__dataclass_fields__}, "init_from": str(source)})


def test_an_unknown_metric_is_one_line_that_lists_them(experiment, tmp_path):
  with pytest.raises(
    UserError, match=r"^eval\.metric='f2' is not measured here: choose one of loss, accuracy, .*score$"
  ):
    run(experiment, tmp_path / "run", eval__metric="f2")
  assert {row["step"] for row in rows(tmp_path / "run")} == {0}
  result, _ = run(experiment, tmp_path / "run", train__steps=2)  # corrected, it starts anew
  assert result["score"] == 0.5


def test_a_metric_needs_held_out_data_and_patience_a_metric(experiment, tmp_path):
  with pytest.raises(UserError, match="nothing is held out"):
    run(experiment, tmp_path / "run", data__eval_fraction=0.0)
  with pytest.raises(UserError, match=r"eval\.patience=2 needs a metric"):
    resolve(tiny(experiment, eval__patience=2))


def records(*values, metric="score"):
  return [{"step": 2 * n, "split": "eval", metric: value} for n, value in enumerate(values)]


def test_smaller_losses_and_larger_scores_are_better():
  assert all(map(smaller_is_better, ("loss", "perplexity", "bits_per_byte", "mean_squared_error", "loss_start")))
  assert not any(map(smaller_is_better, ("accuracy", "f1", "matthews", "lossless")))
  best = Best("perplexity")
  best.replay(records(9.0, 5.0, 4.0, 6.0, metric="perplexity"), "eval", range(100))
  assert best.step == 4 and best.metrics == {"perplexity": 4.0}


def test_values_that_are_not_finite_and_ties_are_no_improvement():
  best = Best("score", 3)
  assert [best.add(n, {"score": x}) for n, x in ((2, math.nan), (4, 0.5), (6, 0.5), (8, None))] == [0, 1, 0, 0]
  assert best.step == 4 and not best.exhausted()
  best.add(10, {"score": -math.inf})
  assert best.exhausted()


def test_what_has_no_checkpoint_cannot_be_the_best():
  """A run was killed between an evaluation and its checkpoint, or had no metric when it was evaluated."""
  best = Best("score", 2)
  best.replay(records(0.1, 0.5, 0.9, 0.7), "eval", [2, 6])
  assert best.step == 6 and not best.exhausted()
  assert best.add(8, {"score": 0.8}) and best.exhausted()  # better than what is stored, and patience counts from 0.9


@pytest.mark.slow
def test_a_run_that_dies_before_the_best_is_saved_loads_the_one_before_and_ends_alike(
  stopped, experiment, tmp_path, monkeypatch
):
  save = Checkpoints.save

  def die(self, step, trees):
    if step == 4:
      raise RuntimeError("killed")
    save(self, step, trees)

  with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
    patch.setattr(Checkpoints, "save", die)
    run(experiment, tmp_path / "run", eval__patience=3)
  assert json.loads((tmp_path / "run" / "best.json").read_text())["step"] == 4
  assert load_run(tmp_path / "run").step == 2  # the best that has a checkpoint; 3 is the last
  result, _ = run(experiment, tmp_path / "run", first=4, eval__patience=3)
  assert result == stopped[0][0] and exact_rows(tmp_path / "run") == exact_rows(stopped[1])
  assert load_run(tmp_path / "run").step == 4
