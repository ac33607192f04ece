"""Labelled documents: tables, their labels in the token file, and one row per document."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfm_jax.data.config import DataConfig, TaskConfig
from tfm_jax.data.dataset import Dataset
from tfm_jax.data.prepare import Prepared, classes_of, prepare
from tfm_jax.data.token_file import Damaged, open_token_file
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import INT, Documents, Field, ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import Side, Split
from tfm_jax.objectives.table import make_objective
from tfm_jax.text.corpora.table import Columns, table_classes, table_corpus
from tfm_jax.text.tokenizers.table import TokenizerConfig

CLASSIFICATION = ObjectiveConfig("sequence_classification")
PAD, BOS, EOS = 0, 2, 3


def write(path: Path, text: str) -> str:
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
  return str(path)


def documents_of(corpus, part: str) -> list[tuple[tuple[str, ...], str]]:
  documents = list(corpus.train() if part == "train" else corpus.evaluation())
  return list(zip(documents, (corpus.classes[label] for label in corpus.labels(part)), strict=True))


# ---- tables


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_a_table_in_the_form_of_sst2(tmp_path, name):
  path = write(tmp_path / name, '\ufefflabel\tsentence\r\n1\ta "fine" film \r\n\r\n0\tno\r\n')
  corpus = table_corpus(path, eval_fraction=0)
  assert documents_of(corpus, "train") == [(('a "fine" film ',), "1"), (("no",), "0")]
  assert documents_of(corpus, "evaluation") == []
  assert (corpus.sides, corpus.classes, corpus.counts["train_blank"]) == (1, ("0", "1"), 1)


@pytest.mark.parametrize(
  ("text", "columns", "first"),
  [
    ("label\tid1\tsentence1\tsentence2\n1\t7\ta\tb\n", Columns(), (("a", "b"), "1")),
    ("label\tid1\tsentence1\tsentence2\n1\t7\ta\tb\n", Columns(text="sentence2"), (("b",), "1")),
    ("label\tid1\tsentence1\tsentence2\n1\t7\ta\tb\n", Columns("4", "3", "id1"), (("b", "a"), "7")),
    ("good\tx\ty\n", Columns("2", "3", "1"), (("x", "y"), "good")),
    ("label\ttext\nno\tx\n", Columns("2", "", "1"), (("x",), "no")),
  ],
)
def test_columns_are_named_numbered_or_guessed(tmp_path, text, columns, first):
  assert documents_of(table_corpus(write(tmp_path / "a.tsv", text), "", 0, columns), "train")[0] == first


def test_classes_are_sorted_and_numbers_by_size(tmp_path):
  def classes(*labels: str) -> tuple[str, ...]:
    return table_classes(write(tmp_path / "a.tsv", "label\ttext\n" + "".join(f"{label}\tx\n" for label in labels)))

  assert classes("10", "9", "-1", "9") == ("-1", "9", "10")
  assert classes("10", "9", "b") == ("10", "9", "b")
  assert classes("nan", "1") == ("1", "nan")


def test_rows_are_held_out_by_their_text_and_twins_stay_together(tmp_path):
  rows = [f"{n // 500}\ttext number {n % 400}\n" for n in range(1000)]
  corpus = table_corpus(write(tmp_path / "a.tsv", "label\ttext\n" + "".join(rows)), eval_fraction=0.2)
  train, held_out = documents_of(corpus, "train"), documents_of(corpus, "evaluation")
  assert len(train) + len(held_out) == 1000 and 100 < len(held_out) < 300
  assert {label for _, label in held_out} == {"0", "1"}  # though the table is sorted
  assert not {text for text, _ in train} & {text for text, _ in held_out}


@pytest.mark.parametrize(
  ("train", "held_out", "columns", "message"),
  [
    ("label\ttext\n1\ta\n0\tb\n", "label\ttext\n0\ta\n2\tb\n", {}, r"held\.tsv, line 3: .*'2' is not a class .*0, 1"),
    ("label\ttext\n1\ta\n0\n", "", {}, r"train\.tsv, line 3: 1 columns, where the first line has 2"),
    ("label\ttext\n1\ta\n0\tb\tc\n", "", {}, r"train\.tsv, line 3: 3 columns"),
    ("label\ttext\n1\ta\n \tb\n", "", {}, r"train\.tsv, line 3: no label"),
    ("label\ttext\n", "", {}, r"train\.tsv has no rows"),
    ("label\ttext\n1\ta\n0\tb\n", "label\ttext\n", {}, r"held\.tsv has no rows"),
    ("\n", "", {}, r"train\.tsv is empty"),
    ("gold\ttext\n1\ta\n", "", {}, r"train\.tsv has no column label: set task\.label"),
    ("label\ttext\n1\ta\n", "", {"label": "gold"}, r"task\.label=gold: .*train\.tsv has no such column.*label, text"),
    ("label\ttext\n1\ta\n", "", {"text": "3"}, r"task\.text=3: .*train\.tsv"),
    ("label\ttext\n1\ta\n", "", {"text": "label"}, r"the same column"),
    ("label\ttext\n1\ta\n0\tb\n", "label\tsentence1\tsentence2\n1\ta\tb\n", {}, r"held\.tsv has 2 texts .*task\.pair"),
  ],
)
def test_mistakes_name_file_and_line(tmp_path, train, held_out, columns, message):
  path = write(tmp_path / "train.tsv", train)
  eval_path = write(tmp_path / "held.tsv", held_out) if held_out else ""
  with pytest.raises(UserError, match=message):
    corpus = table_corpus(path, eval_path, 0.0, Columns(**columns))
    documents_of(corpus, "train"), documents_of(corpus, "evaluation")


def test_missing_and_empty_files_are_named(tmp_path):
  with pytest.raises(UserError, match=r"data\.path=.*none\.tsv"):
    table_corpus(str(tmp_path / "none.tsv"))
  with pytest.raises(UserError, match=r"empty\.tsv is empty"):
    table_corpus(write(tmp_path / "empty.tsv", ""))


# ---- rows


def side_of(sizes: list[int], first: int) -> Side:
  """A stream of distinct tokens."""
  offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
  return Side(np.arange(first, first + offsets[-1], dtype=np.uint32), offsets, offsets)


def truncated_pair(text: list[int], pair: list[int], room: int) -> tuple[list[int], list[int]]:
  """Cuts token by token: the longer text loses its last token; of equally long ones, the second."""
  text, pair = list(text), list(pair)
  while len(text) + len(pair) > room:
    (text if len(text) > len(pair) else pair).pop()
  return text, pair


@given(
  sizes=st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=12),
  seq_len=st.integers(5, 24),
  has_pair=st.booleans(),
  has_bos=st.booleans(),
  packing=st.booleans(),
)
def test_rows_against_an_oracle_token_by_token(sizes, seq_len, has_pair, has_bos, packing):
  vocabulary = Vocabulary(1000, bos_id=BOS if has_bos else -1)
  sides = tuple(side_of([pair[i] for pair in sizes], 10 + 300 * i) for i in range(1 + has_pair))
  labels = np.arange(len(sizes), dtype=np.int32) % 3
  objective = make_objective(CLASSIFICATION, vocabulary, seq_len, documents=Documents(len(sides), 3))
  objective.check()
  dataset = Dataset(Split("x", sides, labels), objective, len(sizes) + 2, 0, packing, shuffle=False)
  batch = dataset.batch(0)
  assert {*batch} == {*objective.fields}
  cut = 0
  for r, n in enumerate(batch["rows"]):
    if n >= len(sizes):  # blank
      assert not any(batch[name][r].any() for name in batch if name != "rows")
      continue
    texts = [side.tokens[side.offsets[n] : side.offsets[n + 1]].tolist() for side in sides]
    room = seq_len - has_bos - len(sides)
    kept = truncated_pair(*texts, room) if has_pair else (texts[0][:room],)
    cut += any(len(a) != len(b) for a, b in zip(texts, kept, strict=True))
    row = [BOS] * has_bos + kept[0] + [EOS]
    types = [0] * len(row)
    if has_pair:
      row, types = row + kept[1] + [EOS], types + [1] * (len(kept[1]) + 1)
      assert batch["token_types"][r].tolist() == types + [0] * (seq_len - len(row))
    rest = [0] * (seq_len - len(row))
    assert batch["inputs"][r].tolist() == row + [PAD] * len(rest)
    assert batch["segment_ids"][r].tolist() == [1] * len(row) + rest
    assert batch["positions"][r].tolist() == list(range(len(row))) + rest
    assert (batch["targets"][r], batch["weights"][r]) == (labels[n], 1)
  assert {n: (a.shape[1:], a.dtype) for n, a in batch.items()} == {
    n: (field.shape, field.dtype) for n, field in objective.fields.items()
  }
  assert dataset.num_rows == len(sizes)
  if not has_pair:
    assert dataset.truncated == cut
  assert objective.fields["targets"] == Field((), INT, "labels", ("batch",), 3)


def test_what_cannot_be_classified_is_refused():
  with pytest.raises(UserError, match=r"task\.label"):
    make_objective(CLASSIFICATION, Vocabulary(100), 16, documents=Documents(1, 1)).check()
  with pytest.raises(UserError, match=r"data\.seq_len=3"):
    make_objective(CLASSIFICATION, Vocabulary(100), 3, documents=Documents(2, 2)).check()
  with pytest.raises(UserError, match="eos token"):
    make_objective(CLASSIFICATION, Vocabulary(100, eos_id=-1), 16, documents=Documents(1, 2)).check()


# ---- prepared


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  rows = [f"{['no', 'yes', 'or'][n % 3]}\ttext {n} {'goes on ' * (n % 5)}" for n in range(200)]
  write(tmp_path / "a.tsv", "\n".join(["label\tsentence", *rows]))
  return tmp_path / "a.tsv"


def prepare_table(path: Path, objective: ObjectiveConfig = CLASSIFICATION, seq_len: int = 24, **data) -> Prepared:
  config = DataConfig(source="tsv", path=str(path), seq_len=seq_len, **data)
  return prepare(config, TokenizerConfig(kind="char"), objective, seed=0, task=TaskConfig("sequence_classification"))


def test_labels_come_with_their_texts(table, caplog):
  caplog.set_level("WARNING")
  prepared = prepare_table(table, eval_fraction=0.2)
  assert prepared.classes == ("no", "or", "yes")
  assert classes_of(DataConfig(source="tsv", path=str(table)), TaskConfig()) == prepared.classes
  seen = {}
  for dataset in (prepared.train(7), prepared.evaluation(7)):
    assert dataset is not None
    for step in range(dataset.num_batches()):
      batch = dataset.batch(step)
      for row, target, weight in zip(batch["inputs"], batch["targets"], batch["weights"], strict=True):
        if weight:
          seen[prepared.tokenizer.decode(row)] = prepared.classes[target]
  lines = [line.split("\t") for line in table.read_text().splitlines()[1:]]
  assert seen == {text[:22]: label for label, text in lines}
  cut = sum(len(text) > 22 for _, text in lines)
  assert cut == sum(int(r.getMessage().split()[1]) for r in caplog.records if "were cut" in r.getMessage())


def test_each_epoch_has_every_document_once_in_another_order(table):
  dataset = prepare_table(table).train(16)
  rows = np.concatenate([dataset.batch(step)["rows"] for step in range(40)])
  first, second = rows[: dataset.num_rows], rows[dataset.num_rows : 2 * dataset.num_rows]
  assert sorted(first) == sorted(second) == list(range(dataset.num_rows))
  assert (first != second).any()


def test_labels_have_a_checksum(table):
  directory = prepare_table(table).token_file.directory
  content = bytearray((directory / "train.labels").read_bytes())
  content[0] ^= 1
  (directory / "train.labels").write_bytes(content)
  with pytest.raises(Damaged, match=r"train\.labels"):
    open_token_file(directory)
  assert prepare_table(table).token_file.train.labels is not None


def test_other_labels_are_other_data(table):
  before = prepare_table(table).fingerprints["data"]
  table.write_text(table.read_text().replace("yes\ttext 1 ", "no\ttext 1 "))
  assert prepare_table(table).fingerprints["data"] != before


def test_a_table_serves_pretraining_too(table):
  batch = prepare_table(table, ObjectiveConfig("mlm")).train(4).batch(0)
  assert batch["weights"].any() and batch["targets"].ndim == 2


def test_a_corpus_without_labels_is_refused(table, monkeypatch):
  monkeypatch.setattr("tfm_jax.data.prepare.train_tokenizer", None)  # it is not reached
  with pytest.raises(UserError, match=r"data\.source=tsv"):
    prepare(DataConfig(source="text", path=str(table)), TokenizerConfig(kind="char"), CLASSIFICATION, 0)
  with pytest.raises(UserError, match=r"data\.source=text has no labels"):
    classes_of(DataConfig(source="text", path=str(table)), TaskConfig())


def test_sst2():
  folder = os.environ.get("TFM_DATA_DIR")
  if not folder:
    pytest.skip("TFM_DATA_DIR is not set")
  corpus = table_corpus(f"{folder}/sst2/dev.tsv.gz", eval_fraction=0)
  documents = documents_of(corpus, "train")
  assert (len(documents), corpus.classes, corpus.sides) == (872, ("0", "1"), 1)
  assert documents[0] == (("one long string of cliches .",), "0")
