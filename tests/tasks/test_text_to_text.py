"""Tasks written as text: the examples of Raffel et al. 2020, and what is read back from what a model wrote."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.support.launching import tiny, write_experiment
from tfm_jax.errors import UserError
from tfm_jax.tasks.evaluate import read_predictions
from tfm_jax.tasks.labelled.texts import TextExample
from tfm_jax.tasks.multiple_choice import Choice
from tfm_jax.tasks.scores import score
from tfm_jax.tasks.scoring.classes import OTHER
from tfm_jax.tasks.table import find_task
from tfm_jax.tasks.text_to_text import Answers, Choices, Classes, Numbers, Tags, TextToText
from tfm_jax.text.examples.conll import Sentence
from tfm_jax.text.examples.squad import Answer, Question
from tfm_jax.training.config import Config
from tfm_jax.training.loop import fit

FILE = Path("file")


def example(label, *texts):
  return TextExample(FILE, 1, texts, label)


@pytest.mark.parametrize(
  ("writer", "given", "source", "target"),
  [  # The first six from appendix D.
    (
      Classes("cola"),
      example("1", "John made Bill master of himself."),
      "cola sentence: John made Bill master of himself.",
      "acceptable",
    ),
    (
      Classes("rte"),
      example("1", "A smaller proportion", "Yugoslavians"),
      "rte sentence1: A smaller proportion sentence2: Yugoslavians",
      "not_entailment",
    ),
    (
      Classes("mnli"),
      example("contradiction", "yeah well", "They always win."),
      "mnli hypothesis: They always win. premise: yeah well",
      "contradiction",
    ),
    (
      Classes("mrpc"),
      example("1", "We acted", "We acted too"),
      "mrpc sentence1: We acted sentence2: We acted too",
      "equivalent",
    ),
    (
      Classes("qqp"),
      example("0", "What attributes?", "How can I?"),
      "qqp question1: What attributes? question2: How can I?",
      "not_duplicate",
    ),
    (Numbers("stsb"), example("3.25", "a", "b"), "stsb sentence1: a sentence2: b", "3.2"),
    (Classes("sst2"), example("1", "confirms fincher"), "sst2 sentence: confirms fincher", "positive"),
    (
      Classes("sequence_classification"),
      example("sport", "a game"),
      "sequence_classification sentence: a game",
      "sport",
    ),
    (
      Answers("squad"),
      Question(FILE, "q", "Who?", "Ann sings.", (Answer("Ann", 0),)),
      "question: Who? context: Ann sings.",
      "Ann",
    ),
    (Answers("squad"), Question(FILE, "q", "Who?", "Rain.", ()), "question: Who? context: Rain.", ""),
    (
      Tags("conll2003"),
      Sentence(FILE, 1, ("EU", "calls", "Bill", "Gates"), ("B-ORG", "O", "B-PER", "I-PER")),
      "conll2003 sentence: EU calls Bill Gates",
      "ORG: EU; PER: Bill Gates",
    ),
    (Tags("conll2003"), Sentence(FILE, 1, ("no", "names"), ("O", "O")), "conll2003 sentence: no names", "none"),
    (
      Choices("copa"),
      Choice(FILE, 1, "It rained.", ("wet", "dry"), 0),
      "copa choice1: wet choice2: dry premise: It rained.",
      "choice1",
    ),
  ],
)
def test_examples_are_written_with_prefixes(writer, given, source, target):
  assert (writer.source(given), writer.target(given)) == (source, target)


def test_what_a_model_writes_is_read_back_in_the_form_of_the_task():
  classes = Classes("sst2", ["0", "1"])
  assert [classes.row(example("1", "a"), text)["prediction"] for text in ("positive", "negative", "1", "good")] == [
    "1", "0", OTHER, OTHER,
  ]  # fmt: skip
  assert (
    score("classes", [classes.row(example("1", "a"), "positive"), classes.row(example("0", "b"), "x")])["accuracy"]
    == 0.5
  )
  numbers = [Numbers("stsb").row(example("3", "a", "b"), text)["prediction"] for text in ("3.8", "many", "inf", "nan")]
  assert numbers == [3.8, -1.0, -1.0, -1.0]
  question = Question(FILE, "q", "Who?", "It is Ann.", (Answer("Ann", 6),))
  row = Answers("squad").row(question, "Ann")
  assert (row["start"], row["end"]) == (6, 9) and score("answers", [row])["exact_match"] == 1.0
  assert score("answers", [Answers("squad").row(question, "Bob")])["f1"] == 0.0
  choice = Choices("copa").row(Choice(FILE, 1, "t", ("a", "b"), 1), "choice2")
  assert choice["prediction"] == choice["label"] == "2"


@pytest.mark.parametrize(
  ("text", "tags"),
  [
    ("PER: Bill; ORG: Bill", "B-PER O B-ORG O"),  # the second Bill is the next one
    ("ORG: Bill Gates", "O O O O"),  # words that are not there
    ("PER: Bill met", "B-PER I-PER O O"),
    ("ORG: again; PER: Bill", "B-PER O O B-ORG"),  # before the one that was found first
    ("XYZ: Bill; PER; nonsense", "O O O O"),
    ("none", "O O O O"),
  ],
)
def test_entities_are_found_in_the_sentence_in_their_order(text, tags):
  sentence = Sentence(FILE, 1, ("Bill", "met", "Bill", "again"), ("B-PER", "O", "B-PER", "O"))
  writer = Tags("conll2003", ["O", "B-ORG", "B-PER", "I-PER"])
  assert writer.row(sentence, text)["prediction"] == tags.split()


@pytest.mark.parametrize("words", [["EU", "calls", "Bill", "Gates", "EU"], ["a"]])
def test_entities_that_are_written_are_read_back_as_they_were(words):
  tags = ("B-ORG", "O", "B-PER", "I-PER", "B-ORG")[: len(words)]
  sentence = Sentence(FILE, 1, tuple(words), tags)
  writer = Tags("conll2003", ["O", "B-ORG", "B-PER", "I-PER"])
  assert writer.row(sentence, writer.target(sentence))["prediction"] == list(tags)


def test_tags_that_mark_no_entities_and_unknown_tasks_are_refused(tmp_path):
  with pytest.raises(UserError, match=r"file, line 1: the tags mark no entities"):
    Tags("token_classification").target(Sentence(FILE, 1, ("a",), ("NOUN",)))
  config = Config()
  config = dataclasses.replace(config, task=dataclasses.replace(config.task, name="text_to_text", source_task="sst"))
  with pytest.raises(
    UserError, match=r"task\.source_task='sst' names no task that is written as text: choose squad, .*sst2"
  ):
    TextToText.read(config, [], True, {})


@pytest.mark.parametrize("name", ["rte", "multiple_choice"])
def test_the_examples_that_the_task_itself_holds_out_are_held_out(tmp_path, name):
  """Three on each premise, which stay together."""
  if name == "rte":
    lines = ["sentence1\tsentence2\tlabel", *(f"premise {n // 3}\tthis {n}\t{n % 2}" for n in range(60))]
  else:
    endings = ["this", "that"]
    lines = [json.dumps({"ctx": f"passage {n // 3}", "endings": [f"a{n}", *endings], "label": 0}) for n in range(60)]
  path = tmp_path / ("a.tsv" if name == "rte" else "a.jsonl")
  path.write_text("\n".join(lines) + "\n")
  config = Config()
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(path), eval_fraction=0.5))
  named = lambda **task: dataclasses.replace(config, task=dataclasses.replace(config.task, **task))
  own = find_task(name).split(named(name=name))
  as_text = TextToText.split(named(name="text_to_text", source_task=name))
  assert [[one.line for one in part] for part in own] == [[one.line for one in part] for part in as_text]
  assert all(len(part) >= 9 for part in own)


@pytest.mark.slow
def test_a_run_learns_classes_as_text_and_is_scored_as_the_task_is(tmp_path):
  experiment = write_experiment(tmp_path / "new")
  lines = [f"{label}\t{'good' if label else 'bad'} film {n}\n" for n in range(100) for label in (0, 1)]
  (tmp_path / "train.tsv").write_text("label\tsentence\n" + "".join(lines))
  changes = {
    "task__name": "text_to_text", "task__source_task": "sst2", "data__path": str(tmp_path / "train.tsv"),
    "data__eval_path": str(tmp_path / "train.tsv"), "data__seq_len": 48, "data__target_len": 12, "train__steps": 150,
    "eval__every": 150, "eval__batches": 1, "eval__metric": "accuracy", "eval__generate_examples": 20,
    "model__dropout": 0.0, "model__attention_dropout": 0.0,
  }  # fmt: skip
  result = fit(tiny(experiment, "t5", **changes), tmp_path / "run", find_task("text_to_text"))
  assert result["accuracy"] > 0.9
  row = read_predictions(str(tmp_path / "run"))[0]
  assert row["generated"] in ("positive", "negative") and row["label"] in ("0", "1") and row["text"].endswith("film 0")
  assert json.loads((tmp_path / "run" / "config.json").read_text())["head"]["labels"] == "0|1"
