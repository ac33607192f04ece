"""`prepare`: from the configuration to rows, built once; what is refused, and what the log says."""

import dataclasses
import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_token_file import documents_of
from tests.support.next_sentence import NextSentence
from tfm_jax.data import prepare as data_prepare
from tfm_jax.data import token_file
from tfm_jax.data.config import DataConfig
from tfm_jax.data.dataset import unigram_entropy
from tfm_jax.data.prepare import Prepared, prepare, vocabulary_of
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import ObjectiveConfig
from tfm_jax.objectives.table import OBJECTIVES
from tfm_jax.text.tokenizers.library import WordPieceTokenizer
from tfm_jax.text.tokenizers.table import TokenizerConfig
from tfm_jax.training.config import load


@pytest.fixture
def text_file(tmp_path, monkeypatch) -> Path:
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  path = tmp_path / "text.txt"
  path.write_text("".join(f"Paragraph {n} is here.\nIt has two lines.\n\n" for n in range(400)))
  return path


def prepare_text(path: Path, objective: str = "causal", kind: str = "char", **data) -> Prepared:
  config = DataConfig(path=str(path), **{"source": "text", "eval_fraction": 0.1, "seq_len": 32, **data})
  sentinels = 100 if objective in ("span_corruption", "ul2") else 0
  return prepare(config, TokenizerConfig(kind=kind, sentinels=sentinels), ObjectiveConfig(objective), seed=0)


@pytest.mark.parametrize("name", [*OBJECTIVES])
@pytest.mark.parametrize("packing", [True, False])
def test_every_objective_from_a_text_file(text_file, name, packing):
  prepared = prepare_text(text_file, name, packing=packing)
  train, held_out = prepared.train(8), prepared.evaluation(8)
  assert held_out is not None
  batch = train.batch(0)
  assert {n: a.shape[1:] for n, a in batch.items()} == {n: field.shape for n, field in train.fields.items()}
  weights = "weights" if "weights" in batch else "decoder_weights"
  assert batch[weights].any()
  assert 0 < unigram_entropy(held_out) < np.log(prepared.vocabulary.size)
  assert train.text_bytes + held_out.text_bytes == prepared.counts["train_bytes"] + prepared.counts["evaluation_bytes"]


def test_the_second_time_all_comes_from_the_cache(text_file, monkeypatch):
  first = prepare_text(text_file)
  monkeypatch.setattr("tfm_jax.data.prepare.train_tokenizer", None)
  monkeypatch.setattr(token_file, "_write_split", None)
  second = prepare_text(text_file, seq_len=64)  # another row plan over the same file
  assert second.fingerprints == first.fingerprints
  assert second.counts == first.counts


@pytest.mark.parametrize("recipe", ["t5_small", "gpt2_small", "transformer_base", "bert_base"])
def test_recipes_prepare_a_small_text(recipe, tmp_path, monkeypatch, caplog):
  """With as many pieces as the text has; the first start warns of that, and each later one."""
  draw = np.random.default_rng(0)
  words = ["".join(draw.choice(list("abcdefgh"), 5)) for _ in range(300)]
  text = tmp_path / "small.txt"
  text.write_text("\n\n".join(" ".join(draw.choice(words, 20)) + "." for _ in range(100)))
  config = load(f"configs/{recipe}.py", {"data.source": "text", "data.path": str(text)})
  sizes, prints = set(), set()
  for cache in ("one", "one", "two"):
    monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / cache))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      prepared = prepare(config.data, config.tokenizer, config.objective, 0)
    size = prepared.tokenizer.vocab_size
    messages = [r.getMessage() for r in caplog.records if "tokenizer.vocab_size" in r.getMessage()]
    assert messages == [
      f"tokenizer.vocab_size={config.tokenizer.vocab_size}: this text has only enough pieces for a vocabulary of "
      f"{size}, which is taken"
    ]
    sizes.add((prepared.vocabulary.size, size))
    prints.add(tuple(sorted(prepared.fingerprints.items())))
    prepared.train(4).batch(0)
  assert len(sizes) == len(prints) == 1
  assert 500 < size < 5000 and sizes == {(size, size)}


