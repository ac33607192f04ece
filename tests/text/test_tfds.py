"""Data sets of TensorFlow Datasets without TensorFlow: which are found, what is read of them, and what is refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.launching import environment
from tests.support.refusal import refusal
from tests.support.tfds_data import write_data, write_glue
from tfm_jax.data.config import DataConfig
from tfm_jax.data.prepare import prepare
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import ObjectiveConfig
from tfm_jax.text import tfds
from tfm_jax.text.corpora.tfds import tfds_corpus
from tfm_jax.text.tfds import open_data, open_splits
from tfm_jax.text.tokenizers.table import TokenizerConfig
from tfm_jax.training.config import load, resolve

SENTENCES = [{"sentence": f"film {n}", "label": n % 2} for n in range(10)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder of prepared data sets, which no test changes."""
  from tensorflow_datasets import features

  root = tmp_path_factory.mktemp("tfds")
  write_glue(root, "sst2", {"train": SENTENCES, "validation": SENTENCES[:4], "test": [{"sentence": "?", "label": -1}]})
  texts = {"text": features.Text(), "title": features.Text(), "length": np.int32}
  articles = [{"text": f"Article {n} is é.", "title": f"T{n}", "length": n} for n in range(300)]
  write_data(root, "wikipedia", texts, {"train": articles}, config="20230601.en", shards=3)
  pairs = features.Translation(languages=("de", "en"))
  translated = [{"de": f"Satz {n}", "en": f"sentence {n}"} for n in range(6)] + [{"de": " ", "en": "lost"}]
  splits = {"train": translated, "validation": translated[:2]}
  write_data(root, "wmt14_translate", pairs, splits, config="de-en")
  nested = {
    "id": np.int64,
    "translation": {"en": features.Text()},
    "choices": features.Sequence(features.Text()),
    "image": features.Image(shape=(2, 2, 3)),
    "score": np.float32,
  }
  example = {"id": -1, "translation": {"en": "one"}, "choices": ["a", "é"], "score": 2.4}
  splits = {"train": [example | {"image": b"not an image"}]}
  write_data(root, "nested", nested, splits, version="1.2.0")
  write_data(root, "nested", {"new": features.Text()}, {"train": [{"new": "x"}], "test": [{"new": "y"}]}, "", "1.10.0")
  return root


@pytest.fixture
def root(prepared, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
  return prepared


@pytest.fixture
def copy(prepared, tmp_path, monkeypatch):
  """A copy that a test may damage."""
  folder = tmp_path / "copy"
  shutil.copytree(prepared, folder)
  monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
  return folder


def values(path, *names, split="train", errors="raise"):
  return list(open_data(path).split(split, "data.split").examples(names, errors, {}))


# ---- what is found and read


def test_tfds_prepares_glue_as_here(root):
  """The folder, features and classes are those of TFDS's own builder."""
  data = open_data("glue/sst2")
  assert (str(data), data.folder) == ("glue/sst2:2.0.0", root / "glue/sst2/2.0.0")
  assert set(data.fields) == {"idx", "label", "sentence"}
  assert data.fields["label"].classes == ("negative", "positive")


def test_every_example_is_read_once(root):
  expected = sorted((row["sentence"], ("negative", "positive")[row["label"]]) for row in SENTENCES)
  assert sorted(values("glue/sst2", "sentence", "label")) == expected


def test_an_unknown_class_is_none(root):
  assert values("glue/sst2", "sentence", "label", split="test") == [("?", None)]


def test_many_shards_and_batches_come_in_their_order(root, monkeypatch):
  whole = values("wikipedia/20230601.en", "title", "length")
  assert sorted(length for _, length in whole) == list(range(300))
  assert len(open_data("wikipedia/20230601.en").split("train", "").shards) == 3
  monkeypatch.setattr(tfds, "_BATCH", 7)
  assert values("wikipedia/20230601.en", "title", "length") == whole
  parts = [values("wikipedia/20230601.en", "title", "length", split=s) for s in ("train[:10%]", "train[10%:]")]
  assert parts[0] + parts[1] == whole and len(parts[0]) == 30


def test_records_are_read_as_they_are_needed(root, monkeypatch):
  """A set larger than memory: a batch of records is held, not the set."""
  from tensorflow_datasets.core.data_sources.array_record import ArrayRecordDataSource

  monkeypatch.setattr(tfds, "_BATCH", 10)
  read = []
  original = ArrayRecordDataSource.__getitems__
  monkeypatch.setattr(
    ArrayRecordDataSource, "__getitems__", lambda self, keys: read.extend(keys) or original(self, keys)
  )
  examples = open_data("wikipedia/20230601.en").split("train", "").examples(["text"], "raise", {})
  next(examples)
  assert len(read) == 10


def test_nested_fields_lists_and_numbers(root):
  """Fields that are not asked for, such as images, are not decoded."""
  names = ("translation.en", "choices", "score", "id")
  assert values("nested:1.2.0", *names) == [("one", ["a", "é"], 2.4, -1)]


def test_the_latest_version_and_the_default_configuration(root):
  assert str(open_data("nested")) == "nested:1.10.0" and str(open_data("nested:1.2.0")) == "nested:1.2.0"
  assert str(open_data("wikipedia")) == "wikipedia/20230601.en:1.0.0"


def test_the_home_folder_is_the_default(prepared, tmp_path, monkeypatch):
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))
  assert f"there is no folder {tmp_path}/tensorflow_datasets" in refusal(open_data, "glue/sst2")
  (tmp_path / "tensorflow_datasets").symlink_to(prepared)
  assert str(open_data("glue/sst2")) == "glue/sst2:2.0.0"


