"""Classes and numbers of texts and pairs: columns, mistakes in files, and what is learned."""

import dataclasses

import numpy as np
import pytest

from tests.support.labelled import TOKENIZER, learn, read, reading, task_of
from tfm_jax.errors import UserError
from tfm_jax.tasks.evaluate import read_predictions
from tfm_jax.tasks.labelled.texts import TextExample, classes_of
from tfm_jax.tasks.sequence_classification import SequenceRegression
from tfm_jax.tasks.table import TASKS, find_task
from tfm_jax.training.config import changed_keys, to_dict
from tfm_jax.training.load import load_run


@pytest.mark.parametrize(
  ("name", "text", "texts", "label"),
  [
    ("mrpc", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n", ("a", "b"), "1"),
    ("qnli", "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n", ("a", "b"), "entailment"),
    ("mnli", "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n", ("a", "b"), "neutral"),
    ("qqp", "id\tquestion1\tquestion2\tis_duplicate\n0\ta\tb\t1\n", ("a", "b"), "1"),
    ("cola", "label\tsentence\n0\ta\n", ("a",), "0"),
    ("stsb", "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\ta\tb\t2.5\n", ("a", "b"), "2.5"),
    ("sequence_classification", "text\tlabel\na\tyes\n", ("a",), "yes"),
    ("sst2", "index\tsentence\n0\ta\n", ("a",), None),
  ],
)
def test_columns_of_glue_are_known(tmp_path, name, text, texts, label):
  (tmp_path / "a.tsv").write_text(text)
  (example,) = find_task(name).read(reading(name), [tmp_path / "a.tsv"], False, {})
  assert (example.texts, example.label) == (texts, label)


@pytest.mark.parametrize(
  ("text", "overrides", "message"),
  [
    ("label\ttext\n1\ta\n0\tb\n \tc\n", {}, r"line 4: no label"),
    ("label\ttext\n1\ta\n1\tb\n", {}, r"labels of 1 class \(1\): at least two"),
    ("x\ta\n1\tb\n0\tc\n", {"task__label": "1", "task__text": "2"}, r"line 1: the label 'x' occurs nowhere else"),
    ("label\ttext\n1\ta\n0\tb\n", {"task__class_weights": "1,2,3"}, r"task\.class_weights=1,2,3: .*2 numbers"),
    ("score\ttext\n1\ta\nx\tb\n", {"task__name": "sequence_regression"}, r"line 3: the label 'x' is not a number"),
    ("label\ttext\n1\ta\n0\tb\n", {"data__seq_len": 2}, r"data\.seq_len=2 leaves no room"),
  ],
)
def test_mistakes_in_training_files_are_one_line(tmp_path, text, overrides, message):
  (tmp_path / "train.tsv").write_text(text)
  with pytest.raises(UserError, match=message):
    learn("sequence_classification", tmp_path / "train.tsv", data__eval_path="", **overrides)
  assert not (tmp_path / "run").exists()


def test_a_label_that_training_does_not_have_is_named(tmp_path):
  task = task_of("sequence_classification", head={"head.labels": "no|yes", "head.num_labels": 2})
  (tmp_path / "a.tsv").write_text("text\tlabel\na\tyes\nb\tmaybe\n")
  with pytest.raises(
    UserError, match=r"a\.tsv, line 3: the label 'maybe' is not a class of the training data.* no, yes"
  ):
    task.rows(read(task, tmp_path / "a.tsv"))


@pytest.mark.parametrize("name", ["mrpc", "similarity"])
def test_a_pair_that_is_missing_is_named(tmp_path, name):
  (tmp_path / "a.tsv").write_text("sentence1\tlabel\na\t1\n")
  with pytest.raises(UserError, match=r"a\.tsv has no column sentence2"):
    find_task(name).read(reading(name), [tmp_path / "a.tsv"], False, {})


SINGLE, PAIR = "text\tlabel\na\t1\nb\t0\n", "sentence1\tsentence2\tlabel\na\tb\t1\nb\tc\t0\n"


@pytest.mark.parametrize("name", ["sequence_classification", "sequence_regression"])
@pytest.mark.parametrize(
  ("train", "other", "message"),
  [
    (SINGLE, PAIR, r"dev\.tsv has pairs of texts, by its column sentence2, .* training has single texts: remove"),
    (PAIR, SINGLE, r"dev\.tsv has single texts, and training has pairs: name the column .* sentence2"),
  ],
)
def test_pairs_where_training_has_single_texts_are_refused_and_the_reverse(tmp_path, name, train, other, message):
  (tmp_path / "train.tsv").write_text(train)
  (tmp_path / "dev.tsv").write_text(other)
  with pytest.raises(UserError, match=message):  # held out, beside training
    learn(name, tmp_path / "train.tsv", tmp_path / "dev.tsv")
  assert not (tmp_path / "run").exists()
  config = reading(name)
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path / "train.tsv")))
  trained = find_task(name).configure(config)
  task = find_task(name).of_run(trained, TOKENIZER)
  assert len(task.rows(read(task, tmp_path / "train.tsv"))) == 2
  with pytest.raises(UserError, match=message):  # another file, once it is trained
    task.rows(read(task, tmp_path / "dev.tsv"))
  assert changed_keys(to_dict(config), to_dict(dataclasses.replace(config, task=trained.task))) == []  # an old run
  imported = find_task(name).of_run(dataclasses.replace(trained, task=config.task), TOKENIZER)
  assert len(imported.rows(read(imported, tmp_path / "dev.tsv"))) == 2  # nothing is known of its training


