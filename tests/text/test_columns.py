"""Parquet files, and data sets that `datasets` of Hugging Face saved on disk."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.refusal import refusal
from tfm_jax.data.config import DataConfig
from tfm_jax.data.prepare import SOURCES, prepare
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import ObjectiveConfig
from tfm_jax.text.corpora import columns
from tfm_jax.text.corpora.columns import arrow_corpus, parquet_corpus
from tfm_jax.text.corpora.held_out import is_held_out
from tfm_jax.text.tokenizers.table import TokenizerConfig

ROWS = [f"Text {n}\n\nhas two paragraphs, and 日本語." for n in range(3000)]
TABLE = pa.table({"id": range(3000), "text": ROWS, "other": [row.upper() for row in ROWS]})


def write_saved(folder: Path, table: pa.Table, shards: int = 2, rows: int = 100) -> Path:
  """A folder as `Dataset.save_to_disk` writes it."""
  folder.mkdir(parents=True)
  names = [f"data-{n:05}-of-{shards:05}.arrow" for n in range(shards)]
  size = -(-len(table) // shards)
  for n, name in enumerate(names):
    with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
      writer.write_table(table.slice(n * size, size), max_chunksize=rows)
  (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
  (folder / "dataset_info.json").write_text("{}")
  return folder


def write_splits(folder: Path, **tables: pa.Table) -> Path:
  for name, table in tables.items():
    write_saved(folder / name, table)
  folder.mkdir(exist_ok=True)
  (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*tables]}))
  return folder


def write_parquet(path: Path, table: pa.Table = TABLE, **options) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(table, path, **options)
  return path


def texts(documents) -> list[str]:
  return [text for (text,) in documents]


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "none"])
def test_rows_of_parquet_are_documents(tmp_path, compression):
  path = write_parquet(tmp_path / "a.parquet", row_group_size=700, compression=compression)
  corpus = parquet_corpus(str(path), eval_fraction=0.1)
  assert texts(corpus.train()) == [row for row in ROWS if not is_held_out(row, 0.1)]
  assert texts(corpus.evaluation()) == [row for row in ROWS if is_held_out(row, 0.1)]
  assert corpus.counts["train_documents"] + corpus.counts["evaluation_documents"] == 3000
  assert texts(parquet_corpus(str(path), field="other", eval_fraction=0.0).train()) == [row.upper() for row in ROWS]


def test_folders_and_evaluation_files(tmp_path):
  for n in (2, 0, 1):
    write_parquet(tmp_path / "all" / f"part-{n}.parquet", TABLE.slice(1000 * n, 1000))
  (tmp_path / "all" / "README.md").write_text("what this is")
  held_out = write_parquet(tmp_path / "dev.parquet", TABLE.slice(0, 3))
  corpus = parquet_corpus(str(tmp_path / "all"), str(held_out))
  assert texts(corpus.train()) == ROWS and texts(corpus.evaluation()) == ROWS[:3]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_saved_data_set_of_one_split(tmp_path, shards):
  corpus = arrow_corpus(str(write_saved(tmp_path / "d", TABLE, shards)), eval_fraction=0.2)
  assert texts(corpus.train()) == [row for row in ROWS if not is_held_out(row, 0.2)]


def test_a_saved_data_set_of_several_splits(tmp_path):
  parts = {"train": TABLE.slice(0, 2000), "validation": TABLE.slice(2000, 500), "test": TABLE.slice(2500)}
  path = str(write_splits(tmp_path / "d", **parts))
  corpus = arrow_corpus(path)
  assert texts(corpus.train()) == ROWS[:2000] and texts(corpus.evaluation()) == ROWS[2000:2500]
  other = arrow_corpus(path, split="test", eval_split="train")
  assert texts(other.train()) == ROWS[2500:] and texts(other.evaluation()) == ROWS[:2000]
  assert other.fingerprint != corpus.fingerprint
  assert "has no such split; it has train, validation, test" in refusal(arrow_corpus, path, "dev")
  assert "would share rows" in refusal(arrow_corpus, path, "train", "train")


def test_every_kind_of_column_of_texts(tmp_path):
  struct = pa.StructArray.from_arrays([pa.array(ROWS[:9]), pa.array(ROWS[9:18])], names=["en", "de"])
  kinds = {
    "small": pa.array(ROWS[:9], pa.string()),
    "large": pa.array(ROWS[:9], pa.large_string()),
    "words": pa.array(ROWS[:9]).dictionary_encode(),
    "translation": struct,
    "a.b": pa.array(ROWS[:9]),
  }
  for path, corpus_of in (
    (write_parquet(tmp_path / "a.parquet", pa.table(kinds)), parquet_corpus),
    (write_saved(tmp_path / "d", pa.table(kinds)), arrow_corpus),
  ):
    for field in ("small", "large", "words", "translation.en", "a.b"):
      assert texts(corpus_of(str(path), eval_fraction=0.0, field=field).train()) == ROWS[:9], field
    pairs = corpus_of(str(path), eval_fraction=0.0, field="translation.en", target_field="translation.de")
    assert pairs.sides == 2 and [*pairs.train()] == [*zip(ROWS[:9], ROWS[9:18], strict=True)]


def test_blank_rows_and_nulls_are_left_out_and_counted(tmp_path):
  path = write_parquet(tmp_path / "a.parquet", pa.table({"text": ["a", "", None, " \n", "b"]}))
  corpus = parquet_corpus(str(path), eval_fraction=0.0)
  assert texts(corpus.train()) == ["a", "b"] and corpus.counts["train_blank"] == 3


def test_undecodable_text_is_named_or_replaced(tmp_path):
  wrong = pa.array([b"fine", b"Gr\xfc\xdfe"]).view(pa.string())
  path = str(write_parquet(tmp_path / "a.parquet", pa.table({"text": wrong})))
  with pytest.raises(UserError, match=r"a\.parquet, row 2: not UTF-8 .*data\.errors=replace"):
    [*parquet_corpus(path, eval_fraction=0.0).train()]
  corpus = parquet_corpus(path, eval_fraction=0.0, errors="replace")
  assert texts(corpus.train()) == ["fine", "Gr\ufffd\ufffde"] and corpus.counts["train_undecodable"] == 1


MISTAKES = [
  ("parquet", {"path": "none.parquet"}, "no such file"),
  ("parquet", {"path": "empty"}, "no such file"),
  ("parquet", {"path": "notes"}, "no file there ends in .parquet"),
  ("parquet", {"path": "text.parquet"}, "text.parquet is not a Parquet file, or is truncated"),
  ("parquet", {"path": "cut.parquet"}, "cut.parquet is not a Parquet file, or is truncated"),
  ("parquet", {"path": "a.parquet", "field": "txt"}, "data.field=txt: .*it has text, other"),
  ("parquet", {"path": "a.parquet", "field": "id"}, "data.field=id: .*no such column of texts"),
  ("parquet", {"path": "a.parquet", "target_field": "other"}, "set data.field as well"),
  ("parquet", {"path": "two.parquet"}, "data.field is empty, .*set it to one of its texts: a, b"),
  ("arrow", {"path": "notes"}, "no state.json or dataset_dict.json"),
  ("arrow", {"path": "cut"}, "data-00001-of-00002.arrow is truncated"),
  ("arrow", {"path": "lost"}, "cannot read .*data-00000-of-00002.arrow"),
  ("arrow", {"path": "saved", "eval_split": "dev"}, "has one split only"),
  ("arrow", {"path": "saved", "split": "validation"}, "data.split=validation: saved has one split only"),
  ("arrow", {"path": "odd"}, "_data_files in odd/state.json does not name files"),
  ("arrow", {"path": "odder"}, "cannot read splits in odder/dataset_dict.json: it is no list"),
  ("text", {"path": "a.parquet"}, "set data.source=parquet"),
]


@pytest.mark.parametrize(("source", "settings", "message"), MISTAKES)
def test_mistakes_are_named(tmp_path, monkeypatch, source, settings, message):
  monkeypatch.chdir(tmp_path)
  whole = write_parquet(Path("a.parquet")).read_bytes()
  Path("cut.parquet").write_bytes(whole[: len(whole) // 2])
  Path("text.parquet").write_text("no table\n")
  write_parquet(Path("two.parquet"), pa.table({"a": ["x"], "b": ["y"]}))
  for name in ("empty", "notes"):
    Path(name).mkdir()
  Path("notes/a.txt").write_text("text\n")
  write_saved(Path("saved"), TABLE)
  last = write_saved(Path("cut"), TABLE) / "data-00001-of-00002.arrow"
  last.write_bytes(last.read_bytes()[:-100])
  (write_saved(Path("lost"), TABLE) / "data-00000-of-00002.arrow").unlink()
  (write_saved(Path("odd"), TABLE) / "state.json").write_text(json.dumps({"_data_files": ["data.arrow"]}))
  write_splits(Path("odder")).joinpath("dataset_dict.json").write_text(json.dumps({"splits": "train"}))
  message_of = refusal(lambda: [*SOURCES[source](DataConfig(source, **settings)).train()])
  assert re.search(message, message_of), message_of


def test_rows_are_read_some_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(columns, "_BATCH", 50)
  for path, batches in (
    (write_parquet(tmp_path / "a.parquet"), columns._parquet_batches),
    (write_saved(tmp_path / "d", TABLE, 1, rows=3000) / "data-00000-of-00001.arrow", columns._arrow_batches),
  ):
    sizes = [len(batch) for batch in batches(path, ["text"])]
    assert max(sizes) <= 50 and sum(sizes) == 3000
  assert texts(arrow_corpus(str(tmp_path / "d"), eval_fraction=0.0).train()) == ROWS


def test_from_the_configuration_to_rows(tmp_path, monkeypatch):
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  paths = {"parquet": write_parquet(tmp_path / "a.parquet"), "arrow": write_saved(tmp_path / "d", TABLE)}
  batches = []
  for source, path in paths.items():
    data = DataConfig(source, str(path), field="other", seq_len=32)
    prepared = prepare(data, TokenizerConfig(kind="byte"), ObjectiveConfig("causal"), seed=0)
    assert prepared.corpus.name == source
    batches.append(prepared.train(4).batch(3)["inputs"].tolist())
  assert batches[0] == batches[1]


@pytest.mark.slow
def test_what_datasets_itself_saves_is_read(tmp_path):
  pytest.importorskip("datasets")
  code = (
    "import sys, datasets; d = datasets.Dataset.from_dict({'text': [f'text {n}' for n in range(500)]});"
    "d.save_to_disk(sys.argv[1] + '/one', num_shards=3);"
    "d.shuffle(seed=1).train_test_split(0.2, seed=1).save_to_disk(sys.argv[1] + '/two');"
    "print(datasets.load_from_disk(sys.argv[1] + '/two')['train']['text'][:3])"
  )
  command = [sys.executable, "-c", code, str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
  assert texts(arrow_corpus(str(tmp_path / "one"), eval_fraction=0.0).train()) == [f"text {n}" for n in range(500)]
  two = arrow_corpus(str(tmp_path / "two"), eval_split="test")
  assert str(texts(two.train())[:3]) == done.stdout.splitlines()[-1]
  assert sorted([*texts(two.train()), *texts(two.evaluation())]) == sorted(f"text {n}" for n in range(500))
