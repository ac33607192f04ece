"""Corpora: which documents are read, where text is cut, what is refused."""

import argparse
import ast
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.launching import ROOT, environment
from tfm_jax.cache import cache_dir
from tfm_jax.errors import UserError
from tfm_jax.text.corpora import embedded, files
from tfm_jax.text.corpora.table import embedded_corpus, parallel_corpus, text_corpus


def texts(part):
  return [text for (text,) in part]


# Text files


def write(path, data: bytes):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return str(path)


@settings(max_examples=100)
@given(
  files=st.lists(st.lists(st.text(alphabet="aé \n", max_size=12)).map("\n".join), min_size=1, max_size=4),
  fraction=st.floats(0, 0.99),
)
def test_the_cut_is_at_the_line_end_nearest_to_the_fraction(files, fraction, tmp_path_factory):
  folder = tmp_path_factory.mktemp("corpus")
  for n, text in enumerate(files):
    write(folder / f"{n}.txt", text.encode())
  whole = "".join(files).encode()
  if not whole:
    return
  corpus = text_corpus(str(folder), eval_fraction=fraction, document="line")
  ends = [0]  # places where the text may be cut
  for text in files:
    for line in text.encode().splitlines(keepends=True):
      ends.append(ends[-1] + len(line))
  target = len(whole) * (1 - fraction)
  nearest = min(abs(end - target) for end in ends)

  possible = []
  for cut in (end for end in ends if abs(end - target) <= nearest + 1e-6):
    train = [line for line in _lines(files, 0, cut) if line.strip()]
    held_out = [line for line in _lines(files, cut, len(whole)) if line.strip()]
    possible.append((train, held_out))
  try:
    parts = texts(corpus.train()), texts(corpus.evaluation())
  except UserError as error:
    assert "no text to train on" in str(error)
    parts = [], texts(corpus.evaluation())
  assert parts in possible


def _lines(files, start, stop):
  """The lines of all files that lie in bytes start..stop of their concatenation."""
  position, lines = 0, []
  for text in files:
    for line in text.split("\n"):
      size = len(line.encode())
      if start <= position < stop:
        lines.append(line)
      position += size + 1
    position -= 1  # after the last line there is no line end
  return lines


TEXT = "Title\n\nFirst line,\n  second line.\n\n\nLast\tblock\n"


@pytest.mark.parametrize(
  ("document", "expected"),
  [
    ("block", ["Title", "First line,\n  second line.", "Last\tblock"]),
    ("line", ["Title", "First line,", "  second line.", "Last\tblock"]),
    ("file", [TEXT]),
  ],
)
@pytest.mark.parametrize("form", ["plain", "gz", "windows", "byte order mark"])
def test_documents(tmp_path, document, expected, form):
  data = {"windows": TEXT.replace("\n", "\r\n"), "byte order mark": "\ufeff" + TEXT}.get(form, TEXT).encode()
  path = write(tmp_path / ("a.txt.gz" if form == "gz" else "a.txt"), data)
  corpus = text_corpus(path, eval_fraction=0, document=document)
  assert texts(corpus.train()) == expected
  assert texts(corpus.evaluation()) == []
  assert corpus.counts["train_documents"] == len(expected)
  assert corpus.counts["train_bytes"] == sum(len(text.encode()) for text in expected)
  assert corpus.counts["train_blank"] == {"block": 0, "line": 3, "file": 0}[document]
  assert corpus.held_out == "nothing"


def test_counts_do_not_grow_with_each_reading(tmp_path):
  corpus = text_corpus(write(tmp_path / "a.txt", b"a\n\nb\nc\n"), eval_fraction=0.3, document="line")
  list(corpus.train()), list(corpus.evaluation())
  first = dict(corpus.counts)
  list(corpus.train()), list(corpus.evaluation())
  assert corpus.counts == first
  assert first["train_documents"] == 2 and first["train_blank"] == 1 and first["evaluation_documents"] == 1