def test_a_stored_tokenizer_stands(text_file, tmp_path):
  first = prepare_text(text_file)
  first.tokenizer.save(tmp_path / "tokenizer")
  text_file.write_text(text_file.read_text() + "\n\nNew signs: %&§\n\n" * 100)
  data = DataConfig(source="text", path=str(text_file), seq_len=32)
  again = prepare(data, TokenizerConfig(kind="char"), ObjectiveConfig("causal"), 0, tmp_path / "tokenizer")
  assert again.fingerprints["tokenizer"] == first.fingerprints["tokenizer"]
  assert again.fingerprints["data"] != first.fingerprints["data"]


def test_a_changed_text_or_split_is_prepared_anew(text_file):
  prints = {
    prepare_text(text_file).fingerprints["data"],
    prepare_text(text_file, eval_fraction=0.2).fingerprints["data"],
  }
  prints.add(prepare_text(text_file, document="line").fingerprints["data"])
  prints.add(prepare_text(text_file, "mlm").fingerprints["data"])
  text_file.write_text("Something else.\n\n" * 400)
  prints.add(prepare_text(text_file).fingerprints["data"])
  assert len(prints) == 5


def test_a_damaged_tokenizer_in_the_cache_is_trained_again(text_file, tmp_path):
  first = prepare_text(text_file)
  (stored,) = (tmp_path / "cache" / "tokenizers").iterdir()
  (stored / "tokenizer.json").write_text("{")
  assert prepare_text(text_file).tokenizer.fingerprint == first.tokenizer.fingerprint


def test_parallel_files(tmp_path, monkeypatch):
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  (tmp_path / "a").write_text("".join(f"line {n}\n" for n in range(100)))
  (tmp_path / "b").write_text("".join(f"{n} enil\n" for n in range(100)))
  data = DataConfig("parallel", str(tmp_path / "a"), str(tmp_path / "b"), eval_fraction=0.1, seq_len=24)
  prepared = prepare(data, TokenizerConfig(kind="char"), ObjectiveConfig("seq2seq"), seed=0)
  held_out = prepared.evaluation(50)
  assert held_out is not None
  batch = held_out.batch(0)
  row = batch["decoder_targets"][0]
  assert prepared.tokenizer.decode(row[batch["decoder_segment_ids"][0] == 2]) == "91 enil"
  with pytest.raises(UserError, match="seq2seq"):
    prepare(data, TokenizerConfig(kind="char"), ObjectiveConfig("mlm"), seed=0)


def test_nothing_held_out_means_no_evaluation(text_file):
  assert prepare_text(text_file, eval_fraction=0.0).evaluation(4) is None


def test_unknown_tokens_are_reported(text_file, tmp_path, caplog):
  (tmp_path / "other.txt").write_text("Ω is Ω\n" * 10)
  with caplog.at_level(logging.WARNING):
    prepare_text(text_file, eval_path=str(tmp_path / "other.txt"))
  assert "evaluation: 20 tokens are unknown" in caplog.text


@pytest.mark.parametrize(
  ("changes", "culprit"),
  [
    ({"source": "wikipedia"}, r"data\.source"),
    ({"seq_len": 1}, r"data\.seq_len"),
    ({"path": "/none"}, "/none"),
  ],
)
def test_mistakes_are_named(text_file, changes, culprit):
  data = dataclasses.replace(DataConfig(source="text", path=str(text_file)), **changes)
  with pytest.raises(UserError, match=culprit):
    prepare(data, TokenizerConfig(kind="char"), ObjectiveConfig("mlm"), seed=0)


def test_json_lines_are_a_source(tmp_path, text_file):
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": f"Paragraph {n}.\n\nIt."}) + "\n" for n in range(99)))
  prepared = prepare_text(tmp_path / "a.jsonl", field="body")
  assert prepared.token_file.train.documents + prepared.token_file.evaluation.documents == 99
  assert prepare_text(tmp_path / "a.jsonl", source="jsonl", field="body").fingerprints == prepared.fingerprints