def test_array_records_beside_tfrecords(copy):
  """As `tfds convert_format` leaves a folder."""
  file = copy / "glue/sst2/2.0.0/dataset_info.json"
  info = json.loads(file.read_text())
  assert info["fileFormat"] == "array_record"
  file.write_text(json.dumps(info | {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}))
  assert len(values("glue/sst2", "sentence")) == 10


def test_tensorflow_is_not_imported(root):
  code = (
    "import sys; from tfm_jax.text.tfds import open_data; assert 'tensorflow_datasets' not in sys.modules; "
    "print(*open_data('glue/sst2').split('train', '').examples(['sentence'], 'raise', {})); "
    "assert 'tensorflow' not in sys.modules"
  )
  done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
  assert done.returncode == 0 and "film 7" in done.stdout, done.stderr
  assert not done.stderr


# ---- splits


def test_the_validation_split_is_held_out(root):
  train, held_out = open_splits("glue/sst2", "train", "")
  assert (train.split, held_out.split, len(held_out)) == ("train", "validation", 4)
  assert open_splits("wikipedia", "train", "")[1] is None
  assert open_splits("glue/sst2", "train", "test")[1].split == "test"


def test_splits_never_share_examples(root):
  assert open_splits("glue/sst2", "train+validation", "")[1] is None
  assert open_splits("glue/sst2", "train[:80%]", "train[80%:]")[1].split == "train[80%:]"
  message = refusal(open_splits, "glue/sst2", "train", "train[80%:]")
  assert message == "data.split=train and data.eval_split=train[80%:] of glue/sst2:2.0.0 share examples"


# ---- what is refused


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("/data/train.tsv", "data.path=/data/train.tsv: data.source=tfds expects NAME[/CONFIG][:VERSION]"),
    ("", "data.path=: data.source=tfds expects"),
    ("glue/sts2", "has glue/sst2, nested, wikipedia/20230601.en, wmt14_translate/de-en, and not this, did you mean"),
    ("c4/en", "tfds build c4/en --file_format=array_record --data_dir="),
    ("glue/sst2:1.0.0", "glue/sst2 has no such version; it has 2.0.0"),
  ],
)
def test_a_data_set_that_is_not_there(root, path, message):
  said = refusal(open_data, path)
  assert message in said and f"data.path={path}" in said


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
  said = refusal(open_data, "glue/sst2")
  assert f"there is no folder TFDS_DATA_DIR={tmp_path}/none" in said
  assert f"tfds build glue/sst2 --file_format=array_record --data_dir={tmp_path}/none" in said


@pytest.mark.parametrize("split", ["dev", "train[", "train[:30]", "train[2%", ""])
def test_a_split_that_is_not_there(root, split):
  said = refusal(open_data("glue/sst2").split, split, "data.split")
  assert said == f"data.split={split}: glue/sst2:2.0.0 has no such split; it has test, train, validation"


def test_a_split_without_examples(root):
  said = refusal(open_data("glue/sst2").split, "train[:0]", "data.eval_split")
  assert said.startswith("data.eval_split=train[:0]: no examples of glue/sst2:2.0.0")


@pytest.mark.parametrize("stored", ["tfrecord", None])
def test_tfrecords_are_refused_with_the_command_that_converts_them(copy, stored):
  file = copy / "glue/sst2/2.0.0/dataset_info.json"
  info = json.loads(file.read_text()) | {"fileFormat": stored}
  file.write_text(json.dumps({key: value for key, value in info.items() if value}))
  said = refusal(open_data, "glue/sst2")
  assert "holds tfrecord files, which only TensorFlow reads" in said
  assert f"tfds convert_format --dataset_version_dir={file.parent} --out_file_format=array_record" in said


