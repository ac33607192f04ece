"""Evaluation of a trained run: on its own held-out file and on another, with and without labels."""

import json
import math

import numpy as np
import pytest

from tests.support.labelled import learn
from tests.support.launching import rows
from tfm_jax.errors import UserError
from tfm_jax.tasks import evaluate as door
from tfm_jax.tasks import language
from tfm_jax.tasks.evaluate import evaluate, read_predictions, write
from tfm_jax.training.load import load_run


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
  """A trained tagger of words that begin with a capital letter."""
  folder = tmp_path_factory.mktemp("tagger")
  draw = np.random.default_rng(0)
  lines = []
  for _ in range(200):
    for _ in range(draw.integers(2, 6)):
      word = "".join(draw.choice(list("abcde"), 3))
      lines.append(f"{word.title()} B-NAME" if draw.random() < 0.4 else f"{word} O")
    lines.append("")
  (folder / "train.txt").write_text("\n".join(lines) + "\n")
  (folder / "dev.txt").write_text("\n".join(lines[:60]) + "\n")
  files = (folder / "train.txt", folder / "dev.txt")
  return folder, learn("token_classification", *files, data__buckets=2, train__steps=80)


@pytest.mark.slow
def test_a_tagger_learns_and_its_evaluation_has_the_scores_of_its_predictions(tagger):
  folder, result = tagger
  assert result["f1"] > 0.95
  run = load_run(folder / "run")
  evaluation = evaluate(run)
  assert evaluation.scores["f1"] == pytest.approx(result["f1"])
  assert [row for row in rows(folder / "run") if row["split"] == "eval"][-1]["f1"] == result["f1"]
  assert evaluation.predictions == read_predictions(str(folder / "run"))


def test_another_file_is_scored_and_compared(tagger, tmp_path):
  folder, _ = tagger
  run = load_run(folder / "run")
  (tmp_path / "other.txt").write_text("Abc B-NAME\ndef O\n\nEde O\n")
  evaluation = evaluate(run, str(tmp_path / "other.txt"))
  paths = write(str(tmp_path / "out"), evaluation)
  assert [path.rpartition("/")[2] for path in paths] == ["predictions.jsonl", "scores.json", "errors.html"]
  scores = json.loads((tmp_path / "out" / "scores.json").read_text())
  assert scores == evaluation.scores and {"f1", "f1_low", "f1_high"} <= set(scores)
  assert "comparison.html" in write(str(tmp_path / "again"), evaluation, str(tmp_path / "out"))[-1]
  (tmp_path / "shorter.txt").write_text("Abc B-NAME\n")
  with pytest.raises(UserError, match=r"--against=.*out: the runs have predicted different examples \(1 and 2\)"):
    write(str(tmp_path / "third"), evaluate(run, str(tmp_path / "shorter.txt")), str(tmp_path / "out"))


def test_a_file_without_labels_is_predicted_and_not_scored(tagger, tmp_path):
  folder, _ = tagger
  (tmp_path / "words.txt").write_text("Abc\ndef\n")
  evaluation = evaluate(load_run(folder / "run"), str(tmp_path / "words.txt"))
  assert evaluation.scores == {} and evaluation.predictions[0]["label"] is None
  assert evaluation.predictions[0]["prediction"] == ["B-NAME", "O"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"task": "sst2"}, r"head\.name=token_classification, and task\.name=sst2 needs sequence_classification"),
    ({"data": "none.txt"}, r"--data=none\.txt: no such file"),
    ({"task": "nothing"}, r"task\.name='nothing' is not one of"),
  ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(tagger, arguments, message):
  with pytest.raises(UserError, match=message):
    evaluate(load_run(tagger[0] / "run"), **arguments)


def test_scores_that_are_not_finite_are_left_out(tmp_path, monkeypatch):
  """Those of a model that has diverged."""
  found = {"tokens": 3.0, "nll": math.inf, "token_perplexity": math.nan}
  monkeypatch.setattr(language, "evaluate_text", lambda run, data: (found, []))
  monkeypatch.setattr(door, "load_run", lambda *_, **__: None)
  door.evaluate_run("run", "a.txt", "language_modeling", str(tmp_path / "out"), None, None, "", 0)
  assert json.loads((tmp_path / "out" / "scores.json").read_text()) == {"tokens": 3.0}


def test_predictions_with_line_separators_in_their_texts_are_read(tmp_path):
  row = {"prediction": "a", "label": None, "text": "one\u2028two\x85three"}
  (tmp_path / "predictions.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
  assert read_predictions(str(tmp_path)) == [row]