def test_a_header_that_is_taken_for_a_row_is_named_wherever_the_row_goes(tmp_path):
  row = lambda line, label: TextExample(tmp_path / "a.tsv", line, ("a",), label)
  for order in ([1, 2, 3], [2, 3, 1]):  # the last ones are held out
    with pytest.raises(UserError, match=r"line 1: the label 'x' occurs nowhere else"):
      classes_of(reading("sequence_classification"), [row(n, "x" if n == 1 else str(n)) for n in order])


def test_the_second_text_of_a_task_on_pairs_is_read_where_only_the_first_is_named(tmp_path):
  (tmp_path / "a.tsv").write_text("a\tsentence2\tlabel\nb\tc\t1\n")
  (example,) = find_task("mrpc").read(reading("mrpc", text="a"), [tmp_path / "a.tsv"], True, {})
  assert example.texts == ("b", "c")


def test_classes_that_are_balanced_weigh_the_same(tmp_path):
  head = {"head.labels": "a|b", "head.num_labels": 2}
  task = task_of("sequence_classification", head=head, class_weights="balanced")
  (tmp_path / "a.tsv").write_text("text\tlabel\n" + "x\ta\n" * 9 + "y\tb\n" * 3)
  rows = task.rows(read(task, tmp_path / "a.tsv"))
  weights = task.training_rows(rows).labels["weights"]
  assert weights[:9].sum() == pytest.approx(weights[9:].sum()) and weights.mean() == pytest.approx(1)


@pytest.mark.parametrize(
  "name", ["sequence_regression", "token_classification", "question_answering", "multiple_choice", "similarity"]
)
def test_weights_of_classes_are_refused_where_an_example_has_none(name):
  task = task_of(name, class_weights="balanced")
  with pytest.raises(UserError, match=rf"task\.class_weights is for .* task\.name={name} is none: leave it empty"):
    task.training_rows(None)


@pytest.mark.slow
def test_regression_learns_numbers_from_pairs(tmp_path):
  draw = np.random.default_rng(0)
  lines = ["sentence1\tsentence2\tscore"]
  for _ in range(300):
    same = int(draw.integers(0, 3))
    lines.append(f"{'good ' * same}film\tfilm\t{same}")
  (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
  result = learn("stsb", tmp_path / "train.tsv", train__steps=60)
  assert result["pearson"] > 0.9 and TASKS["stsb"] is SequenceRegression
  predictions = read_predictions(str(tmp_path / "run"))
  assert isinstance(predictions[0]["prediction"], float) and predictions[0]["label"] in (0.0, 1.0, 2.0)


@pytest.mark.slow
def test_a_decoder_classifies_by_its_last_token(tmp_path):
  draw = np.random.default_rng(0)
  rows = [(f"{'x' * int(draw.integers(1, 9))} {word}", word) for word in draw.choice(["yes", "no"], 200)]
  (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
  result = learn("sequence_classification", tmp_path / "train.tsv", family="gpt", data__seq_len=16, train__steps=60)
  assert result["accuracy"] > 0.95
  assert load_run(tmp_path / "run").config.model.head.pooling == "last"