def test_files_are_found_and_sorted(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  for name in ("b.txt", "a.txt", "sub/c.txt.gz", ".hidden", "odd[1].txt"):
    write(tmp_path / "texts" / name, name.encode())
  folder = str(tmp_path / "texts")

  def read(path):
    return texts(text_corpus(path, eval_fraction=0).train())

  assert read(folder) == ["a.txt", "b.txt", "odd[1].txt", "sub/c.txt.gz"]
  assert read("~/texts/?.txt") == ["a.txt", "b.txt"]
  assert read(f"{folder}/b.txt, {folder}/*.txt") == ["b.txt", "a.txt", "odd[1].txt"]  # each file once
  assert read(f"{folder}/odd[1].txt") == ["odd[1].txt"]
  assert read(f"{folder}/**/*.gz") == ["sub/c.txt.gz"]


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
@pytest.mark.parametrize(
  ("line", "fraction", "train"),
  [
    ("word " * 100, 0.1, "word " * 90),
    ("word " * 100, 0.7, "word " * 30),
    ("é" * 100, 0.105, "é" * 90),  # no white space: between two characters
    ("a\n" * 10 + "b" * 500 + " " + "c" * 20, 0.02, "a\n" * 10 + "b" * 500 + " "),
  ],
)
@pytest.mark.parametrize("document", ["block", "file"])
def test_a_huge_line_is_cut_inside(tmp_path, line, fraction, train, end, document):
  path = write(tmp_path / "a.txt", (line + end).encode())
  corpus = text_corpus(path, eval_fraction=fraction, document=document)
  (kept,), (rest,) = texts(corpus.train()), texts(corpus.evaluation())
  assert kept + rest.rstrip() == line.rstrip()
  assert abs(len(kept) - len(train)) <= 5  # the line end counts too
  assert " " not in line or kept.endswith(" ")
  assert corpus.counts["evaluation_cut_lines"] == 1
  lines = text_corpus(path, eval_fraction=min(fraction, 0.4), document="line")  # a document stays whole
  assert line.removesuffix("\n").split("\n")[-1] in [*texts(lines.train()), *texts(lines.evaluation())]


def test_a_line_with_text_after_it_is_not_cut(tmp_path):
  path = write(tmp_path / "a.txt", b"word " * 100 + b"\n\nmore words\n")
  corpus = text_corpus(path, eval_fraction=0.2)
  assert (texts(corpus.train()), texts(corpus.evaluation())) == (["word " * 100], ["more words"])
  assert "evaluation_cut_lines" not in corpus.counts


def test_held_out_files_without_text_are_refused(tmp_path):
  path, blank = write(tmp_path / "a.txt", b"text\n"), write(tmp_path / "blank.txt", b" \n")
  with pytest.raises(UserError, match=r"data\.eval_path=.*blank\.txt: no text"):
    list(text_corpus(path, blank).evaluation())


def test_evaluation_files_leave_the_training_text_whole(tmp_path):
  path, held_out = write(tmp_path / "a.txt", b"one\n\ntwo\n"), write(tmp_path / "e.txt", b"three\n")
  corpus = text_corpus(path, eval_path=held_out, eval_fraction=0.5)
  assert (texts(corpus.train()), texts(corpus.evaluation())) == (["one", "two"], ["three"])


def test_undecodable_text_is_named_or_replaced_and_counted(tmp_path):
  good, bad = write(tmp_path / "a.txt", b"fine\n"), write(tmp_path / "b.txt", b"fine\n\xe9t\xe9\nfine\n")
  with pytest.raises(UserError, match=r"b\.txt, line 2: not UTF-8.*data\.errors=replace"):
    list(text_corpus(f"{good},{bad}", eval_fraction=0).train())
  corpus = text_corpus(f"{good},{bad}", eval_fraction=0, document="line", errors="replace")
  assert texts(corpus.train()) == ["fine", "fine", "\ufffdt\ufffd", "fine"]
  assert corpus.counts["train_undecodable_lines"] == 1
  # Lines are numbered from the start of the file, in the held-out part too.
  with pytest.raises(UserError, match="line 2"):
    list(text_corpus(bad, eval_fraction=0.7).evaluation())


def test_mistakes(tmp_path):
  path, empty = write(tmp_path / "a.txt", b"text\n"), write(tmp_path / "empty.txt", b"")
  blank, broken = write(tmp_path / "blank.txt", b" \n\t\n"), tmp_path / "broken.txt.gz"
  broken.write_bytes(gzip.compress(bytes(range(256)) * 99)[:-20])
  for arguments, message in [
    ({"path": str(tmp_path / "none.txt")}, r"data.path=.*none\.txt: no such file"),
    ({"path": str(tmp_path / "*.md")}, "data.path.*no such file"),
    ({"path": ""}, "data.path is empty"),
    ({"path": path, "eval_path": str(tmp_path / "none.txt")}, r"data.eval_path=.*none\.txt: no such file"),
    ({"path": empty}, "the corpus is empty"),
    ({"path": str(broken)}, "cannot read .*broken.txt.gz"),
    ({"path": path, "document": "page"}, "data.document=page"),
    ({"path": path, "errors": "ignore"}, "data.errors=ignore"),
    ({"path": path, "eval_fraction": 1.0}, "data.eval_fraction=1.0"),
  ]:
    with pytest.raises(UserError, match=message):
      text_corpus(**arguments)
  with pytest.raises(UserError, match="no text to train on"):
    list(text_corpus(blank, document="line").train())


def test_the_fingerprint_follows_files_and_settings(tmp_path):
  path = write(tmp_path / "a.txt", b"one\ntwo\n")

  def fingerprint(**settings):
    return text_corpus(path, **settings).fingerprint

  before = fingerprint()
  assert fingerprint() == before
  others = [fingerprint(document="line"), fingerprint(errors="replace"), fingerprint(eval_fraction=0.5)]
  assert len({before, *others}) == 4


def test_a_corpus_is_known_by_its_content(tmp_path, monkeypatch):
  """Other content of the same size and time is another corpus; the same content elsewhere or later is not."""
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  path = write(tmp_path / "a.txt", b"one\ntwo\n")
  stat, before = os.stat(path), text_corpus(path)
  for _ in range(2):  # the second time its hash may be remembered
    os.utime(path, ns=(1, 1))
    assert text_corpus(path).fingerprint == before.fingerprint
  assert text_corpus(path).former_fingerprint != before.former_fingerprint
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert text_corpus(path).former_fingerprint == before.former_fingerprint
  assert text_corpus(write(tmp_path / "b" / "c.txt", b"one\ntwo\n")).fingerprint == before.fingerprint
  write(tmp_path / "a.txt", b"one\nsix\n")
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert os.stat(path).st_mtime_ns == stat.st_mtime_ns and os.stat(path).st_size == stat.st_size
  assert text_corpus(path).fingerprint != before.fingerprint


def test_the_former_fingerprint_is_that_of_earlier_releases(tmp_path):
  paths = [write(tmp_path / name, b"one\ntwo\n") for name in ("a.txt", "b.txt")]
  stats = [(path, 8, os.stat(path).st_mtime_ns) for path in paths]

  def former(settings, cut, files):
    return hashlib.sha256(json.dumps([settings, cut, files]).encode()).hexdigest()[:16]

  text = text_corpus(paths[0], eval_path=paths[1])
  assert text.former_fingerprint == former(["text", "block", "raise"], 8, stats)
  text = text_corpus(paths[0], eval_fraction=0.25, document="line")
  assert text.former_fingerprint == former(["text", "line", "raise"], 6.0, stats[:1])
  pairs = parallel_corpus(*paths, eval_fraction=0.25)
  assert pairs.former_fingerprint == former(["parallel", "raise"], 6.0, [*stats, stats[1]])


def test_a_file_is_hashed_once_until_it_is_touched(tmp_path, monkeypatch):
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  read, digest = [], files.hashlib.file_digest
  monkeypatch.setattr(files.hashlib, "file_digest", lambda *args: read.append(1) or digest(*args))
  path = write(tmp_path / "a.txt", b"one\ntwo\n")
  first = text_corpus(path).fingerprint
  text_corpus(path)
  assert len(read) == 2  # the file is new, so it might change again within the same tick of the clock
  monkeypatch.setattr(files, "_TICK", 0)
  time.sleep(0.02)
  assert [text_corpus(path).fingerprint for _ in range(3)] == [first] * 3
  assert len(read) == 3
  time.sleep(0.02)
  stat = os.stat(path)
  write(tmp_path / "a.txt", b"one\nsix\n")
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # ctime cannot be set back
  assert text_corpus(path).fingerprint != first
  for entry in (tmp_path / "cache" / "files").iterdir():
    entry.write_text("{")
  assert text_corpus(path).fingerprint != first and len(read) == 5


# Parallel files


def test_pairs(tmp_path):
  source = write(tmp_path / "en.txt.gz", b"one\n\nthree\nfour \nfive\n")
  target = write(tmp_path / "de.txt", "eins\nzwei\r\ndrei\n \nfünf".encode())
  corpus = parallel_corpus(source, target, eval_fraction=0.3)
  assert list(corpus.train()) == [("one", "eins"), ("three", "drei")]
  assert list(corpus.evaluation()) == [("five", "fünf")]
  assert corpus.sides == 2
  assert corpus.counts["train_blank"] + corpus.counts["evaluation_blank"] == 2


def test_pairs_of_folders_and_evaluation_files(tmp_path):
  for side in ("en", "de"):
    for n in range(2):
      write(tmp_path / side / f"{n}.{side}", f"{side} {n}a\n{side} {n}b\n".encode())
    write(tmp_path / f"e.{side}", f"{side} e\n".encode())
  folders = str(tmp_path / "en"), str(tmp_path / "de")
  corpus = parallel_corpus(*folders, str(tmp_path / "e.en"), str(tmp_path / "e.de"))
  assert list(corpus.train()) == [(f"en {n}{x}", f"de {n}{x}") for n in range(2) for x in "ab"]
  assert list(corpus.evaluation()) == [("en e", "de e")]
  cut = parallel_corpus(*folders, eval_fraction=0.25)
  assert list(cut.evaluation()) == [("en 1b", "de 1b")]


def test_pairs_must_match(tmp_path):
  two, three = write(tmp_path / "a.en", b"1\n2\n"), write(tmp_path / "a.de", b"1\n2\n3")
  with pytest.raises(UserError, match=r"a\.en has 2 lines and .*a\.de has 3"):
    parallel_corpus(two, three)
  with pytest.raises(UserError, match=r"data\.path names 2 files and data\.target_path 1"):
    parallel_corpus(f"{two},{three}", two)
  with pytest.raises(UserError, match="both or neither"):
    parallel_corpus(two, two, eval_path=three)


# The embedded corpus


@pytest.fixture
def sources(tmp_path, monkeypatch):
  """A small installation to read, and a cache of its own."""
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  prose = "It is written in plain English and long enough to be read by a model that wants to learn. " * 2
  module = ['"""Too short."""', "raise RuntimeError('a source file must never be imported')"]
  module += [f'def function_{n}():\n  """Function number {n}.\n\n  {prose}"""' for n in range(400)]
  module += [f'class Twin:\n  def {name}():\n    """{prose}"""' for name in ("first", "second")]
  module += [f'NUMBERS = 1\ndef table():\n  """{"0.125, 3.5; " * 40}"""']
  files = [tmp_path / "module.py", tmp_path / "broken.py"]
  files[0].write_text("\n".join(module))
  files[1].write_text("def broken(:\n")
  monkeypatch.setattr(embedded, "_source_files", lambda: files)
  monkeypatch.setattr(embedded, "_topics", lambda: [f"A topic of the documentation. {prose}"])
  return files


def test_the_embedded_corpus_is_split_deduplicated_and_cached(sources, monkeypatch):
  corpus = embedded_corpus()
  train, held_out = texts(corpus.train()), texts(corpus.evaluation())
  assert len(train) + len(held_out) == len(set(train + held_out)) == 402
  assert 1 <= len(held_out) <= 30  # about 2 %
  assert train[0].startswith("A topic") or held_out[0].startswith("A topic")
  assert any(text.startswith("Function number 7.\n\nIt is") for text in train + held_out)
  counts = {name: corpus.counts[f"train_{name}"] for name in ("files", "too_short", "not_prose", "duplicates")}
  assert counts == {"files": 2, "too_short": 1, "not_prose": 1, "duplicates": 1}
  assert "--config.data.path=FILES" in corpus.description
  monkeypatch.setattr(embedded, "_build", lambda: pytest.fail("the cache was not used"))
  assert texts(embedded_corpus().train()) == train


def test_a_script_without_a_main_guard_builds_the_embedded_corpus_on_one_core(tmp_path):
  """Workers run the script again, and die of it."""
  script = tmp_path / "script.py"
  script.write_text(f"""
import logging, pathlib
from tfm_jax.text.corpora import embedded
logging.basicConfig()
embedded._source_files = lambda: [pathlib.Path({argparse.__file__!r})]
embedded._topics = lambda: []
parts = embedded._build()
print(len(parts["train"]) + len(parts["evaluation"]))
""")
  done = subprocess.run(
    [sys.executable, script], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0 and int(done.stdout) > 3, done.stderr
  assert "reading on one core" in done.stderr


def test_a_damaged_embedded_cache_is_made_again(sources, caplog):
  before = texts(embedded_corpus().train())
  (file,) = cache_dir().rglob("documents.json.gz")
  for damage in (file.read_bytes()[:-40], b"", gzip.compress(b"{")):
    file.write_bytes(damage)
    assert texts(embedded_corpus().train()) == before
  assert "is damaged" in caplog.text


def test_what_is_held_out_does_not_depend_on_the_other_documents():
  long = [f"Document {n} holds words enough, as it is said again and again: {'word ' * 30}" for n in range(500)]
  whole, half = embedded._split(long, 1), embedded._split(long[::2], 1)
  assert set(half["evaluation"]) == set(whole["evaluation"]) & set(long[::2])


def test_real_sources_hold_prose():
  files = embedded._source_files()
  assert {"numpy", "jax", "flax"} <= {part for file in files for part in file.parts}
  assert any(file.name == "argparse.py" for file in files)
  assert len(embedded._topics()) > 50
  argparse = next(file for file in files if file.name == "argparse.py")
  docstrings = embedded._docstrings(argparse)
  assert ast.get_docstring(ast.parse(argparse.read_text())) == docstrings[0]
  assert len(docstrings) > 10


# The cache
