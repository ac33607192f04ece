"""The token file: complete or absent, the same on any number of cores, made again where it is damaged."""

import dataclasses
import logging
from collections.abc import Iterator

import numpy as np
import pytest

from tfm_jax.data import encode, token_file
from tfm_jax.data.encode import Encoder
from tfm_jax.data.token_file import Damaged, build_token_file, open_token_file
from tfm_jax.errors import UserError
from tfm_jax.objectives.plan import Split
from tfm_jax.text.corpora.table import Corpus
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer

TEXTS = [f"Document {n}: {'so it goes on ' * (n % 7)}\nand ends.\n" for n in range(300)]


def corpus_of(texts: list[str], held_out: int = 1, name: str = "made up") -> Corpus:
  def read(part: str, counts: dict[str, int]) -> Iterator[tuple[str, ...]]:
    counts["blank"] = 2
    for text in texts[:-held_out] if part == "train" else texts[-held_out:]:
      yield (text,)

  return Corpus(name, "a corpus for this test", "f00d", read)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
  return Encoder(train_tokenizer(TokenizerConfig(kind="byte"), TEXTS), bos=True, eos=True)


def documents_of(split: Split, side: int = 0) -> list[list[int]]:
  one = split.sides[side]
  return [a.tolist() for a in np.split(np.asarray(one.tokens), one.offsets[1:-1])]


def test_the_token_file_holds_every_document(tmp_path, encoder):
  opened = build_token_file(tmp_path / "t", corpus_of(TEXTS), encoder)
  tokenizer = encoder.tokenizer
  expected = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS]
  assert documents_of(opened.train) + documents_of(opened.evaluation) == expected
  assert opened.train.text_bytes == sum(len(text.encode()) for text in TEXTS[:-1])
  assert opened.manifest["counts"] == {
    "train_documents": 299,
    "train_blank": 2,
    "train_bytes": opened.train.text_bytes,
    "evaluation_documents": 1,
    "evaluation_blank": 2,
    "evaluation_bytes": len(TEXTS[-1]),
  }
  assert not opened.train.sides[0].tokens.flags.writeable
  assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_long_documents_go_in_parts_and_come_back_whole(tmp_path, encoder, monkeypatch):
  whole = build_token_file(tmp_path / "whole", corpus_of(TEXTS), encoder)
  monkeypatch.setattr(encode, "CHUNK", 16)
  parts = build_token_file(tmp_path / "parts", corpus_of(TEXTS), encoder)
  assert len(list(encode.chunks([(text,) for text in TEXTS]))) > 300
  assert documents_of(parts.train) == documents_of(whole.train)


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, encoder, monkeypatch):
  monkeypatch.setattr(encode, "CHUNK", 500)
  files = [build_token_file(tmp_path / str(n), corpus_of(TEXTS), encoder, workers=n).manifest for n in (0, 2)]
  assert files[0] == files[1]


def test_pairs_have_two_sides(tmp_path, encoder):
  pairs = [("a b", "c"), ("d", "e f g")]
  corpus = Corpus("parallel", "", "", lambda part, counts: iter(pairs if part == "train" else []), sides=2)
  opened = build_token_file(tmp_path / "t", corpus, dataclasses.replace(encoder, bos=False))
  tokenizer = encoder.tokenizer
  for side in (0, 1):
    expected = [[*tokenizer.encode(pair[side]), tokenizer.eos_id] for pair in pairs]
    assert documents_of(opened.train, side) == expected
  assert opened.evaluation.documents == 0
  assert opened.evaluation.num_tokens == 0


def test_what_failed_half_way_leaves_nothing(tmp_path, encoder):
  def read(part: str, counts: dict[str, int]) -> Iterator[tuple[str, ...]]:
    yield ("text",)
    raise UserError("line 2 is not UTF-8")

  with pytest.raises(UserError, match="line 2"):
    build_token_file(tmp_path / "t", Corpus("broken", "", "", read), encoder)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_token_file_is_seen_and_made_again(tmp_path, encoder, caplog, monkeypatch, damage):
  if damage == "truncate":  # as in a file too large for its checksum to be compared
    monkeypatch.setattr(token_file, "_VERIFIED", 0)
  directory = tmp_path / "t"
  before = documents_of(build_token_file(directory, corpus_of(TEXTS), encoder).train)
  victim = directory / ("manifest.json" if damage == "manifest" else "train.0.tokens")
  content = victim.read_bytes()
  match damage:
    case "flip":
      victim.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    case "truncate" | "manifest":
      victim.write_bytes(content[: len(content) // 2])
    case "remove":
      victim.unlink()
  with pytest.raises(Damaged):
    open_token_file(directory)
  with caplog.at_level(logging.WARNING):
    assert documents_of(build_token_file(directory, corpus_of(TEXTS), encoder).train) == before
  assert "built again" in caplog.text


def test_a_sound_token_file_is_not_made_again(tmp_path, encoder, monkeypatch):
  build_token_file(tmp_path / "t", corpus_of(TEXTS), encoder)
  monkeypatch.setattr(token_file, "_write_split", None)
  build_token_file(tmp_path / "t", corpus_of(TEXTS), encoder)


def test_ids_outside_of_the_vocabulary_are_refused(tmp_path, encoder, monkeypatch):
  monkeypatch.setattr(encoder.tokenizer, "vocab_size", 100)
  with pytest.raises(UserError, match="vocabulary of 100"):
    build_token_file(tmp_path / "t", corpus_of(TEXTS), encoder)
