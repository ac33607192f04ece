"""The table of what students keep of a teacher: scores from the logits, and shares of the numbers."""

import json

import jax
import numpy as np
import pytest

from tests.support.launching import tiny, write_experiment, write_untrained_run
from tfm_jax.data.prepare import prepare
from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags
from tfm_jax.tasks.distillation import Measured, lower_is_better, main, measure, table
from tfm_jax.training.load import load_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A teacher of two layers, and a student of one, both untrained, and another with a vocabulary of its own."""
  folder = tmp_path_factory.mktemp("runs")
  experiment = write_experiment(folder / "new")
  for name, changes in {
    "teacher": {},
    "student": {"model__num_layers": 1},
    "char": {"tokenizer__kind": "char"},
  }.items():
    write_untrained_run(tiny(experiment, **changes), folder / name)
  return folder


def scores_of(run):
  """Loss and accuracy on the held-out rows that training evaluates, from the logits."""
  config = run.config
  held_out = prepare(config.data, config.tokenizer, config.objective, config.seed).evaluation(config.train.batch_size)
  logits, sums = jax.jit(run.model.logits), np.zeros(3)
  for step in range(held_out.num_batches(config.eval.batches)):
    batch = held_out.batch(step)
    y, targets, weights = np.asarray(logits(run.params, batch)), batch["targets"], batch["weights"]
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(y)), targets[..., None], -1)[..., 0]
    sums += [(weights * nll).sum(), (weights * (y.argmax(-1) == targets)).sum(), weights.sum()]
  return {"loss": sums[0] / sums[2], "accuracy": sums[1] / sums[2], "perplexity": np.exp(sums[0] / sums[2])}


def test_scores_are_those_of_the_logits_and_shares_the_teachers(runs, capsys):
  teacher, student = str(runs / "teacher"), str(runs / "student")
  main(Flags({"teacher": teacher, "students": student, "out": str(runs / "kept.json")}, {}))
  printed = capsys.readouterr().out
  found = json.loads((runs / "kept.json").read_text())
  assert [one["run"] for one in found] == [teacher, student]
  for one in found:
    run = load_run(one["run"])
    assert one["scores"].keys() == {"loss", "accuracy", "perplexity", "bits_per_byte"}
    assert {name: one["scores"][name] for name in ("loss", "accuracy", "perplexity")} == pytest.approx(scores_of(run))
    assert one["parameters"] == run.model.parameter_count() and one["seconds"] > 0
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
  cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table([teacher, student]).splitlines()]
  assert cells[0] == ["", "t", "s"] and ["accuracy", "0.8", "0.6 (75.0%)"] in cells
  assert ["bleu", "0", ""] in cells and ["matthews", "-0.1", "0.1"] in cells


def test_models_that_predict_something_else_are_refused(runs, tmp_path):
  with pytest.raises(UserError, match=r"char has another tokenizer than .*/student: both must read the same ids"):
    measure(str(runs / "char"), [str(runs / "student")])
  with pytest.raises(UserError, match=r"no run in .*/nowhere"):
    measure(str(runs / "nowhere"), [str(runs / "student")])
  with pytest.raises(UserError, match=r"--students=\.\.\. is missing"):
    main(Flags({"teacher": str(runs / "teacher")}, {}))
  with pytest.raises(UserError, match=r"--out=.*/none/kept.json: .* is no folder"):
    main(Flags({"teacher": "a", "students": "b", "out": str(tmp_path / "none" / "kept.json")}, {}))
