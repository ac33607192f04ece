"""The files a user may name: compressed ones, JSON lines, names with commas; what is no text is refused by name."""

import bz2
import gzip
import json
import lzma
import os

import numpy as np
import pytest
import zstandard

from tfm_jax.errors import UserError
from tfm_jax.text.corpora import opening
from tfm_jax.text.corpora.table import text_corpus


def write(path, data: bytes) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return str(path)


def train(*args, **settings):
  corpus = text_corpus(*args, **{"eval_fraction": 0, **settings})
  return [text for (text,) in corpus.train()]


def json_lines(*values) -> bytes:
  return "".join(json.dumps(value) + "\n" for value in values).encode()


# Compressed files

COMPRESS = {
  ".gz": gzip.compress,
  ".bz2": bz2.compress,
  ".xz": lzma.compress,
  ".zst": zstandard.ZstdCompressor().compress,
}
ENDINGS = pytest.mark.parametrize("ending", COMPRESS)
LINES = "".join(f"Line {n} of the text, é.\n" for n in range(20_000)).encode()  # more than one chunk


@ENDINGS
def test_compressed_text_is_read_like_plain_text(tmp_path, ending):
  plain = text_corpus(write(tmp_path / "a.txt", LINES), eval_fraction=0.2, document="line")
  packed = text_corpus(write(tmp_path / f"a.txt{ending}", COMPRESS[ending](LINES)), eval_fraction=0.2, document="line")
  for part in ("train", "evaluation"):
    assert list(getattr(packed, part)()) == list(getattr(plain, part)()) != []


@ENDINGS
def test_a_compressed_file_of_several_members_is_read_to_its_end(tmp_path, ending):
  data = COMPRESS[ending](b"one\n") + COMPRESS[ending](b"two\n" * 100_000) + COMPRESS[ending](b"three\n")
  assert train(write(tmp_path / f"a{ending}", data), document="line") == ["one", *["two"] * 100_000, "three"]


@ENDINGS
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_compressed_file_is_named(tmp_path, ending, damage):
  whole = COMPRESS[ending](os.urandom(3000).hex().encode())
  data = whole[:-9] if damage == "cut" else whole[:4] + bytes(reversed(whole[4:]))
  with pytest.raises(UserError, match=f"cannot read .*a{ending}"):
    train(write(tmp_path / f"a{ending}", data))


# JSON lines


@pytest.mark.parametrize("name", ["a.jsonl", "a.NDJSON", "a.jsonl.gz", "a.ndjson.zst"])
def test_json_lines_are_read_by_their_text(tmp_path, name):
  texts = ["First.\n\nIts second paragraph, é.", 'A "quoted" text.', " \n"]
  data = json_lines(*({"id": n, "text": text} for n, text in enumerate(texts))) + b"\n"
  path = write(tmp_path / name, COMPRESS.get(os.path.splitext(name)[1], bytes)(data))
  corpus = text_corpus(path, eval_fraction=0)
  assert list(corpus.train()) == [(text,) for text in texts[:2]]
  assert corpus.counts["train_blank"] == 2
  assert corpus.former_fingerprint == ""  # what was read of it before was something else


def test_the_source_jsonl_reads_any_ending(tmp_path):
  path = write(tmp_path / "a.json", json_lines({"meta": {"body": "one"}}, {"meta": {"body": "two"}}))
  assert train(path, json_lines=True, field="meta.body") == ["one", "two"]
  with pytest.raises(UserError, match="is a CSV table: convert it to JSON lines"):
    train(write(tmp_path / "a.csv", b"text,label\nhello,1\n"), json_lines=True)
  dotted = write(tmp_path / "b.jsonl", json_lines({"meta.body": "three"}))
  assert train(dotted, field="meta.body") == ["three"]


def test_texts_of_several_keys_are_joined(tmp_path):
  path = write(tmp_path / "a.jsonl", json_lines({"prompt": "one", "made": {"text": " two"}, "a+b": "three"}))
  assert train(path, field="prompt+made.text") == ["one two"]
  assert train(path, field="a+b") == ["three"]
  with pytest.raises(UserError, match=r"no key 'text'; set data\.field"):
    train(path, field="prompt+text")


