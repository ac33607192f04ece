"""Answers in contexts: windows, exact characters, and questions without an answer."""

import dataclasses
import json
import unicodedata

import numpy as np
import pytest

from tests.support.labelled import read, reading, task_of
from tfm_jax.tasks.question_answering import QuestionAnswering
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer

CONTEXT = "The café opened in 1928. It was  Café Noir, and closed in 1931."


def questions(tmp_path, *qas, context=CONTEXT):
  content = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(qas)}]}], "version": "1.1"}
  (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
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
  task = task_of("question_answering", seq_len, {"token_types": 2}, stride=8)
  start = CONTEXT.index(answer)
  path = questions(tmp_path, {"id": "a", "question": "when?", "answers": [{"text": answer, "answer_start": start}]})
  examples = read(task, path)
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
  task = task_of("question_answering", 26, {"token_types": 2}, stride=4)
  start = CONTEXT.index("1931")
  path = questions(
    tmp_path,
    {"id": "a", "question": "q", "answers": [{"text": "1931", "answer_start": start}]},
    {"id": "b", "question": "r", "answers": []},
    {"id": "c", "question": "s"},
  )
  examples = read(task, path)
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
  task = task_of("question_answering")
  path = questions(
    tmp_path,
    {"id": "a", "question": "q", "answers": [{"text": "1931", "answer_start": 0}]},
    {"id": "b", "question": "r", "answers": [{"text": "2000", "answer_start": 0}]},
  )
  assert [example.id for example in read(task, path, labelled=True)] == ["a"]
  assert len(read(task, path)) == 2


def test_whether_there_may_be_no_answer_is_known_from_training(tmp_path):
  answer = {"text": "1928", "answer_start": CONTEXT.index("1928")}
  both = [{"id": "a", "question": "q", "answers": [answer]}, {"id": "b", "question": "r", "answers": []}]
  for qas, possible in ((both, True), (both[:1], False)):
    path = questions(tmp_path, *qas)
    config = reading("question_answering")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(path), eval_path=str(path)))
    assert QuestionAnswering.configure(config).task.no_answer == possible
  # A model that is certain that there is none says so, if it may, of a file without answers.
  for possible in (True, False):
    task = task_of("question_answering", 128, no_answer=possible)
    examples = read(task, questions(tmp_path, {"id": "a", "question": "q"}))
    rows = task.rows(examples)
    (found,) = task.predictions(examples, rows, {0: right(rows, 0)})
    assert (found["prediction"] == "") == possible


def test_labels_of_an_evaluated_file_do_not_change_what_a_trained_model_predicts(tmp_path):
  answer = {"text": "1928", "answer_start": CONTEXT.index("1928")}
  entries = [{"id": "a", "question": "q"}, {"id": "b", "question": "r", "answers": [answer]}]
  imported = task_of("question_answering", 128)
  config = dataclasses.replace(imported.config, data=dataclasses.replace(imported.config.data, path="train.json"))
  trained = QuestionAnswering.of_run(config, imported.tokenizer)
  for task, depends in ((trained, False), (imported, True)):  # of what imported ones were trained on nothing is known
    first = []
    for answers in ([answer], []):
      entries[1]["answers"] = answers
      examples = read(task, questions(tmp_path, *entries))
      rows = task.rows(examples)
      first.append(task.predictions(examples, rows, {row: right(rows, row) for row in range(2)})[0]["prediction"])
    assert (first[0] != first[1]) == depends


def test_a_tokenizer_is_trained_on_each_context_once(tmp_path):
  path = questions(tmp_path, {"id": "a", "question": "q"}, {"id": "b", "question": "r"})
  assert [*QuestionAnswering.corpus(read(task_of("question_answering"), path))] == [CONTEXT, "q", "r"]


# Contexts with an answer, in languages of XQuAD and MLQA, and a part of the answer with its F1 by the script of SQuAD
# (words), or in Chinese that of CMRC (characters). Thai has no spaces between words, so that the part has nothing.
LANGUAGES = {
  "ar": ("وُلِدَ ابنُ خلدون في تونس عام 1332، وتوفي في القاهرة.", "ابنُ خلدون في تونس", "ابنُ خلدون", 2 * 2 / (2 + 4)),
  "zh": ("北京大学创办于1898年，初名京师大学堂。", "京师大学堂", "京师大学", 2 * 4 / (4 + 5)),
  "th": ("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "กรุงเทพมหานคร", "กรุงเทพ", 0.0),
  "vi": ("Thành phố Hồ Chí Minh ở miền Nam Việt Nam.", "Hồ Chí Minh", "Hồ Chí", 2 * 2 / (2 + 3)),
}


SIZES = {"char": 0, "byte": 0, "sentencepiece": 600, "gpt2": 270}


# SentencePiece alone composes what is decomposed.
@pytest.mark.parametrize(("kind", "form"), [*((kind, "NFC") for kind in SIZES), ("sentencepiece", "NFD")])
@pytest.mark.parametrize("language", LANGUAGES)
def test_files_of_xquad_are_read_and_scored_by_exact_characters(tmp_path, language, form, kind):
  context, answer, part = (unicodedata.normalize(form, text) for text in LANGUAGES[language][:3])
  entry = {"id": "a", "question": "?", "answers": [{"text": answer, "answer_start": context.index(answer)}]}
  path = questions(tmp_path, entry, context=context)
  # Trained on single characters, of which each is a piece: none goes beyond the answer.
  tokenizer = train_tokenizer(TokenizerConfig(kind, vocab_size=SIZES[kind]), list(context.replace(" ", "")))
  task = task_of("question_answering", 300, {"token_types": 2}, tokenizer, answer_tokens=60)
  examples = read(task, path, labelled=True)
  rows = task.rows(examples)
  output = right(rows, 0)
  (found,) = task.predictions(examples, rows, {0: output})
  assert found["prediction"] == answer == found["label"][0]
  assert context[found["start"] : found["end"]] == answer
  scores = task.scores([found])
  assert scores["exact_match"] == scores["f1"] == 1
  scores = task.scores([found | {"prediction": part}])
  assert scores["exact_match"] == 0 and scores["f1"] == pytest.approx(LANGUAGES[language][3])