def shard_of(folder, number=0):
  return sorted(folder.glob("*train.array_record*"))[number]


@pytest.mark.parametrize("kept", [0, 0.4, 0.99])
def test_a_truncated_file_is_named(copy, kept):
  """Opened by itself, it may have 0 records and no error."""
  shard = shard_of(copy / "wikipedia/20230601.en/1.0.0", 1)
  content = shard.read_bytes()
  shard.write_bytes(content[: int(len(content) * kept)])
  said = refusal(open_splits, "wikipedia", "train", "")
  assert str(shard) in said and "copy or prepare the data set again" in said


def test_a_shard_of_another_preparation_is_named(copy):
  folder = copy / "wikipedia/20230601.en/1.0.0"
  shutil.copy(shard_of(copy / "glue/sst2/2.0.0"), shard_of(folder))
  assert f"{shard_of(folder)} has 10 records, and dataset_info.json counts 100: it is truncated" in refusal(
    open_splits, "wikipedia", "train", ""
  )


def test_a_shard_that_is_missing_is_named(copy):
  shard = shard_of(copy / "wikipedia/20230601.en/1.0.0", 2)
  shard.unlink()
  assert refusal(open_splits, "wikipedia", "train", "").startswith(f"{shard} is missing")


def test_a_damaged_record_ends_in_one_line(copy):
  folder = copy / "glue/sst2/2.0.0"
  shard = shard_of(folder)
  content = bytearray(shard.read_bytes())
  content[200:264] = bytes(byte ^ 255 for byte in content[200:264])  # the rest of so small a file is padding
  shard.write_bytes(content)
  with pytest.raises(UserError, match="sst2") as error:
    list(open_splits("glue/sst2", "train", "")[0].examples(["sentence"], "raise", {}))
  assert "\n" not in str(error.value) and "prepare" in str(error.value)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_a_damaged_description_is_named(copy, name):
  file = copy / "glue/sst2/2.0.0" / name
  file.write_text(file.read_text()[:40])
  assert refusal(open_data, "glue/sst2").startswith(f"cannot read {file}: ")


# ---- the corpus


def parts(corpus):
  return list(corpus.train()), list(corpus.evaluation())


def test_a_corpus_of_one_field(root):
  corpus = tfds_corpus("wikipedia/20230601.en", eval_fraction=0.2)
  train, held_out = parts(corpus)
  assert sorted(train + held_out) == sorted((f"Article {n} is é.",) for n in range(300))
  assert 30 < len(held_out) < 90 and corpus.sides == 1
  assert parts(corpus) == (train, held_out)
  assert "20.0% of the examples" in corpus.held_out and "wikipedia/20230601.en:1.0.0 (train): 300" in corpus.description


def test_texts_are_held_out_whatever_else_there_is(root):
  """By a hash of the text alone: a slice holds out what the whole holds out of it."""
  whole, part = (parts(tfds_corpus("wikipedia", split=split, eval_fraction=0.2)) for split in ("train", "train[:50%]"))
  assert part[1] and set(part[1]) < set(whole[1]) and set(part[0]) < set(whole[0])


def test_nothing_is_held_out_of_a_fraction_of_0(root):
  train, held_out = parts(tfds_corpus("wikipedia", eval_fraction=0.0))
  assert len(train) == 300 and not held_out


def test_a_validation_split_is_held_out(root):
  corpus = tfds_corpus("glue/sst2", field="sentence", eval_fraction=0.5)
  train, held_out = parts(corpus)
  assert (len(train), len(held_out)) == (10, 4) and "validation" in corpus.held_out


def test_pairs_of_two_fields(root):
  corpus = tfds_corpus("wmt14_translate/de-en", field="en", target_field="de")
  train, held_out = parts(corpus)
  assert sorted(train) == [(f"sentence {n}", f"Satz {n}") for n in range(6)]
  assert sorted(held_out) == [(f"sentence {n}", f"Satz {n}") for n in range(2)]
  assert corpus.sides == 2 and corpus.counts["train_blank"] == 1


def test_the_only_text_is_the_field(root):
  assert parts(tfds_corpus("nested:1.10.0", eval_fraction=0.0))[0] == [("x",)]
  assert parts(tfds_corpus("nested:1.2.0", eval_fraction=0.0))[0] == [("one",)]


