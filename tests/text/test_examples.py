"""Labelled examples from files: tables, CoNLL columns, questions in SQuAD's JSON; mistakes name file and line."""

import gzip
import json
from pathlib import Path

import pytest

from tfm_jax.errors import UserError
from tfm_jax.text.examples.conll import read_conll, repaired
from tfm_jax.text.examples.squad import Answer, read_squad
from tfm_jax.text.examples.tables import Column, read_table

COLUMNS = {"text": Column("", ("sentence", "text")), "label": Column("", ("label",), required=False)}


def write(path: Path, text: str) -> Path:
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
  return path


def values(rows) -> list[tuple]:
  return [tuple(row.values.values()) for row in rows]


# ---- tables


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_a_table_in_the_form_of_sst2(tmp_path, name):
  counts = {}
  path = write(tmp_path / name, '\ufefflabel\tsentence\r\n1\ta "fine" film \r\n\r\n0\tno\r\n')
  rows = read_table([path], COLUMNS, counts=counts)
  assert values(rows) == [('a "fine" film ', "1"), ("no", "0")]
  assert [row.line for row in rows] == [2, 4] and counts["blank"] == 1


def test_csv_has_quotes_commas_and_line_ends_in_its_cells(tmp_path):
  path = write(tmp_path / "a.csv", 'label,text\n1,"a, ""b""\nc"\n0,d\n')
  assert [(row.line, *row.values.values()) for row in read_table([path], COLUMNS)] == [
    (2, 'a, "b"\nc', "1"),
    (4, "d", "0"),
  ]


def test_json_lines_keep_the_types_of_values(tmp_path):
  path = write(tmp_path / "a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b", "other": 2}\n')
  assert values(read_table([path], COLUMNS)) == [("a", 1), ("b", None)]


def test_columns_by_number_have_no_header_unless_it_says_so(tmp_path):
  columns = {"text": Column("2", ("text",)), "label": Column("1", ("label",))}
  assert values(read_table([write(tmp_path / "a.csv", '"3","x","y"\n')], columns)) == [("x", "3")]
  assert values(read_table([write(tmp_path / "b.csv", "label,text\n1,x\n")], columns)) == [("x", "1")]


def test_a_number_is_a_column_and_no_name_in_the_first_row(tmp_path):
  columns = {"text": Column("2", ("text",)), "label": Column("1", ("label",))}
  assert values(read_table([write(tmp_path / "a.tsv", "1\tgood film\n0\tbad film\n")], columns)) == [
    ("good film", "1"),
    ("bad film", "0"),
  ]


def test_a_column_that_is_not_required_may_be_missing(tmp_path):
  assert values(read_table([write(tmp_path / "a.tsv", "text\nx\n")], COLUMNS)) == [("x", None)]


@pytest.mark.parametrize(
  ("name", "text", "columns", "message"),
  [
    ("a.tsv", "label\ttext\n1\ta\n0\n", {}, r"a\.tsv, line 3: 1 columns, where the first line has 2"),
    ("a.tsv", "label\ttext\n1\ta\n0\tb\tc\n", {}, r"a\.tsv, line 3: 3 columns"),
    ("a.tsv", "label\ttext\n", {}, r"a\.tsv has no rows"),
    ("a.tsv", "\n", {}, r"a\.tsv is empty"),
    ("a.tsv", "label\tbody\n1\tx\n", {}, r"a\.tsv has no column sentence or text: set task\.text .*label, body"),
    ("a.tsv", "label\ttext\n1\tx\n", {"label": Column("gold")}, r"task\.label=gold: .*a\.tsv has no such column"),
    ("a.tsv", "label\ttext\n1\tx\n", {"label": Column("7")}, r"task\.label=7: .*no such column"),
    ("a.tsv", "label\ttext\n1\tx\n", {"label": Column("text")}, r"the same column"),
    ("a.csv", 'label,text\n1,"x\n', {}, r"a\.csv, line \d: .*quote"),
    ("a.jsonl", '{"text": "a"}\n[1]\n', {}, r"a\.jsonl, line 2: not a JSON object"),
    ("a.jsonl", '{"text": "a"\n', {}, r"a\.jsonl, line 1: not a JSON object"),
    ("a.jsonl", '{"body": "a"}\n', {}, r"a\.jsonl, line 1 has no column sentence or text.*body"),
  ],
)
def test_mistakes_in_tables_name_file_and_line(tmp_path, name, text, columns, message):
  with pytest.raises(UserError, match=message):
    read_table([write(tmp_path / name, text)], COLUMNS | columns)


# ---- CoNLL

CONLL = (
  "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP I-PER\nBlackburn NNP I-NP I-PER\n"
)