def test_json_lines_among_plain_files(tmp_path):
  write(tmp_path / "c" / "a.txt", b"one\n\ntwo\n")
  write(tmp_path / "c" / "b.jsonl", json_lines({"text": "three\n\nfour"}))
  assert train(str(tmp_path / "c")) == ["one", "two", "three\n\nfour"]


def test_json_lines_are_never_cut_inside(tmp_path):
  path = write(tmp_path / "a.jsonl", json_lines({"text": "word " * 50}, {"text": "held out " * 15}))
  corpus = text_corpus(path, eval_fraction=0.3)
  assert [list(corpus.train()), list(corpus.evaluation())] == [[("word " * 50,)], [("held out " * 15,)]]
  alone = text_corpus(write(tmp_path / "b.jsonl", json_lines({"text": "word " * 50})), eval_fraction=0.3)
  assert [list(alone.train()), list(alone.evaluation())] == [[("word " * 50,)], []]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (b"{'text': 'x'}", r"not a JSON object \(at column 2: Expecting property name"),
    (b'"text"', "not a JSON object but a string"),
    (b'[{"text": "x"}]', "not a JSON object but an array"),
    (b'{"content": "x", "id": 3}', r"no key 'text'; set data\.field .*\(keys: 'content', 'id'\)"),
    (b'{"text": null}', r"the value of 'text' is null, not a text"),
    (b'{"text": "\\ud800"}', "half of a character"),
    (b'{"text": "\xe9"}', r"not UTF-8.*data\.errors=replace"),
  ],
)
def test_wrong_json_lines_are_named_with_file_and_line(tmp_path, line, message):
  path = write(tmp_path / "a.jsonl", json_lines({"text": "fine"}) + line + b"\n")
  with pytest.raises(UserError, match=rf"a\.jsonl, line 2: {message}"):
    train(path)


def test_half_characters_of_json_are_replaced_on_request(tmp_path):
  path = write(tmp_path / "a.jsonl", b'{"text": "a\\ud800b \\ud83d\\ude00"}\n')
  assert train(path, errors="replace") == ["a\ufffdb \U0001f600"]


def test_the_fingerprint_follows_the_key_and_the_form(tmp_path):
  data = json_lines({"text": "one", "other": "two"})
  path, plain = write(tmp_path / "a.jsonl", data), write(tmp_path / "b.txt", data)
  prints = [text_corpus(path).fingerprint, text_corpus(path, field="other").fingerprint]
  prints += [text_corpus(plain).fingerprint, text_corpus(plain, json_lines=True).fingerprint]
  assert prints[0] == prints[3] and len(set(prints)) == 3


def test_pairs_of_json_lines(tmp_path):
  lines = [{"t": {"en": f"one {n}", "de": f"eins {n}"}} for n in range(20)] + [{"t": {"en": "lost", "de": " "}}]
  path = write(tmp_path / "a.jsonl", json_lines(*lines))
  corpus = text_corpus(path, eval_fraction=0.0, field="t.en", target_field="t.de")
  assert [*corpus.train()] == [(f"one {n}", f"eins {n}") for n in range(20)]
  assert corpus.sides == 2 and corpus.counts["train_blank"] == 1
  assert corpus.fingerprint != text_corpus(path, eval_fraction=0.0, field="t.en").fingerprint
  plain = write(tmp_path / "b.txt", b"text\n")
  with pytest.raises(UserError, match=r"data\.target_field=de: .* files of plain text"):
    text_corpus(f"{path},{plain}", target_field="de")
  with pytest.raises(UserError, match=r"data\.field=en: .* plain text, without fields; .* data\.source=jsonl"):
    text_corpus(plain, field="en")


# What is no text

