"""python -m tfm_jax.tasks --task=objective: the loss of pre-training on held-out rows, or on another text."""

import json
import math

import pytest

from tests.support.launching import SHORT_RUN, quick_fit, rows, tiny, write_text, write_untrained_run
from tfm_jax.errors import UserError
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.tasks import held_out
from tfm_jax.tasks.evaluate import evaluate_run
from tfm_jax.tasks.held_out import evaluate_objective
from tfm_jax.training.config import resolve, to_dict

SETTINGS = SHORT_RUN | {"train__steps": 4, "eval__batches": 0}


@pytest.fixture(scope="module")
def trained(experiment, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("trained") / "run"
  quick_fit(tiny(experiment, **SETTINGS), workdir)
  return workdir


def test_the_held_out_rows_have_the_loss_of_the_run(trained, tmp_path):
  printed = evaluate_run(str(trained), "", "objective", str(tmp_path / "out"), None, None, "", 0)
  scores = json.loads((tmp_path / "out" / "scores.json").read_text())
  records = {row["step"]: row for row in rows(trained) if row["split"] == "eval"}
  for name in ("loss", "accuracy", "perplexity", "bits_per_byte"):
    assert scores[name] == pytest.approx(records[4][name], rel=1e-6), name
  assert scores["step"] == 4 and scores["rows"] > 8 and scores["bytes"] > 100
  assert any(line.startswith("loss") for line in printed) and printed[-1].endswith("scores.json")
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["scores.json"]
  earlier = evaluate_objective(str(trained), step=2)
  assert earlier["loss"] == pytest.approx(records[2]["loss"], rel=1e-6)


def test_another_text_is_evaluated_whole(trained, experiment, tmp_path):
  text = write_text(tmp_path / "other.txt", lines=50, seed=3)
  scores = evaluate_objective(str(trained), data=str(text), batch_size=16)
  documents = text.read_text().strip().split("\n\n")
  assert scores["bytes"] == pytest.approx(sum(len(document.encode()) for document in documents), rel=0.05)
  same = evaluate_objective(str(trained), data=str(text), batch_size=8, strategy="dp")
  assert same["loss"] == pytest.approx(scores["loss"], rel=1e-5) and same["rows"] == scores["rows"]


@pytest.mark.parametrize(
  ("trained_on", "evaluated"),
  [
    ({"source": "arrow", "path": "saved"}, {"path": "saved", "eval_split": "data.txt", "eval_path": ""}),
    (
      {"source": "text", "path": "a.jsonl", "field": "body"},
      {"path": "data.txt", "field": ""},
    ),
    ({"source": "text", "path": "a.txt", "duplicates": "near"}, {"eval_path": "data.txt", "duplicates": "keep"}),
  ],
)
def test_what_is_evaluated_of_other_sources(experiment, tmp_path, monkeypatch, trained_on, evaluated):
  monkeypatch.chdir(tmp_path)
  write_text(tmp_path / "data.txt")
  config = resolve(tiny(experiment, **{f"data__{key}": value for key, value in trained_on.items()}))
  RunDirectory("run").create()
  RunDirectory("run").write_config(to_dict(config))

  def stop(config, tokenizer):
    raise UserError(json.dumps({key: getattr(config.data, key) for key in evaluated}))

  monkeypatch.setattr(held_out, "Pretraining", stop)
  with pytest.raises(UserError) as caught:
    evaluate_objective("run", data="data.txt")
  assert json.loads(str(caught.value)) == evaluated


def test_mistakes_are_one_line(trained, experiment, tmp_path):
  def refused(message, **arguments):
    with pytest.raises(UserError, match=message) as caught:
      evaluate_objective(**{"workdir": str(trained), **arguments})
    assert "\n" not in str(caught.value)

  refused("nothing.txt", data=str(tmp_path / "nothing.txt"))
  refused("no checkpoint of step 3", step=3)
  refused("--targets=x has the other side of which file", targets="x")
  write_untrained_run(tiny(experiment, data__eval_fraction=0.0), tmp_path / "nothing")
  refused("holds nothing out: say --data=FILE", workdir=str(tmp_path / "nothing"))
  config = json.loads((trained / "config.json").read_text())
  config["task"]["name"] = "sst2"
  (tmp_path / "labelled").mkdir()
  (tmp_path / "labelled" / "config.json").write_text(json.dumps(config))
  refused("task.name=sst2: leave it out", workdir=str(tmp_path / "labelled"))
  with pytest.raises(UserError, match="--beams does not apply to --task=objective"):
    evaluate_run(str(trained), "", "objective", "", None, None, "", 0, beams=4)


def test_a_metric_may_be_0_and_a_loss_that_is_not_finite_is_an_error(experiment, tmp_path, monkeypatch):
  write_untrained_run(tiny(experiment), tmp_path / "run")
  metrics = {"loss": 0.0, "accuracy": 0.0, "unigram_entropy": math.nan}
  monkeypatch.setattr(held_out, "evaluate_stream", lambda *_: dict(metrics))
  scores = evaluate_objective(str(tmp_path / "run"))
  assert scores["loss"] == scores["accuracy"] == 0 and "unigram_entropy" not in scores
  metrics["loss"] = math.nan
  with pytest.raises(UserError, match=r"/run: the loss of step 0 on eval is nan: choose another --step"):
    evaluate_objective(str(tmp_path / "run"))


def test_rows_that_do_not_divide_are_those_of_the_flag(experiment, tmp_path):
  write_untrained_run(tiny(experiment), tmp_path / "run")
  with pytest.raises(UserError, match=r"^--batch_size=12 does not divide into the 8 parts"):
    evaluate_objective(str(tmp_path / "run"), strategy="dp", batch_size=12)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5"])
def test_masks_and_averages_are_those_of_the_run(family, experiment, tmp_path):
  quick_fit(tiny(experiment, family, **SETTINGS | {"train__ema": 0.5}), tmp_path / "run")
  last = [row for row in rows(tmp_path / "run") if row["split"] == "eval"][-1]
  assert evaluate_objective(str(tmp_path / "run"))["loss"] == pytest.approx(last["loss"], rel=1e-6)