def test_sentences_in_columns_with_tags_in_the_last(tmp_path):
  counts = {}
  sentences = read_conll([write(tmp_path / "a.txt.gz", CONLL)], counts=counts)
  assert [(s.line, s.words, s.tags) for s in sentences] == [
    (3, ("EU", "rejects"), ("B-ORG", "O")),
    (6, ("Peter", "Blackburn"), ("B-PER", "I-PER")),
  ]
  assert counts["repaired"] == 1
  assert read_conll([tmp_path / "a.txt.gz"], word="2", tag="3")[0][2:] == (("NNP", "VBZ"), ("B-NP", "B-VP"))


@pytest.mark.parametrize(
  ("tags", "correct"),
  [
    ("I-PER I-PER O", "B-PER I-PER O"),
    ("B-PER I-LOC I-LOC", "B-PER B-LOC I-LOC"),
    ("O I-PER B-PER I-PER", "O B-PER B-PER I-PER"),
    ("NN VB", "NN VB"),
  ],
)
def test_an_inside_that_continues_nothing_begins_an_entity(tags, correct):
  assert repaired(tags.split()) == tuple(correct.split())


def test_words_alone_are_read_where_no_tags_are_needed(tmp_path):
  path = write(tmp_path / "a.txt", "one\ntwo\n\nthree\n")
  assert [s[2:] for s in read_conll([path], labelled=False)] == [(("one", "two"), None), (("three",), None)]
  with pytest.raises(UserError, match=r"a\.txt, line 1: a word without a tag"):
    read_conll([path])


@pytest.mark.parametrize(
  ("text", "columns", "message"),
  [
    ("a O\nb\n", ("", ""), r"a\.txt, line 2: 1 columns"),
    ("a O\n", ("", "3"), r"a\.txt, line 1: 2 columns.*column 3"),
    ("\n\n", ("", ""), r"a\.txt has no sentences"),
    ("a O\n", ("word", ""), r"task\.text=word: columns .* are numbered"),
  ],
)
def test_mistakes_in_columns_name_file_and_line(tmp_path, text, columns, message):
  with pytest.raises(UserError, match=message):
    read_conll([write(tmp_path / "a.txt", text)], *columns)


def test_a_number_sign_is_a_word_and_comments_have_other_columns(tmp_path):
  path = write(tmp_path / "a.txt", "# newdoc id = 1\n# # B-NP\n1 # I-NP\n\n# NN O\n")
  assert [(s.words, s.tags) for s in read_conll([path])] == [
    (("#", "1"), ("B-NP", "I-NP")),
    (("#",), ("O",)),
  ]


# ---- SQuAD


def squad(context: str, *qas: dict) -> str:
  return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(qas)}]}]})


def test_answers_are_looked_up_where_the_file_is_wrong(tmp_path):
  answers = [{"text": "ab", "answer_start": 3}, {"text": "ab", "answer_start": 8}, {"text": "zz", "answer_start": 0}]
  questions = [
    {"id": 1, "question": "q", "answers": answers},
    {"id": "b", "question": "r", "answers": [], "is_impossible": True},
    {"id": "c", "question": "s"},
  ]
  counts = {}
  found = read_squad([write(tmp_path / "a.json", squad("ab ab  ab", *questions))], counts)
  assert found[0].answers == (Answer("ab", 3), Answer("ab", 7), Answer("zz", -1))
  assert (found[0].id, found[1].answers, found[2].answers) == ("1", (), None)
  assert counts == {"moved": 1, "missing": 1}


def test_a_mistake_in_a_context_is_not_said_of_the_question_before_it(tmp_path):
  paragraphs = [{"context": "c", "qas": [{"id": "x", "question": "q"}]}, {"context": "\ud83d", "qas": []}]
  path = write(tmp_path / "a.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
  with pytest.raises(UserError, match=r"a\.json: half of a character"):
    read_squad([path])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", r"a\.json is not JSON"),
    ('{"data": []}', r"a\.json has no questions"),
    (squad("c", {"id": "x", "question": "q", "answers": [{"text": "c", "answer_start": "y"}]}), r"question 'x'"),
    (squad("c \ud83d", {"id": "x", "question": "q"}), r"a\.json: half of a character"),
    ('{"rows": []}', r"a\.json: no key 'data'"),
    (squad("c", {"id": "x", "answers": []}), r"no key 'question'"),
    (squad("c", {"id": "x", "question": "q", "answers": [{"answer_start": 1}]}), r"question 'x': no key 'text'"),
  ],
)
def test_mistakes_in_squad_name_file_and_question(tmp_path, text, message):
  with pytest.raises(UserError, match=message):
    read_squad([write(tmp_path / "a.json", text)])
