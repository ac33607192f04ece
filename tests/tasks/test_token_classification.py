"""Tags of words: which piece carries a tag, sentences over several rows, and how predictions are read back."""

import numpy as np
import pytest

from tests.support.labelled import read, task_of
from tfm_jax.errors import UserError

SENTENCES = "EU B-ORG\nrejects O\n\nPeter B-PER\nBlackburn I-PER\nsleeps O\n"
TAGS = {"head.labels": "O|B-ORG|B-PER|I-PER", "head.num_labels": 4}


def test_the_first_piece_of_each_word_has_its_tag(tmp_path):
  task = task_of("token_classification", head=TAGS)
  (tmp_path / "a.txt").write_text(SENTENCES)
  rows = task.rows(read(task, tmp_path / "a.txt"))
  text = "EU rejects"
  first = [1, 1 + text.index("rejects")]  # after bos
  weights = rows.token_labels["weights"][: rows.offsets[1]]
  assert np.flatnonzero(weights).tolist() == first and len(weights) == len(text) + 2
  assert rows.token_labels["targets"][first].tolist() == [1, 0]
  assert rows.sources_of(0)[first].tolist() == [0, 1]


def test_a_causal_model_has_read_the_word_that_it_tags(tmp_path):
  task = task_of("token_classification", 10, TAGS, family="gpt")
  (tmp_path / "a.txt").write_text("EU B-ORG\nsaid O\nBlackburns B-PER\n")
  rows = task.rows(read(task, tmp_path / "a.txt"))
  assert rows.lengths.tolist() == [10, 10] and rows.truncated == 1  # "EU said ", and "Blackbur" of the long word
  weights, targets = (rows.token_labels[name].reshape(2, 10) for name in ("weights", "targets"))
  assert [np.flatnonzero(row).tolist() for row in weights] == [[2, 7], [8]]  # U, d, and r, after bos
  assert targets[0, [2, 7]].tolist() == [1, 0] and targets[1, 8] == 2
  assert rows.sources_of(0)[[2, 7]].tolist() == [0, 1] and rows.sources_of(1)[8] == 2


@pytest.mark.parametrize("family", ["bert", "gpt"])
@pytest.mark.parametrize("seq_len", [8, 12, 20, 64])
def test_a_long_sentence_takes_several_rows_and_every_word_is_predicted(tmp_path, seq_len, family):
  task = task_of("token_classification", seq_len, TAGS, family=family)
  words = [f"w{n}" * (1 + n % 2) for n in range(30)]
  tags = [("O", "B-ORG", "B-PER", "I-PER")[n % 4] for n in range(30)]
  tags = [tag if tag != "I-PER" or before == "B-PER" else "O" for before, tag in zip(["O", *tags], tags, strict=False)]
  (tmp_path / "a.txt").write_text("".join(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True)))
  examples = read(task, tmp_path / "a.txt")
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
  task = task_of("token_classification", head=TAGS, label="2")
  (tmp_path / "a.txt").write_text("a\nb\n")
  (sentence,) = read(task, tmp_path / "a.txt")
  assert (sentence.words, sentence.tags) == (("a", "b"), None)


def test_a_tag_that_training_does_not_have_is_named(tmp_path):
  task = task_of("token_classification", head=TAGS)
  (tmp_path / "a.txt").write_text("a O\nb B-LOC\n")
  with pytest.raises(UserError, match=r"a\.txt, line 2: the tag 'B-LOC' is not one of the training data"):
    task.rows(read(task, tmp_path / "a.txt"))
