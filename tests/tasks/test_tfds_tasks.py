"""Tasks on data sets of TensorFlow Datasets: GLUE's nine by name, others by their fields, and what is held out."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.launching import ROOT, tiny, train
from tests.support.refusal import refusal
from tests.support.tfds_data import write_data, write_glue
from tfm_jax.tasks.evaluate import evaluate
from tfm_jax.tasks.glue import GLUE
from tfm_jax.tasks.table import find_task
from tfm_jax.text.tfds import TfdsSplit
from tfm_jax.training.config import Config, load, resolve
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit

# One training example of each task with the fields of TFDS; its texts and label; the classes by number.
EXAMPLES = {
  "cola": ({"sentence": "a", "label": 0}, ("a",), "unacceptable", ("unacceptable", "acceptable")),
  "sst2": ({"sentence": "a", "label": 1}, ("a",), "positive", ("negative", "positive")),
  "mrpc": (
    {"sentence1": "a", "sentence2": "b", "label": 1},
    ("a", "b"),
    "equivalent",
    ("not_equivalent", "equivalent"),
  ),
  "stsb": ({"sentence1": "a", "sentence2": "b", "label": 2.4}, ("a", "b"), "2.4", ()),
  "qqp": (
    {"question1": "a", "question2": "b", "label": 0},
    ("a", "b"),
    "not_duplicate",
    ("not_duplicate", "duplicate"),
  ),
  "mnli": (
    {"premise": "a", "hypothesis": "b", "label": 2},
    ("a", "b"),
    "contradiction",
    ("entailment", "neutral", "contradiction"),
  ),
  "qnli": ({"question": "a", "sentence": "b", "label": 0}, ("a", "b"), "entailment", ("entailment", "not_entailment")),
  "rte": (
    {"sentence1": "a", "sentence2": "b", "label": 1},
    ("a", "b"),
    "not_entailment",
    ("entailment", "not_entailment"),
  ),
  "wnli": (
    {"sentence1": "a", "sentence2": "b", "label": 1},
    ("a", "b"),
    "entailment",
    ("not_entailment", "entailment"),
  ),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  from tensorflow_datasets import features

  root = tmp_path_factory.mktemp("tfds")
  for name, (example, *_) in EXAMPLES.items():
    held_out = [example, {**example, "label": -1}]
    names = ("validation_matched", "validation_mismatched") if name == "mnli" else ("validation",)
    splits = {"train": [example, {**example, "label": -1}], "test": held_out[1:], **dict.fromkeys(names, held_out)}
    write_glue(root, name, splits)
  reviews = {"body": features.Text(), "reply": features.Text(), "stars": features.ClassLabel(names=["two", "one"])}
  texts = [{"body": f"body {n}", "reply": f"reply {n}", "stars": n % 2} for n in range(40)]
  write_data(root, "reviews", reviews, {"train": texts})
  choice = {"ctx": features.Text(), "endings": features.Sequence(features.Text()), "label": np.int32}
  write_data(root, "endings", choice, {"train": [{"ctx": "x", "endings": ["a", "b"], "label": 1}]})
  numbers = {"text": features.Text(), "label": np.float32}
  write_data(root, "numbers", numbers, {"train": [{"text": "x", "label": -1.0}]})
  return root


@pytest.fixture(autouse=True)
def root(prepared, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
  return prepared


def config_of(name, path, **data):
  config = Config()
  data = dataclasses.replace(config.data, source="tfds", path=path, **data)
  return dataclasses.replace(config, task=dataclasses.replace(config.task, name=name), data=data)


def columns(config, **task):
  return dataclasses.replace(config, task=dataclasses.replace(config.task, **task))


# ---- GLUE


@pytest.mark.parametrize("name", GLUE)
def test_glue_by_name(name):
  _, texts, label, classes = EXAMPLES[name]
  config = load(f"configs/glue.py:{name}")
  assert (config.task.name, config.data.path) == (name, f"glue/{name}")
  task = find_task(name)
  config = task.configure(config)
  assert config.model.head.labels == "|".join(classes)
  assert config.model.head.num_labels == (len(classes) or 1)
  counts = {}
  examples, held_out = task.split(config, counts)
  assert [(example.texts, example.label) for example in examples] == [(texts, label)]
  assert sorted(example.label or "" for example in held_out) == ["", label]
  assert counts["without a label, left out"] == 1


def test_the_positive_class_is_number_1():
  """Of MRPC, F1 is that of `equivalent`, although it comes first in the alphabet."""
  kind = find_task("mrpc")
  config = kind.configure(config_of("mrpc", "glue/mrpc"))
  wrong = {"prediction": "not_equivalent", "label": "equivalent"}
  right = {"prediction": "not_equivalent", "label": "not_equivalent"}
  task = kind.__new__(kind)
  names = config.model.head.labels.split("|")
  rows = [{**row, "probabilities": dict.fromkeys(names, 0.5)} for row in (wrong, right, right)]
  assert task.scores(rows, intervals=False)["f1"] == 0


def test_files_that_a_config_names_by_default_give_way():
  config = load(str(ROOT / "configs/sst2.py"), {"data.source": "tfds", "data.path": "glue/sst2"})
  assert config.data.eval_path
  config = resolve(find_task("sst2").configure(config))
  assert (config.data.source, config.data.eval_path, config.data.eval_split) == ("tfds", "", "validation")
  assert find_task("sst2").configure(config) == config


def test_mnli_holds_out_either_half():
  kind = find_task("mnli")
  assert kind.configure(config_of("mnli", "glue/mnli")).data.eval_split == "validation_matched"
  other = config_of("mnli", "glue/mnli", eval_split="validation_mismatched")
  assert kind.configure(other).data.eval_split == "validation_mismatched"


# ---- others


def test_any_data_set_by_its_fields():
  kind = find_task("sequence_classification")
  config = columns(config_of("sequence_classification", "reviews"), text="body", pair="reply", label="stars")
  config = kind.configure(config)
  train_examples, held_out = kind.split(config)
  assert config.model.head.labels == "two|one"  # as declared, not by alphabet
  assert 0 < len(held_out) < 20 and len(train_examples) + len(held_out) == 40
  expected = {((f"body {n}", f"reply {n}"), ("two", "one")[n % 2]) for n in range(40)}
  assert {(example.texts, example.label) for example in [*train_examples, *held_out]} == expected


def test_minus_1_is_a_number_elsewhere():
  config = config_of("sequence_regression", "numbers", eval_fraction=0.0)
  ((example,), _) = find_task("sequence_regression").split(config)
  assert example.label == "-1.0"


def test_choices_of_a_list():
  ((choice,), _) = find_task("multiple_choice").split(config_of("multiple_choice", "endings", eval_fraction=0.0))
  assert (choice.text, choice.candidates, choice.label) == ("x", ("a", "b"), 1)


def test_a_file_named_as_a_split_does_not_hide_it(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("validation_matched", "dev.tsv"):
    (tmp_path / name).write_text("premise\thypothesis\tlabel\na\tb\tneutral\n")
  named = lambda data, path="glue/mnli": find_task("mnli").named(config_of("mnli", path), data, "", "--data")
  assert [len(split) for split in named("validation_matched[:1]")] == [1]
  assert isinstance(named("validation_matched")[0], TfdsSplit)
  assert named("dev.tsv") == named("dev.tsv", "glue/gone") == [Path("dev.tsv")]


@pytest.mark.parametrize(
  ("name", "path", "task", "data", "message"),
  [
    ("sst2", "reviews", {}, {}, "reviews:1.0.0 has no column sentence: set task.text to a column's name"),
    (
      "sequence_classification",
      "reviews",
      {"text": "boddy", "label": "stars"},
      {},
      "task.text=boddy: reviews:1.0.0 has no such column; it has body, reply, stars",
    ),
    ("sst2", "glue/sst2", {}, {"eval_split": "dev"}, "data.eval_split=dev: glue/sst2:2.0.0 has no such split; it has"),
    ("sst2", "glue/sst2", {}, {"split": "test"}, "glue/sst2:2.0.0 (test) has no rows with a label"),
    ("sst2", "glue/sst3", {}, {}, "and not this, did you mean glue/sst2?"),
    ("token_classification", "glue/sst2", {}, {}, "task.name=token_classification reads files"),
    ("question_answering", "glue/sst2", {}, {}, "task.name=question_answering reads files"),
    (
      "sequence_regression",
      "reviews",
      {"text": "body", "label": "stars"},
      {},
      "the label 'one' is not a number: set task.label",
    ),
  ],
)
def test_mistakes_are_one_line(experiment, tmp_path, name, path, task, data, message):
  config = tiny(experiment, "bert", task__name=name)
  data = dataclasses.replace(config.data, source="tfds", path=path, seq_len=32, **data)
  config = dataclasses.replace(config, data=data)
  said = refusal(fit, columns(config, **task), tmp_path / "run", find_task(name))
  assert message in said
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_ends_with_status_2(tmp_path):
  arguments = ("--config=configs/sst2.py", f"--workdir={tmp_path / 'run'}", "--config.data.source=tfds")
  done = train(*arguments, "--config.data.path=glue/sst3")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "data.path=glue/sst3" in done.stderr.splitlines()[-1]


# ---- a run


@pytest.mark.slow
def test_a_run_trains_resumes_and_is_evaluated_on_another_split(experiment, tmp_path):
  changes = {"task__name": "mnli", "data__source": "tfds", "data__path": "glue/mnli", "data__seq_len": 32}
  changes |= {"train__batch_size": 8, "train__steps": 2, "eval__every": 2, "eval__batches": 0}
  result = fit(tiny(experiment, "bert", **changes), tmp_path / "run", find_task("mnli"))
  assert {"accuracy", "loss"} <= set(result)
  again = tiny(experiment, "bert", **(changes | {"train__steps": 3}))
  fit(again, tmp_path / "run", find_task("mnli"))
  stored = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
  assert (stored["source"], stored["eval_split"], stored["eval_path"]) == ("tfds", "validation_matched", "")
  run = load_run(tmp_path / "run")
  for data, name in (("", "validation_matched"), ("validation_mismatched", "validation_mismatched")):
    evaluation = evaluate(run, data)
    assert evaluation.facts["data"] == name
    assert sorted(row["label"] or "" for row in evaluation.predictions) == ["", "contradiction"]
  (tmp_path / "dev.tsv").write_text("premise\thypothesis\tlabel\na\tb\tneutral\n")
  assert [row["label"] for row in evaluate(run, str(tmp_path / "dev.tsv")).predictions] == ["neutral"]
  assert "--data=dev: glue/mnli:2.0.0 has no such split" in refusal(evaluate, run, "dev")
