"""Choices: the files, and a model that learns which candidate belongs to a text."""

import json

import numpy as np
import pytest

from tests.support.labelled import learn
from tfm_jax.errors import UserError
from tfm_jax.tasks.evaluate import evaluate, read_predictions
from tfm_jax.tasks.multiple_choice import MultipleChoice
from tfm_jax.training.config import Config
from tfm_jax.training.load import load_run


@pytest.mark.slow
def test_the_candidate_that_repeats_the_text_is_chosen(tmp_path):
  draw = np.random.default_rng(0)
  words = ["red", "blue", "tall", "wide"]
  lines = []
  for _ in range(300):
    word, label = draw.choice(words), int(draw.integers(0, 3))
    others = [other for other in words if other != word]
    endings = others[:label] + [word] + others[label:2]
    lines.append(json.dumps({"ctx": f"a {word} thing", "endings": endings, "label": label}))
  (tmp_path / "train.jsonl").write_text("\n".join(lines))
  result = learn("multiple_choice", tmp_path / "train.jsonl", data__buckets=2, train__steps=150, head__pooling="mean")
  assert result["accuracy"] > 0.8  # a third by chance
  first = read_predictions(str(tmp_path / "run"))[0]
  assert first["label"] == str(json.loads(lines[0])["label"] + 1) and len(first["choices"]) == 3
  assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-4)
  assert evaluate(load_run(tmp_path / "run")).scores["accuracy"] == pytest.approx(result["accuracy"])


def test_a_label_of_minus_one_is_not_known(tmp_path):
  (tmp_path / "a.jsonl").write_text(json.dumps({"ctx": "a", "endings": ["b", "c"], "label": -1}))
  (example,) = MultipleChoice.read(Config(), [tmp_path / "a.jsonl"], False, {})
  assert example.label is None
  with pytest.raises(UserError, match="line 1: no label"):
    MultipleChoice.read(Config(), [tmp_path / "a.jsonl"], True, {})


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ({"ctx": "a", "endings": "b", "label": 0}, r"line 1: expected a text and a list"),
    ({"ctx": "a", "endings": ["b", "c"], "label": 2}, r"line 1: the label '2' is no number .* 0 to 1"),
    ({"ctx": "a", "endings": ["b", "c"], "label": "ß"}, r"line 1: the label 'ß' is no number"),  # SS in upper case
    ({"ctx": "a", "endings": ["b", "c"]}, r"line 1.* has no column label"),
  ],
)
def test_mistakes_in_choices_name_the_line(tmp_path, line, message):
  (tmp_path / "a.jsonl").write_text(json.dumps(line))
  with pytest.raises(UserError, match=message):
    MultipleChoice.read(Config(), [tmp_path / "a.jsonl"], True, {})
