"""Tasks on files: what each reads, the rows that it makes, and how it reads predictions back."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.support import tiny as tiny_models
from tests.support.launching import rows as records
from tests.support.launching import tiny, write_experiment
from tfm_jax.errors import UserError
from tfm_jax.models.model import resolve_model
from tfm_jax.ops.losses import LossConfig
from tfm_jax.tasks.evaluate import evaluate, read_predictions, write
from tfm_jax.tasks.multiple_choice import MultipleChoice
from tfm_jax.tasks.question_answering import QuestionAnswering
from tfm_jax.tasks.sequence_classification import SequenceClassification, SequenceRegression
from tfm_jax.tasks.similarity import Similarity
from tfm_jax.tasks.table import TASKS, find_task
from tfm_jax.tasks.token_classification import TokenClassification
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer
from tfm_jax.training.config import Config, load
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit
from tfm_jax.training.loss import make_loss

TOKENIZER = train_tokenizer(
  TokenizerConfig("char"), ["abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,?0123456789é"]
)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
  return write_experiment(tmp_path_factory.mktemp("experiment") / "new")


def task_of(kind, name: str, seq_len: int = 32, head: dict | None = None, **task):
  """A task without training data, as for a trained model."""
  config = Config()
  model = resolve_model("bert", {"head.name": kind.head_name, **(head or {})})
  data = dataclasses.replace(config.data, seq_len=seq_len)
  config = dataclasses.replace(config, model=model, data=data, task=dataclasses.replace(config.task, name=name, **task))
  return kind.of_run(config, TOKENIZER)


def read(kind, task, path, labelled=False):
  return kind.read(task.config, [path], labelled, {})


# ---- classes and numbers


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
  kind = find_task(name)
  (example,) = kind.read(dataclasses.replace(Config(), task=load_task(name)), [tmp_path / "a.tsv"], False, {})
  assert (example.texts, example.label) == (texts, label)


def load_task(name: str):
  return dataclasses.replace(Config().task, name=name)


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
def test_mistakes_in_training_files_are_one_line(experiment, tmp_path, text, overrides, message):
  (tmp_path / "train.tsv").write_text(text)
  changes = {"task__name": "sequence_classification", "data__path": str(tmp_path / "train.tsv"), "data__seq_len": 32}
  config = tiny(experiment, "bert", **(changes | overrides))
  with pytest.raises(UserError, match=message):
    fit(config, tmp_path / "run", find_task(config.task.name))
  assert not (tmp_path / "run").exists()


def test_a_label_that_training_does_not_have_is_named(tmp_path):
  task = task_of(
    SequenceClassification, "sequence_classification", head={"head.labels": "no|yes", "head.num_labels": 2}
  )
  (tmp_path / "a.tsv").write_text("text\tlabel\na\tyes\nb\tmaybe\n")
  with pytest.raises(
    UserError, match=r"a\.tsv, line 3: the label 'maybe' is not a class of the training data.* no, yes"
  ):
    task.rows(read(SequenceClassification, task, tmp_path / "a.tsv"))


def test_classes_that_are_balanced_weigh_the_same(tmp_path):
  head = {"head.labels": "a|b", "head.num_labels": 2}
  task = task_of(SequenceClassification, "sequence_classification", head=head, class_weights="balanced")
  (tmp_path / "a.tsv").write_text("text\tlabel\n" + "x\ta\n" * 9 + "y\tb\n" * 3)
  rows = task.rows(read(SequenceClassification, task, tmp_path / "a.tsv"))
  weights = task.training_rows(rows).labels["weights"]
  assert weights[:9].sum() == pytest.approx(weights[9:].sum()) and weights.mean() == pytest.approx(1)


@pytest.mark.slow
def test_regression_learns_numbers_from_pairs(experiment, tmp_path):
  draw = np.random.default_rng(0)
  lines = ["sentence1\tsentence2\tscore"]
  for _ in range(300):
    same = int(draw.integers(0, 3))
    lines.append(f"{'good ' * same}film\tfilm\t{same}")
  (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
  config = tiny(
    experiment,
    "bert",
    task__name="stsb",
    data__path=str(tmp_path / "train.tsv"),
    data__eval_fraction=0.0,
    data__eval_path=str(tmp_path / "train.tsv"),
    data__seq_len=32,
    train__steps=60,
    eval__every=60,
    eval__batches=0,
  )
  result = fit(config, tmp_path / "run", find_task("stsb"))
  assert result["pearson"] > 0.9 and TASKS["stsb"] is SequenceRegression
  predictions = read_predictions(str(tmp_path / "run"))
  assert isinstance(predictions[0]["prediction"], float) and predictions[0]["label"] in (0.0, 1.0, 2.0)


def test_a_decoder_classifies_by_its_last_token(experiment, tmp_path):
  draw = np.random.default_rng(0)
  rows = [(f"{'x' * int(draw.integers(1, 9))} {word}", word) for word in draw.choice(["yes", "no"], 200)]
  (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
  changes = {"task__name": "sequence_classification", "data__path": str(tmp_path / "train.tsv"), "data__seq_len": 16}
  changes |= {"data__eval_path": str(tmp_path / "train.tsv"), "train__steps": 60, "eval__every": 60, "eval__batches": 0}
  result = fit(tiny(experiment, "gpt", **changes), tmp_path / "run", SequenceClassification)
  assert result["accuracy"] > 0.95
  assert load_run(tmp_path / "run").config.model.head.pooling == "last"


# ---- tags

SENTENCES = "EU B-ORG\nrejects O\n\nPeter B-PER\nBlackburn I-PER\nsleeps O\n"
TAGS = {"head.labels": "O|B-ORG|B-PER|I-PER", "head.num_labels": 4}


def test_the_first_piece_of_each_word_has_its_tag(tmp_path):
  task = task_of(TokenClassification, "token_classification", head=TAGS)
  (tmp_path / "a.txt").write_text(SENTENCES)
  rows = task.rows(read(TokenClassification, task, tmp_path / "a.txt"))
  text = "EU rejects"
  first = [1, 1 + text.index("rejects")]  # after bos
  weights = rows.token_labels["weights"][: rows.offsets[1]]
  assert np.flatnonzero(weights).tolist() == first and len(weights) == len(text) + 2
  assert rows.token_labels["targets"][first].tolist() == [1, 0]
  assert rows.sources_of(0)[first].tolist() == [0, 1]


@pytest.mark.parametrize("seq_len", [8, 12, 20, 64])
def test_a_long_sentence_takes_several_rows_and_every_word_is_predicted(tmp_path, seq_len):
  task = task_of(TokenClassification, "token_classification", seq_len, TAGS)
  words = [f"w{n}" * (1 + n % 2) for n in range(30)]
  tags = [("O", "B-ORG", "B-PER", "I-PER")[n % 4] for n in range(30)]
  tags = [tag if tag != "I-PER" or before == "B-PER" else "O" for before, tag in zip(["O", *tags], tags, strict=False)]
  (tmp_path / "a.txt").write_text("".join(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True)))
  examples = read(TokenClassification, task, tmp_path / "a.txt")
  rows = task.rows(examples)
  assert rows.lengths.max() <= seq_len and (len(rows) > 1 or seq_len == 64)
  outputs = {}
  for row in range(len(rows)):
    targets = rows.token_labels["targets"][rows.offsets[row] : rows.offsets[row + 1]]
    outputs[row] = {"classes": targets, "probabilities": np.eye(4)[targets]}  # a model that is always right
  (prediction,) = task.predictions(examples, rows, outputs)
  assert prediction["prediction"] == prediction["label"] == tags and prediction["words"] == words
  del outputs[len(rows) - 1]
  assert task.predictions(examples, rows, outputs) == []  # not all of its rows are there


def test_a_file_without_tags_is_read_whatever_column_the_config_names(tmp_path):
  task = task_of(TokenClassification, "token_classification", head=TAGS, label="2")
  (tmp_path / "a.txt").write_text("a\nb\n")
  (sentence,) = read(TokenClassification, task, tmp_path / "a.txt")
  assert (sentence.words, sentence.tags) == (("a", "b"), None)


def test_a_tag_that_training_does_not_have_is_named(tmp_path):
  task = task_of(TokenClassification, "token_classification", head=TAGS)
  (tmp_path / "a.txt").write_text("a O\nb B-LOC\n")
  with pytest.raises(UserError, match=r"a\.txt, line 2: the tag 'B-LOC' is not one of the training data"):
    task.rows(read(TokenClassification, task, tmp_path / "a.txt"))


# ---- answers

CONTEXT = "The café opened in 1928. It was  Café Noir, and closed in 1931."


def questions(tmp_path, *qas):
  content = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": list(qas)}]}]}
  (tmp_path / "a.json").write_text(json.dumps(content))
  return tmp_path / "a.json"


def right(rows, row: int) -> dict:
  """The output of a model that is certain of the labels of a row."""
  length = int(rows.lengths[row])
  scores = np.full((length + 5, 2), -20.0)  # a batch may be longer than the row
  start, end = rows.labels["targets"][row]
  scores[start, 0] = scores[end, 1] = -0.1
  return {"log_probabilities": scores}


@pytest.mark.parametrize("seq_len", [26, 40, 128])
@pytest.mark.parametrize("answer", ["1928", "Café Noir", "café", "The", "1931."])
def test_an_answer_in_a_window_is_read_back_as_its_exact_characters(tmp_path, seq_len, answer):
  task = task_of(QuestionAnswering, "question_answering", seq_len, {"token_types": 2}, stride=8)
  start = CONTEXT.index(answer)
  path = questions(tmp_path, {"id": "a", "question": "when?", "answers": [{"text": answer, "answer_start": start}]})
  examples = read(QuestionAnswering, task, path)
  rows = task.rows(examples)
  assert rows.lengths.max() <= seq_len and (len(rows) == 1) == (seq_len == 128)
  covered = {place for row in range(len(rows)) for a, b in rows.sources_of(row).tolist() for place in range(a, b)}
  assert {i for i, letter in enumerate(CONTEXT) if not letter.isspace()} <= covered
  assert (rows.labels["targets"][:, 0] > 0).any()
  (prediction,) = task.predictions(examples, rows, {row: right(rows, row) for row in range(len(rows))})
  assert (prediction["prediction"], prediction["start"]) == (answer, start)
  assert CONTEXT[prediction["start"] : prediction["end"]] == answer and prediction["label"] == [answer]
  total = sum(one["probability"] for one in prediction["probabilities"]) + prediction["no_answer"]
  assert total == pytest.approx(1, abs=1e-4)


def test_windows_without_the_answer_point_to_the_first_token(tmp_path):
  task = task_of(QuestionAnswering, "question_answering", 26, {"token_types": 2}, stride=4)
  start = CONTEXT.index("1931")
  path = questions(
    tmp_path,
    {"id": "a", "question": "q", "answers": [{"text": "1931", "answer_start": start}]},
    {"id": "b", "question": "r", "answers": []},
    {"id": "c", "question": "s"},
  )
  examples = read(QuestionAnswering, task, path)
  rows = task.rows(examples)
  targets, weights = rows.labels["targets"], rows.labels["weights"]
  first = rows.examples == 0
  assert (targets[first][-1] > 0).all() and (targets[first][0] == 0).all()
  assert (targets[rows.examples == 1] == 0).all() and (weights[rows.examples == 1] == 1).all()
  assert (weights[rows.examples == 2] == 0).all()  # no answer is known
  outputs = {row: right(rows, row) for row in range(len(rows))}
  found = task.predictions(examples, rows, outputs)
  assert [row["prediction"] for row in found][:2] == ["1931", ""]
  assert found[1]["start"] == -1 and found[1]["label"] == [] and found[2]["label"] is None


def test_questions_whose_answer_is_not_in_the_context_are_left_out_of_training(tmp_path):
  task = task_of(QuestionAnswering, "question_answering")
  path = questions(
    tmp_path,
    {"id": "a", "question": "q", "answers": [{"text": "1931", "answer_start": 0}]},
    {"id": "b", "question": "r", "answers": [{"text": "2000", "answer_start": 0}]},
  )
  assert [example.id for example in read(QuestionAnswering, task, path, labelled=True)] == ["a"]
  assert len(read(QuestionAnswering, task, path)) == 2


# ---- several sequences per row


@pytest.mark.slow
def test_the_candidate_that_repeats_the_text_is_chosen(experiment, tmp_path):
  draw = np.random.default_rng(0)
  words = ["red", "blue", "tall", "wide"]
  lines = []
  for _ in range(300):
    word, label = draw.choice(words), int(draw.integers(0, 3))
    others = [other for other in words if other != word]
    endings = others[:label] + [word] + others[label:2]
    lines.append(json.dumps({"ctx": f"a {word} thing", "endings": endings, "label": label}))
  (tmp_path / "train.jsonl").write_text("\n".join(lines))
  config = tiny(
    experiment,
    "bert",
    task__name="multiple_choice",
    data__path=str(tmp_path / "train.jsonl"),
    data__eval_path=str(tmp_path / "train.jsonl"),
    data__seq_len=32,
    data__buckets=2,
    train__steps=90,
    eval__every=90,
    eval__batches=0,
    head__pooling="mean",
  )
  result = fit(config, tmp_path / "run", find_task("multiple_choice"))
  assert result["accuracy"] > 0.8  # a third by chance
  first = read_predictions(str(tmp_path / "run"))[0]
  assert first["label"] == str(json.loads(lines[0])["label"] + 1) and len(first["choices"]) == 3
  assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-4)
  assert evaluate(load_run(tmp_path / "run")).scores["accuracy"] == pytest.approx(result["accuracy"])


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ({"ctx": "a", "endings": "b", "label": 0}, r"line 1: expected a text and a list"),
    ({"ctx": "a", "endings": ["b", "c"], "label": 2}, r"line 1: the label '2' is no number .* 0 to 1"),
    ({"ctx": "a", "endings": ["b", "c"]}, r"line 1.* has no column label"),
  ],
)
def test_mistakes_in_choices_name_the_line(tmp_path, line, message):
  (tmp_path / "a.jsonl").write_text(json.dumps(line))
  with pytest.raises(UserError, match=message):
    MultipleChoice.read(Config(), [tmp_path / "a.jsonl"], True, {})


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_vectors_of_similar_texts_are_near(experiment, tmp_path, labelled):
  draw = np.random.default_rng(0)
  lines = ["sentence1\tsentence2" + "\tscore" * labelled]
  for n in range(200):
    word = f"{'abcdefgh'[n % 8]}" * 4
    other = word if not labelled or draw.random() < 0.5 else "zzzz"
    lines.append(f"the {word}\ta {other}" + f"\t{5.0 if other == word else 0.0}" * labelled)
  (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
  config = tiny(
    experiment,
    "bert",
    task__name="similarity",
    data__path=str(tmp_path / "train.tsv"),
    data__eval_path=str(tmp_path / "train.tsv"),
    data__seq_len=16,
    train__steps=60,
    eval__every=60,
    eval__batches=0,
    model__dropout=0.0,
  )
  result = fit(config, tmp_path / "run", find_task("similarity"))
  if labelled:
    assert result["pearson"] > 0.9
  else:
    # Each text has 25 equal pairs, of which any may be the nearest: the nearest one is never of another word.
    assert result["loss"] < 2.5 and result["recall_at_10"] > 0.9


def test_the_contrastive_loss_against_numpy():
  model = tiny_models.make_model("bert", **{"head.name": "similarity", "head.pooling": "mean", "head.pooler": "none"})
  params = jax.jit(model.init)(jax.random.key(0))
  draw = np.random.default_rng(0)
  batch = {"inputs": draw.integers(5, 200, (4, 2, 8)).astype(np.int32), "segment_ids": np.ones((4, 2, 8), np.int32)}
  batch["segment_ids"][3] = 0  # a blank row, which fills the batch
  batch |= {"weights": np.array([1, 1, 1, 0], np.float32), "targets": np.zeros(4, np.float32)}
  terms = make_loss(model, LossConfig())(params, batch, None)
  pooled = lambda side: np.asarray(
    model.outputs(params, {"inputs": batch["inputs"][:, [side]], "segment_ids": batch["segment_ids"][:, [side]]})[
      "vectors"
    ]
  )
  a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (pooled(0)[:3], pooled(1)[:3]))
  y = a @ b.T / 0.05
  expected = np.mean(np.log(np.exp(y).sum(1)) - np.diag(y))
  assert float(terms.loss["labels"][0] / terms.loss["labels"][1]) == pytest.approx(expected, rel=1e-4)


def test_whether_there_may_be_no_answer_is_known_from_training(tmp_path):
  answer = {"text": "1928", "answer_start": CONTEXT.index("1928")}
  both = [{"id": "a", "question": "q", "answers": [answer]}, {"id": "b", "question": "r", "answers": []}]
  base = Config()
  for qas, possible in ((both, True), (both[:1], False)):
    path = questions(tmp_path, *qas)
    data = dataclasses.replace(base.data, path=str(path), eval_path=str(path))
    config = dataclasses.replace(base, data=data, task=load_task("question_answering"))
    assert QuestionAnswering.configure(config).task.no_answer == possible
  # A model that is certain that there is none says so, if it may, of a file without answers.
  for possible in (True, False):
    task = task_of(QuestionAnswering, "question_answering", 128, no_answer=possible)
    examples = read(QuestionAnswering, task, questions(tmp_path, {"id": "a", "question": "q"}))
    rows = task.rows(examples)
    (found,) = task.predictions(examples, rows, {0: right(rows, 0)})
    assert (found["prediction"] == "") == possible


def test_similar_labels_are_scaled_as_in_training(tmp_path):
  task = task_of(Similarity, "similarity", head={"head.num_labels": 1}, scale=5.0)
  (tmp_path / "a.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t4\n")
  rows = task.rows(read(Similarity, task, tmp_path / "a.tsv"))
  assert rows.labels["targets"].tolist() == [pytest.approx(0.8)]


@pytest.mark.parametrize("name", ["mrpc", "similarity"])
def test_a_pair_that_is_missing_is_named(tmp_path, name):
  (tmp_path / "a.tsv").write_text("sentence1\tlabel\na\t1\n")
  config = dataclasses.replace(Config(), task=load_task(name))
  with pytest.raises(UserError, match=r"a\.tsv has no column sentence2"):
    find_task(name).read(config, [tmp_path / "a.tsv"], False, {})


def test_predictions_with_line_separators_in_their_texts_are_read(tmp_path):
  row = {"prediction": "a", "label": None, "text": "one\u2028two\x85three"}
  (tmp_path / "predictions.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
  assert read_predictions(str(tmp_path)) == [row]


# ---- from training to another file


@pytest.fixture(scope="module")
def tagger(experiment, tmp_path_factory):
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
  config = tiny(
    experiment,
    "bert",
    task__name="token_classification",
    data__path=str(folder / "train.txt"),
    data__eval_path=str(folder / "dev.txt"),
    data__seq_len=32,
    data__buckets=2,
    train__steps=80,
    eval__every=40,
    eval__batches=0,
  )
  return folder, fit(config, folder / "run", TokenClassification)


def test_a_tagger_learns_and_its_evaluation_has_the_scores_of_its_predictions(tagger):
  folder, result = tagger
  assert result["f1"] > 0.95
  run = load_run(folder / "run")
  evaluation = evaluate(run)
  assert evaluation.scores["f1"] == pytest.approx(result["f1"])
  assert [row for row in records(folder / "run") if row["split"] == "eval"][-1]["f1"] == result["f1"]
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
  with pytest.raises(UserError, match=r"out has 2 predictions, and this file 1 example"):
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


@pytest.mark.parametrize("name", ["sst2", "mrpc", "cola", "stsb", "conll2003", "squad", "chnsenticorp", "cmrc2018"])
@pytest.mark.parametrize("variant", ["", ":base"])
def test_configs_of_tasks_name_a_task(name, variant):
  assert load(f"configs/{name}.py{variant}").task.name in TASKS