@pytest.mark.parametrize(
  ("path", "fields", "message"),
  [
    ("wmt14_translate", {}, "data.field is empty, and wmt14_translate/de-en:1.0.0 has no field text: set it to"),
    ("wikipedia", {"field": "body"}, "data.field=body: wikipedia/20230601.en:1.0.0 has no such field; its texts are"),
    ("wikipedia", {"field": "length"}, "holds no single text there; its texts are text, title"),
    ("nested:1.2.0", {"field": "choices"}, "holds no single text there; its texts are translation.en"),
    ("wmt14_translate", {"field": "en", "target_field": "fr"}, "data.target_field=fr"),
    ("wmt14_translate", {"target_field": "de"}, "set data.field as well; the texts of"),
  ],
)
def test_a_field_that_is_not_there(root, path, fields, message):
  with pytest.raises(UserError) as error:
    tfds_corpus(path, **fields)
  assert message in str(error.value)


def test_the_fingerprint_is_that_of_the_content(root, copy, monkeypatch):
  """Moving the folder changes nothing; another field, split, fraction or text does."""
  here = tfds_corpus("wikipedia").fingerprint
  monkeypatch.setenv("TFDS_DATA_DIR", str(root))
  assert tfds_corpus("wikipedia").fingerprint == here
  others = [
    tfds_corpus("wikipedia", field="title"),
    tfds_corpus("wikipedia", split="train[:50%]"),
    tfds_corpus("wikipedia", eval_fraction=0.2),
    tfds_corpus("glue/sst2", field="sentence"),
  ]
  assert len({here, *(corpus.fingerprint for corpus in others)}) == 5


def test_it_is_prepared_for_pre_training(root):
  data = DataConfig(source="tfds", path="wmt14_translate", field="en", target_field="de", seq_len=32, target_len=32)
  objective = ObjectiveConfig(name="seq2seq")
  prepared = prepare(data, TokenizerConfig(kind="byte"), objective, seed=0, workers=0)
  assert (prepared.token_file.train.documents, prepared.token_file.evaluation.documents) == (6, 2)
  assert prepared.train(2).num_rows and prepared.evaluation(2).num_rows


@pytest.mark.parametrize(
  ("config", "path", "fields"),
  [
    ("bert_base.py:wikipedia", "wikipedia/20230601.en", ("", "")),
    ("t5_base.py:c4", "c4/en", ("", "")),
    ("transformer_base.py:wmt14", "wmt14_translate/de-en", ("en", "de")),
  ],
)
def test_variants_of_configs(config, path, fields):
  data = resolve(load(f"configs/{config}")).data
  assert (data.source, data.path, (data.field, data.target_field)) == ("tfds", path, fields)


def test_bytes_that_are_not_utf_8(tmp_path, monkeypatch):
  from tensorflow_datasets import features

  write_data(tmp_path, "broken", {"text": features.Text()}, {"train": [{"text": b"caf\xe9"}]})
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError, match=r"broken:1\.0\.0 \(train\), example 1: not UTF-8 .*data\.errors=replace"):
    list(tfds_corpus("broken", eval_fraction=0.0).train())
  corpus = tfds_corpus("broken", eval_fraction=0.0, errors="replace")
  assert list(corpus.train()) == [("caf\ufffd",)] and corpus.counts["train_undecodable"] == 1


@pytest.mark.parametrize("split", ["train", "train[:10%]", "train[95:215]", "train[-7:]", "train[:5]+train[299:]"])
def test_parquet_is_read_as_array_records_are(root, tmp_path, monkeypatch, split):
  from tensorflow_datasets import features

  articles = [{"text": f"Article {n} is é.", "title": f"T{n}", "length": n} for n in range(300)]
  texts = {"text": features.Text(), "title": features.Text(), "length": np.int32}
  write_data(tmp_path, "wikipedia", texts, {"train": articles}, "20230601.en", shards=3, file_format="parquet")
  monkeypatch.setattr(tfds, "_BATCH", 32)
  expected = [*open_data("wikipedia/20230601.en").split(split, "data.split").examples(("text", "length"), "raise", {})]
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  data = open_data("wikipedia/20230601.en")
  read, names, iter_batches, name_of = [], [], pq.ParquetFile.iter_batches, tfds.TfdsSplit.__str__
  monkeypatch.setattr(
    pq.ParquetFile, "iter_batches", lambda *a, **k: (read.append(b) or b for b in iter_batches(*a, **k))
  )
  monkeypatch.setattr(tfds.TfdsSplit, "__str__", lambda self: names.append(self) or name_of(self))
  part = data.split(split, "data.split")
  assert [*part.examples(("text", "length"), "raise", {})] == expected and len(expected) > 4 and len(names) == 1
  needed = [min(-(-(shard.skip + shard.take) // 32) * 32, 100) for shard in part.shards]  # and nothing after a split
  assert sum(map(len, read)) == sum(needed)
  shard = sorted(data.folder.glob("*.parquet*"))[1]
  shard.write_bytes(shard.read_bytes()[:-100])
  assert "truncated or damaged" in refusal(lambda: open_data("wikipedia/20230601.en").split("train", "data.split"))