def test_pairs_of_json_lines_are_pairs_of_either_source(tmp_path, text_file):
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"en": f"one {n}", "de": f"eins {n}"}) + "\n" for n in range(9)))
  for source in ("text", "jsonl"):
    corpus = data_prepare.SOURCES[source](DataConfig(source, str(tmp_path / "a.jsonl"), field="en", target_field="de"))
    assert corpus.sides == 2 and next(corpus.train()) == ("one 0", "eins 0")


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize("size", [9, 30_522])
def test_characters_and_bytes_go_with_any_recipe(text_file, kind, size, caplog):
  caplog.set_level(logging.INFO)
  data = DataConfig("text", str(text_file), seq_len=32)
  prepared = prepare(data, TokenizerConfig(kind=kind, vocab_size=size), ObjectiveConfig("mlm"), 0)
  own = prepared.vocabulary.size
  assert own == (261 if kind == "byte" else 5 + len(set(text_file.read_text())))
  assert (
    f"tokenizer.kind={kind} has a size of its own: {own} ids, instead of tokenizer.vocab_size={size}" in caplog.text
  )
  assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_wrong_tokenizer_is_refused_before_anything_is_read(text_file, caplog):
  caplog.set_level(logging.INFO)
  for config in (TokenizerConfig(kind="bpe", vocab_size=300), TokenizerConfig()):
    with pytest.raises(UserError, match=r"^tokenizer\."):
      prepare(DataConfig("text", str(text_file)), config, ObjectiveConfig("mlm"), 0)
  assert not caplog.text


def test_a_wordpiece_tokenizer_of_an_earlier_release_is_not_taken_from_the_cache(text_file, monkeypatch):
  """It does not read the names of special tokens; a run that was started with it keeps its own."""
  config = TokenizerConfig(kind="wordpiece", vocab_size=200)
  data = DataConfig("text", str(text_file), seq_len=32)
  with monkeypatch.context() as earlier:
    earlier.setattr(WordPieceTokenizer, "training_version", ())
    earlier.setattr(WordPieceTokenizer, "reads_names", property(lambda self: False, lambda self, value: None))
    before = prepare(data, config, ObjectiveConfig("mlm"), 0).fingerprints
  now = prepare(data, config, ObjectiveConfig("mlm"), 0)
  assert now.tokenizer.reads_names and now.fingerprints != before


def test_the_log_shows_the_corpus_in_one_block(text_file, caplog):
  caplog.set_level(logging.INFO)
  text_file.write_bytes(text_file.read_bytes() + b" \n\x00 and \xff\n\n" * 3)
  prepared = prepare_text(text_file, errors="replace", document="line")
  (block,) = [message for message in caplog.messages if message.startswith("corpus (text)")]
  rows = [re.split(r"\s{2,}", line.strip()) for line in block.splitlines()[1:]]
  splits = (prepared.token_file.train, prepared.token_file.evaluation)
  assert rows[0] == ["train", "held-out"]
  assert rows[1] == ["documents", *(f"{split.documents:,}" for split in splits)]
  assert rows[2] == ["tokens", *(f"{split.num_tokens:,}" for split in splits)]
  assert rows[3] == ["bytes of text", *(f"{split.text_bytes:,}" for split in splits)]
  assert rows[4] == ["rows of 32 tokens", *(f"{d.num_rows:,}" for d in (prepared.train(4), prepared.evaluation(4)))]
  assert rows[5:] == [
    ["blank lines, left out", "360", "46"],
    ["lines not UTF-8, replaced by U+FFFD", "0", "3"],
    ["lines with NUL characters, kept", "0", "3"],
    ["held out: the last 10.0% of the text (data.eval_fraction)"],
  ]
  assert max(map(len, block.splitlines()[1:])) < 100


