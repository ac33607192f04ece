"""Choices and last words by likelihood: prompts of the usual data sets, and scores against likelihoods one by one."""

import json

import numpy as np
import pytest

from tests.support.generating import run_of
from tfm_jax.errors import UserError
from tfm_jax.tasks.choice import Item, _with_shots, evaluate_choices, read_items


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.mark.parametrize(
  ("row", "item"),
  [
    ({"ctx": "He sat", "endings": ["down.", "up."], "label": 1}, Item("He sat", ("down.", "up."), 1)),
    (  # HellaSwag's own file, as `preprocess` in lm_eval/tasks/hellaswag/utils.py has it
      {
        "activity_label": "Baking",
        "ctx_a": "[header] How to bake [title] Heat it. [step]  A man sits.",
        "ctx_b": "he",
        "ctx": "Heat it. A man sits. he",
        "endings": ["stands. [substeps] He goes.", "[title] sleeps  well. "],
        "label": 0,
      },
      Item("Baking: How to bake. Heat it.  A man sits. He", ("stands. He goes.", " sleeps well."), 0),
    ),
    (
      {"goal": "Cool it", "sol1": "Ice.", "sol2": "Fire.", "label": 0},
      Item("Question: Cool it\nAnswer:", ("Ice.", "Fire."), 0),
    ),
    (
      {"premise": "It rained.", "choice1": "I swam.", "choice2": "I got wet.", "question": "effect", "label": 1},
      Item("It rained therefore", ("i swam.", "i got wet."), 1),
    ),
    (
      {"premise": "I fell.", "choice1": "A hole.", "choice2": "Sun.", "question": "cause"},
      Item("I fell because", ("a hole.", "sun."), None),
    ),
    ({"ctx": "a", "endings": ["b", "c"], "question": ["effect"]}, Item("a", ("b", "c"), None)),
    ({"text": "The cat sat on the mat"}, Item("The cat sat on the", ("mat",), 0)),
  ],
)
def test_items_of_the_usual_data_sets(tmp_path, row, item):
  assert read_items(write(tmp_path / "a.jsonl", row)) == [item]


def test_a_file_has_items_of_one_kind(tmp_path):
  choice, word = {"ctx": "a b", "endings": ["c", "d"]}, {"ctx": "a b", "endings": None}
  for rows, message in (
    ((choice, word), "line 2: none, where .*line 1 has endings"),
    ((word, choice), "line 2: some, where .*line 1 has no endings"),
  ):
    with pytest.raises(UserError, match=message):
      read_items(write(tmp_path / "a.jsonl", *rows))
  with pytest.raises(UserError, match="line 2: expected a text, and a list of endings"):
    read_items(write(tmp_path / "a.jsonl", choice, choice | {"endings": []}))


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"ctx": "a", "endings": ["b", "c"], "label": 2}, r"line 1: the label 2 is no number of an ending from 0 to 1"),
    ({"ctx": "a", "endings": ["b", 3]}, r"line 1: expected a text, and a list of endings"),
    ({"ctx": "a", "endings": ["b"]}, r"line 1: expected a text, and a list of endings"),
    ({"text": "word"}, r"line 1: one word"),
  ],
)
def test_mistakes_in_items_name_their_line(tmp_path, row, message):
  with pytest.raises(UserError, match=message):
    read_items(write(tmp_path / "a.jsonl", row))


def test_choices_are_scored_by_likelihood_with_and_without_normalisation(tmp_path):
  run = run_of("gpt")
  rows = [
    {"ctx": "the cat", "endings": ["sat on a mat", "ran", "saw all the dogs of the town"], "label": 0},
    {"ctx": "a dog ran after", "endings": ["one", "one small grey bird and the cat"], "label": 1},
    {"ctx": "and all", "endings": ["the dogs", "a mat"]},
  ]
  scores, found = evaluate_choices(run, write(tmp_path / "a.jsonl", *rows))
  right = {"prediction": [], "normalised": []}
  for row, one in zip(rows, found, strict=True):
    logprobs = np.array([run.score([(row["ctx"], f" {ending}")])[0].logprob for ending in row["endings"]])
    np.testing.assert_allclose(one["logprobs"], logprobs, atol=1e-3)
    assert one["prediction"] == str(logprobs.argmax() + 1)
    assert one["normalised"] == str((logprobs / [len(ending) for ending in row["endings"]]).argmax() + 1)
    if "label" in row:
      for name, values in right.items():
        values.append(one[name] == str(row["label"] + 1))
  assert scores["accuracy"] == np.mean(right["prediction"])
  assert scores["accuracy_normalised"] == np.mean(right["normalised"])
  assert found[0]["prediction"] != found[0]["normalised"] or found[1]["prediction"] != found[1]["normalised"]


def test_last_words_have_a_perplexity_and_count_if_greedy_decoding_gives_them(tmp_path):
  run = run_of("gpt")
  texts = ["the cat sat on a mat", "all the dogs of the town"]
  scores, found = evaluate_choices(run, write(tmp_path / "a.jsonl", *({"text": text} for text in texts)))
  logprobs = [run.score([(text.rpartition(" ")[0], " " + text.rpartition(" ")[2])])[0].logprob for text in texts]
  assert scores["perplexity"] == pytest.approx(np.exp(-np.mean(logprobs)), rel=1e-3)
  assert scores["accuracy"] == np.mean([row["prediction"] == row["label"] for row in found])


def test_shots_are_solved_examples_but_not_the_item_itself(tmp_path):
  solved = [Item(f"q{n}", ("a", "b"), n % 2) for n in range(4)]
  one = _with_shots(solved[2], solved, 3, seed=0, number=7)
  *shots, last = one.prompt.split("\n\n")
  assert last == "q2" and sorted(shots) == ["q0 a", "q1 b", "q3 b"] and one.endings == ("a", "b")
  assert _with_shots(solved[2], solved, 3, seed=0, number=7) == one
  with pytest.raises(UserError, match=r"--shots=2 needs solved examples: say --examples"):
    evaluate_choices(run_of("gpt"), write(tmp_path / "a.jsonl", {"text": "a b"}), shots=2)