BINARY = {
  "a.csv": (b"text,label\nhello,1\n", "is a CSV table: convert it to JSON lines"),
  "a.csv.gz": (gzip.compress(b"text,label\n"), "is a CSV table"),
  "a.parquet": (
    b"PAR1" + bytes(99),
    "is a table in a binary format: .* data.source=parquet .* convert it to JSON lines.*to_json",
  ),
  "part-0": (b"PAR1" + bytes(99), "is a table in a binary format"),
  "a.json": (b'{"text": "x"}\n', r"is JSON: .*set data\.source=jsonl"),
  "a.docx": (b"PK\x03\x04" + bytes(99), "is a zip archive"),
  "a.pdf": (b"%PDF-1.7\n" + bytes(99), "is a PDF"),
  "a.txt": (gzip.compress(b"text"), "is compressed by gzip: give its name the ending .gz"),
  "b.txt": (lzma.compress(b"text"), "is compressed by xz"),
  "c.txt": ("text".encode("utf-16"), "is UTF-16: convert it by iconv"),
  "d.txt": ("Война и мир, том первый".encode("cp1251"), "is not UTF-8 text.*iconv"),
  "model.bin": (np.random.default_rng(0).bytes(5000), "is not UTF-8 text.*binary"),
  "weights": (np.zeros(999, np.float32).tobytes(), "is not UTF-8 text"),
  "a.tar.gz": (gzip.compress(b"a.txt" + bytes(252) + b"ustar\x0000" + bytes(99)), "is a tar archive"),
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("errors", ["raise", "replace"])
def test_files_that_hold_no_text_are_refused_by_name(tmp_path, name, errors):
  data, message = BINARY[name]
  good, bad = write(tmp_path / "good.txt", b"fine\n"), write(tmp_path / "bad" / name, data)
  for paths in ({"path": f"{good},{bad}"}, {"path": good, "eval_path": str(tmp_path / "bad")}):
    with pytest.raises(UserError, match=f"{name} {message}"):
      text_corpus(**paths, errors=errors)


def test_text_with_some_odd_characters_is_text(tmp_path, caplog):
  latin = "Ein Käse für Jürgen.\n".encode("latin-1") * 99
  text = b"a\x00b\n" + b"\x1b[1mbold\x1b[0m\f\n" * 9 + "日本語🙂\n".encode() * 9999
  (document,) = train(write(tmp_path / "a.txt", text), document="file")
  assert document.encode() == text
  assert "a.txt, line 1: NUL characters" in caplog.text
  assert len(train(write(tmp_path / "b.txt", latin), document="line", errors="replace")) == 99
  assert caplog.text.count("b.txt, line 1: not UTF-8") == 1 and "b.txt, line 2" not in caplog.text


def test_a_character_on_the_border_of_the_sample_is_no_damage(tmp_path, monkeypatch):
  monkeypatch.setattr(opening, "_HEAD", 2)
  assert train(write(tmp_path / "a.txt", "日本語\n".encode())) == ["日本語"]


@pytest.mark.parametrize("path", ["-", "/dev/stdin", "pipe"])
def test_pipes_are_refused_truthfully(tmp_path, path):
  if path == "pipe":
    os.mkfifo(tmp_path / "pipe")
    path = str(tmp_path / "pipe")
  elif path != "-" and os.path.isfile(path):
    pytest.skip("standard input is a file here")
  with pytest.raises(UserError, match=r"read more than once.*write it to a file first"):
    text_corpus(path)


# Names


def test_a_comma_may_be_part_of_a_name(tmp_path):
  for name in ("a,b.txt", "c.txt", "d, e/f.txt"):
    write(tmp_path / name, name.encode())
  here = str(tmp_path)
  assert train(f"{here}/a,b.txt") == ["a,b.txt"]
  assert train(f"{here}/c.txt,{here}/a,b.txt") == ["c.txt", "a,b.txt"]
  assert train(f"{here}/d, e,{here}/c.txt") == ["d, e/f.txt", "c.txt"]
  assert train(f"{here}/a,*.txt") == ["a,b.txt"]
  assert train(f"{here}/c.txt, ,") == ["c.txt"]
  with pytest.raises(UserError, match=r"no such file: .*/x\.txt; looked in .*name your own with --config\.data"):
    train(f"{here}/c.txt,{here}/x.txt,{here}/a,b.txt")
