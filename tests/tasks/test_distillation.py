"""The table of what students keep: scores are those of training, shares those of the numbers."""

import json

import pytest

from tests.support.launching import exact_rows, quick_fit, tiny, write_experiment
from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags
from tfm_jax.tasks.distillation import Measured, lower_is_better, main, measure, table
from tfm_jax.training.load import load_run

SETTINGS = {"train__steps": 1, "eval__every": 0, "eval__batches": 2, "model__num_layers": 1, "checkpoint__every": 0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A teacher of two layers, and its student of one."""
  folder = tmp_path_factory.mktemp("runs")
  experiment = write_experiment(folder / "new")
  quick_fit(tiny(experiment, **(SETTINGS | {"model__num_layers": 2})), folder / "teacher")
  quick_fit(tiny(experiment, **SETTINGS, distill__teacher=str(folder / "teacher")), folder / "student")
  return folder


def test_scores_are_those_of_training_and_shares_are_of_the_teachers(runs, capsys):
  teacher, student = str(runs / "teacher"), str(runs / "student")
  main(Flags({"teacher": teacher, "students": student, "out": str(runs / "kept.json")}, {}))
  printed = capsys.readouterr().out
  found = json.loads((runs / "kept.json").read_text())
  assert [one["run"] for one in found] == [teacher, student]
  for one in found:
    expected = exact_rows(runs / one["run"].rpartition("/")[2])["eval", 1]
    expected.pop("unigram_entropy")
    assert one["scores"] == pytest.approx(expected, rel=1e-6)
    assert one["parameters"] == load_run(one["run"]).model.parameter_count() and one["seconds"] > 0
  assert set(found[0]["shares"].values()) == {1.0}
  assert found[1]["shares"]["parameters"] == found[1]["parameters"] / found[0]["parameters"] < 1
  assert found[1]["shares"]["loss"] == found[0]["scores"]["loss"] / found[1]["scores"]["loss"]
  lines = printed.splitlines()
  assert lines[0].split() == ["|", "|", teacher, "|", student, "|"]
  assert f"{found[1]['parameters']:,} ({found[1]['shares']['parameters']:.1%})" in printed
  assert len({len(line) for line in lines if line.startswith("|")}) == 1


def test_shares_of_what_is_low_are_turned_round():
  names = ("accuracy", "loss", "perplexity", "mean_squared_error", "bleu", "seconds_per_batch")
  assert [lower_is_better(name) for name in names] == [False, True, True, True, False, False]
  teacher = Measured("t", 100, 2.0, {"accuracy": 0.8, "loss": 1.0, "matthews": -0.1, "bleu": 0.0})
  student = Measured("s", 25, 0.5, {"accuracy": 0.6, "loss": 1.25, "matthews": 0.1})
  expected = {"parameters": 0.25, "seconds_per_batch": 0.25, "accuracy": 0.75, "loss": 0.8}
  assert student.shares(teacher) == pytest.approx(expected)
  assert "| accuracy          | 0.8 | 0.6 (75.0%) |" in table([teacher, student])


def test_models_that_predict_something_else_are_refused(runs, tmp_path):
  experiment = write_experiment(tmp_path / "new")
  quick_fit(tiny(experiment, **SETTINGS, tokenizer__kind="char"), tmp_path / "char")
  with pytest.raises(UserError, match=r"char has another tokenizer than .*/student: both must read the same ids"):
    measure(str(tmp_path / "char"), [str(runs / "student")])
  with pytest.raises(UserError, match=r"no run in .*/nowhere"):
    measure(str(runs / "nowhere"), [str(runs / "student")])
  with pytest.raises(UserError, match=r"--students=\.\.\. is missing"):
    main(Flags({"teacher": str(runs / "teacher")}, {}))
  with pytest.raises(UserError, match=r"--out=.*/none/kept.json: .* is no folder"):
    main(Flags({"teacher": "a", "students": "b", "out": str(tmp_path / "none" / "kept.json")}, {}))
