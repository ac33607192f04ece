"""The keys that say where text is read from: what follows from them, and what is refused."""

import logging

import pytest

from tests.support.launching import ROOT
from tfm_jax.data.config import READ, DataConfig, MixtureSource, check_data, resolve_data
from tfm_jax.data.prepare import SOURCES, prepare
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import ObjectiveConfig
from tfm_jax.text.tokenizers.table import TokenizerConfig
from tfm_jax.training.config import from_stored, load, to_dict


@pytest.mark.parametrize("source", ["embedded", "text"])
@pytest.mark.parametrize(
  ("changes", "culprit"),
  [
    ({"document": "paragraph"}, r"data\.document=paragraph: expected one of block, line, file"),
    ({"eval_fraction": 1.5}, r"data\.eval_fraction=1\.5"),
    ({"errors": "ignore"}, r"data\.errors=ignore"),
  ],
)
def test_values_are_checked_whatever_the_source(source, changes, culprit):
  data = DataConfig(source, "a.txt", **changes)
  for check in (check_data, lambda data: prepare(data, TokenizerConfig(kind="char"), ObjectiveConfig("mlm"), 0)):
    with pytest.raises(UserError, match=culprit):
      check(data)


def test_files_without_a_source_are_text(caplog):
  caplog.set_level(logging.INFO)
  for paths, source in (
    ({"path": "a.txt"}, "text"),
    ({"path": "a.jsonl"}, "text"),
    ({"eval_path": "b.txt"}, "text"),
    ({"path": "a", "target_path": "b"}, "parallel"),
  ):
    caplog.clear()
    assert resolve_data(DataConfig(**paths)) == DataConfig(source=source, **paths)
    assert f"data.source={source} is taken" in caplog.text
  caplog.clear()
  for data in (DataConfig(), DataConfig("files", "a.tsv"), DataConfig("text", "a.txt")):
    assert resolve_data(data) == data
  assert not caplog.text


UNREAD = [
  ({"source": "parquet", "target_path": "b"}, "data.target_path=b"),
  ({"source": "parquet", "eval_split": "test"}, "data.eval_split=test"),
  ({"source": "jsonl", "target_path": "b"}, "data.target_path=b"),
  ({"source": "jsonl", "split": "validation"}, "data.split=validation"),
  ({"source": "arrow", "eval_path": "b"}, "data.eval_path=b"),
  ({"source": "tfds", "eval_path": "b"}, "data.eval_path=b"),
  ({"source": "tfds", "target_path": "b"}, "data.target_path=b"),
  ({"source": "parallel", "target_path": "b", "field": "en"}, "data.field=en"),
  ({"target_path": "b", "target_field": "en"}, "data.target_field=en"),
  ({"path": "", "split": "test"}, "data.split=test"),
]


@pytest.mark.parametrize(("settings", "culprit"), UNREAD)
def test_keys_that_a_source_does_not_read_are_refused(settings, culprit):
  with pytest.raises(UserError, match=rf"^{culprit} is not read by data\.source=\w+ \(which reads .+\): unset it"):
    resolve_data(DataConfig(**{"path": "a", **settings}))
  mixture = (MixtureSource(**{"path": "a", **settings}),)
  with pytest.raises(UserError, match=r"^data\.mixture\[0\]\."):
    resolve_data(DataConfig(mixture=mixture))


def test_keys_that_a_source_reads_are_not():
  assert set(READ) <= set(SOURCES)
  for source, keys in READ.items():
    read = DataConfig(source, **dict.fromkeys(keys, "x"))
    assert resolve_data(read) == read


@pytest.mark.parametrize(
  ("source", "key", "field"), [("jsonl", "body", "body"), ("text", "text", ""), ("tfds", "body", "en")]
)
def test_the_key_of_the_text_of_an_older_run_is_the_field_today(source, key, field):
  today = to_dict(load(str(ROOT / "configs/quickstart.py"), {"data.source": source, "data.field": field}))
  own = "" if source == "jsonl" else field  # JSON lines had no field, and only they read the key
  old = today | {"data": today["data"] | {"field": own, "text_key": key}}
  assert to_dict(from_stored(old)) == today