def test_an_empty_corpus_is_named(text_file):
  text_file.write_text("\n \n")
  with pytest.raises(UserError, match="text"):
    prepare_text(text_file)


def test_the_manifest_is_plain_json(text_file, tmp_path):
  prepared = prepare_text(text_file)
  assert json.loads((prepared.token_file.directory / "manifest.json").read_text()) == prepared.token_file.manifest
  assert vocabulary_of(prepared.tokenizer) == prepared.vocabulary


# ---- a new objective


def test_an_objective_with_a_plan_of_its_own_is_one_file_and_one_row(text_file, monkeypatch):
  monkeypatch.setitem(OBJECTIVES, "next_sentence", NextSentence)
  prepared = prepare_text(text_file, "next_sentence", seq_len=64)
  train, held_out = prepared.train(500), prepared.evaluation(10)
  assert held_out is not None
  documents = documents_of(prepared.token_file.train)
  assert train.num_rows == len(documents) - 1
  epochs = [train.batch(step) for step in range(2)]
  followed = []
  for batch in epochs:
    for row, inputs, segments, target in zip(
      *(batch[n] for n in ("rows", "inputs", "segment_ids", "targets")), strict=True
    ):
      first, second = (inputs[segments == s].tolist() for s in (1, 2))
      assert first == documents[row]
      assert (second == documents[row + 1]) == target
    followed.append(batch["targets"].mean())
  assert all(0.4 < share < 0.6 for share in followed)
  part = train.batch(1, np.array([3, 1]))
  for name, array in part.items():
    np.testing.assert_array_equal(array, epochs[1][name][[3, 1]])
  blank = held_out.batch(held_out.num_batches() - 1)
  assert not blank["weights"][blank["rows"] >= held_out.num_rows].any()
  assert unigram_entropy(held_out) < np.log(2) + 1e-6


# ---- what is held out


def test_a_run_is_told_that_nothing_is_held_out_and_why(text_file, caplog):
  prepare_text(text_file, eval_fraction=0.0)
  assert "nothing is held out" in caplog.text and "data.eval_fraction is 0" in caplog.text
  caplog.clear()
  text_file.write_text("one line of text that is a document\n" * 3)
  prepared = prepare_text(text_file, eval_fraction=0.01, document="line")
  assert prepared.evaluation(4) is None
  assert "data.eval_fraction=0.01 of" in caplog.text and "set data.eval_path" in caplog.text


def test_a_token_file_of_an_earlier_release_is_made_again_under_its_name(text_file):
  first = prepare_text(text_file)
  directory = first.token_file.directory
  manifest = json.loads((directory / "manifest.json").read_text())
  for sides in manifest["splits"].values():
    for side in sides:
      (directory / side.pop("bytes")["file"]).unlink()
  (directory / "manifest.json").write_text(json.dumps(manifest))
  again = prepare_text(text_file)
  assert again.token_file.directory == directory and again.fingerprints == first.fingerprints
  sizes = [len(f"Paragraph {n} is here.\nIt has two lines.") for n in range(350)]
  assert np.diff(again.token_file.train.sides[0].byte_offsets).tolist()[:350] == sizes


def test_counting_targets_is_done_once_where_it_takes_long(text_file, monkeypatch):
  monkeypatch.setattr(data_prepare, "_SLOW", 0)
  prepared = prepare_text(text_file)
  held_out = prepared.evaluation(4)
  assert held_out is not None
  entropy = prepared.unigram_entropy(held_out)
  assert entropy == unigram_entropy(held_out)
  monkeypatch.setattr(data_prepare, "unigram_entropy", None)
  again = prepare_text(text_file)
  assert again.unigram_entropy(held_out) == entropy


def test_a_run_of_an_earlier_release_knows_its_files_by_time(text_file):
  first = prepare_text(text_file)
  assert first.former_fingerprints != first.fingerprints
  os.utime(text_file, ns=(1, 1))
  second = prepare_text(text_file)
  assert second.fingerprints == first.fingerprints
  assert second.former_fingerprints["data"] != first.former_fingerprints["data"]
