"""Duplicates and unwanted text: estimates against true similarities, what stays against plain Python, resuming."""

import dataclasses
import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.refusal import refusal
from tfm_jax.data import encode, filters, minhash
from tfm_jax.data.config import DataConfig, check_data
from tfm_jax.data.encode import Encoder
from tfm_jax.data.filters import filtered, reason
from tfm_jax.data.prepare import prepare
from tfm_jax.data.token_file import build_token_file
from tfm_jax.objectives.objective import ObjectiveConfig
from tfm_jax.text.corpora.table import Corpus
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer

WORDS = np.array([f"word{n}" for n in range(5000)])


def random_text(draw: np.random.Generator, words: int = 300) -> str:
  return " ".join(draw.choice(WORDS, words))


def changed(text: str, draw: np.random.Generator, count: int) -> str:
  words = text.split()
  for place in draw.integers(0, len(words), count):
    words[place] = "other"
  return " ".join(words)


def similarity(a: str, b: str) -> float:
  """The Jaccard similarity of the sets of five words."""
  one, other = ({tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (a.split(), b.split()))
  return len(one & other) / len(one | other)


# ---- MinHash


def test_signatures_estimate_the_similarity_of_sets_of_five_words():
  draw = np.random.default_rng(0)
  texts = [random_text(draw) for _ in range(20)]
  others = [changed(text, draw, n) for n, text in enumerate(texts)]
  signed = minhash.signatures([*texts, *others])
  estimates = (signed[:20] == signed[20:]).mean(axis=1)
  truths = [similarity(a, b) for a, b in zip(texts, others, strict=True)]
  assert min(truths) < 0.6
  assert np.abs(estimates - truths).max() < 0.15 and np.abs(estimates - truths).mean() < 0.05


def test_a_signature_does_not_depend_on_the_texts_beside_it_nor_on_case_and_punctuation():
  texts = [
    "One two three four five six.",
    "a",
    "",
    "?! ...",
    "日本語のテキストです",
    "one TWO three: four\nfive -- six",
  ]
  signed = minhash.signatures(texts)
  for n, text in enumerate(texts):
    np.testing.assert_array_equal(minhash.signatures([text])[0], signed[n])
  np.testing.assert_array_equal(signed[0], signed[5])
  assert [bool((row == minhash.NONE).all()) for row in signed] == [False, False, True, True, False, False]
  chinese = minhash.signatures(
    ["天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏", "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬蔵"]
  )
  assert 0.7 < (chinese[0] == chinese[1]).mean() < 1


@pytest.mark.parametrize(
  ("one", "same", "other"),
  [
    ("«Übung» macht den — großen — Meister…", "übung MACHT den GROẞEN meister", "Ubung macht den großen Meister"),
    ("天地玄黄，宇宙洪荒。日月盈昃", "天地玄黄 宇宙洪荒\n「日月盈昃」", "天地玄黄宇宙洪荒日月盈仄"),
    ("हिन्दी, एक भाषा है।", "हिन्दी एक भाषा है", "ह न द एक भ ष ह"),  # vowel signs are no punctuation
    ("Привет, “мир”: это мы!", "привет мир это МЫ", "привет миры это мы"),
  ],
)
def test_case_and_punctuation_do_not_count_in_any_script(one, same, other):
  signed = minhash.signatures([one, same, other])
  np.testing.assert_array_equal(signed[0], signed[1])
  assert (signed[0] == signed[2]).mean() < 1


@pytest.mark.parametrize("part", [1 << 23, 7])
def test_near_duplicates_are_those_that_resemble_an_earlier_text(monkeypatch, part):
  """Every text with a similarity of 0.9 or more to an earlier one, and none that resembles no earlier one."""
  monkeypatch.setattr(minhash, "_PART", part)
  draw = np.random.default_rng(1)
  texts = [random_text(draw, 200) for _ in range(30)]
  texts += [changed(texts[n % 30], draw, n // 6) for n in range(60)]
  signed = minhash.signatures(texts)
  found = minhash.near_duplicates(signed, np.ones(len(texts), bool), 0.8)
  estimates = (signed[:, None] == signed[None]).mean(axis=2)
  for later in range(len(texts)):
    highest = estimates[later, :later].max(initial=0)
    assert found[later] or highest < 0.9, later
    assert not found[later] or highest >= 0.8, later
  assert 10 < found.sum() < 60
  left = np.ones(len(texts), bool)
  left[:30] = False
  assert not minhash.near_duplicates(signed, left, 0.8)[:30].any()


@pytest.mark.parametrize("part", [1 << 23, 3])
@given(numbers=st.lists(st.integers(0, 5), max_size=40), gaps=st.sets(st.integers(0, 39)))
def test_exact_duplicates_are_those_of_an_earlier_candidate(part, numbers, gaps):
  digests = np.array([[n * 2**60, n % 2] for n in numbers], np.uint64).reshape(-1, 2)
  candidates = np.array([n not in gaps for n in range(len(numbers))], bool)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(minhash, "_PART", part)
    found = minhash.repeated(digests, candidates)
  seen: set[int] = set()
  for n, number in enumerate(numbers):
    assert found[n] == (bool(candidates[n]) and number in seen)
    seen |= {number} if candidates[n] else set()


@given(st.lists(st.integers(0, 3), max_size=30))
def test_each_text_is_compared_with_the_first_and_the_four_before_it(keys):
  keys = np.sort(np.array(keys, np.uint64))
  found = {
    (int(a), int(b))
    for one, other in minhash._pairs(np.arange(len(keys)), keys)
    for a, b in zip(one, other, strict=True)
  }
  expected = set()
  for later, key in enumerate(keys):
    first = int(np.flatnonzero(keys == key)[0])
    expected |= {(earlier, later) for earlier in {first, *range(max(first, later - 4), later)} - {later}}
  assert found == expected


# ---- rules


@pytest.mark.parametrize(
  ("text", "settings", "expected"),
  [
    ("abcd", {"min_characters": 5}, "too_short"),
    ("abcde", {"min_characters": 5}, "kept"),
    ("abcdef", {"max_characters": 5}, "too_long"),
    ("abcde", {"max_characters": 5}, "kept"),
    ("ab 12", {"min_letters": 0.5}, "kept"),
    ("ab 123", {"min_letters": 0.5}, "few_letters"),
    ("日本 12", {"min_letters": 0.5}, "kept"),
    ("a\nb\n\n a \n", {"max_repeated_lines": 0.3}, "repeated_lines"),
    ("a\nb\n\nc\na\n", {"max_repeated_lines": 0.3}, "kept"),
    ("Some Lorem  ipsum", {"unwanted": r"(?i)lorem\s+ipsum"}, "unwanted"),
    ("Some ipsum", {"unwanted": r"(?i)lorem\s+ipsum"}, "kept"),
    ("12", {"min_letters": 0.5, "unwanted": "1"}, "few_letters"),
  ],
)
def test_rules(text, settings, expected):
  assert filters.REASONS[reason(text, DataConfig(**settings))] == expected


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"duplicates": "all"}, "data.duplicates=all: expected one of keep, exact, near"),
    ({"unwanted": "("}, "data.unwanted=(: not a regular expression"),
  ],
)
def test_wrong_rules_are_named(settings, message):
  assert message in refusal(check_data, DataConfig(**settings))


# ---- a corpus without what is left out


def corpus_of(train: list[str], held_out: list[str]) -> Corpus:
  parts = {"train": train, "evaluation": held_out}

  def read(part: str, counts: dict[str, int]) -> Iterator[tuple[str, ...]]:
    counts["blank"] = 1
    yield from ((text,) for text in parts[part])

  return Corpus("made up", "", "f00d", read, left_out={"blank": "blank"})


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  return tmp_path / "cache"


def texts(documents) -> list[str]:
  return [text for (text,) in documents]


def test_a_corpus_without_rules_is_itself(cache):
  corpus = corpus_of(["a"], [])
  assert filtered(corpus, DataConfig()) is corpus


def test_what_is_left_out_is_counted_and_nothing_like_the_held_out_text_is_trained_on(cache):
  draw = np.random.default_rng(2)
  a, b, c, d = (random_text(draw) for _ in range(4))
  train = [a, "too short", b, f" {a}\n", changed(b, draw, 2), c, changed(d, draw, 2), f"{c} LOREM", a]
  config = DataConfig(duplicates="near", min_characters=20, unwanted="LOREM")
  corpus = filtered(corpus_of(train, [d, d]), config, workers=0)
  assert texts(corpus.train()) == [a, b, c] and texts(corpus.evaluation()) == [d]
  expected = {"too_short": 1, "unwanted": 1, "duplicates": 2, "near_duplicates": 2}
  expected = {"documents": 3, "blank": 1, **{f"filter_{name}": count for name, count in expected.items()}}
  assert {name: corpus.counts.get(f"train_{name}", 0) for name in expected} == expected
  assert corpus.counts["evaluation_filter_duplicates"] == 1 and set(expected) - {"documents"} <= set(corpus.left_out)
  exact = filtered(corpus_of(train, [d]), dataclasses.replace(config, duplicates="exact"), workers=0)
  assert texts(exact.train()) == [a, b, train[4], c, train[6]]
  assert len({corpus.fingerprint, exact.fingerprint, "f00d"}) == 3
  files = {path.name for path in (cache / "decisions" / corpus.fingerprint).iterdir()}
  assert files == {"evaluation.left_out", "train.left_out"}


def test_any_number_of_workers_decides_the_same(cache, monkeypatch):
  draw = np.random.default_rng(3)
  train = [random_text(draw, 100) for _ in range(30)]
  train += [changed(text, draw, 1) for text in train[:10]]
  monkeypatch.setattr(filters, "CHUNK", 2000)
  kept = []
  for workers, fingerprint in ((0, "a"), (2, "b")):
    corpus = dataclasses.replace(corpus_of(train, []), fingerprint=fingerprint)
    kept.append(texts(filtered(corpus, DataConfig(duplicates="near"), workers).train()))
  assert kept[0] == kept[1] == train[:30]


@pytest.mark.parametrize("stop", [3, 9, 14])
def test_an_interrupted_search_goes_on(cache, monkeypatch, stop):
  """After its last entry in the journal, whatever had been written since."""
  draw = np.random.default_rng(4)
  train = [random_text(draw, 60) for _ in range(40)]
  train += [changed(text, draw, 1) for text in train[::4]]
  monkeypatch.setattr(filters, "CHUNK", 1500)
  monkeypatch.setattr(filters, "_SAVED", 2)
  config = DataConfig(duplicates="near")
  examine, every = filters._examined, []
  monkeypatch.setattr(filters, "_examined", lambda chunk, config: (every.append(chunk), examine(chunk, config))[1])
  whole = filtered(dataclasses.replace(corpus_of(train, train[:2]), fingerprint="whole"), config, workers=0)
  expected = texts(whole.train())
  assert 35 < len(expected) < 45
  calls = itertools.count(1)

  def interrupted(chunk, config):
    if next(calls) == stop:
      raise KeyboardInterrupt
    return examine(chunk, config)

  monkeypatch.setattr(filters, "_examined", interrupted)
  corpus = filtered(corpus_of(train, train[:2]), config, workers=0)
  with pytest.raises(KeyboardInterrupt):
    next(corpus.train())
  (partial,) = (cache / "decisions").glob(".*.partial")
  for file in partial.glob("*.digests"):
    with file.open("ab") as end:
      end.write(b"torn")
  seen = []
  monkeypatch.setattr(filters, "_examined", lambda chunk, config: (seen.append(chunk), examine(chunk, config))[1])
  assert texts(corpus.train()) == expected
  assert stop - 1 + len(seen) < len(every) + 2  # at most what followed the last entry is examined twice
  assert {path.name for path in (cache / "decisions").iterdir()} == {corpus.fingerprint, whole.fingerprint}


def test_a_search_that_is_killed_while_it_cleans_up_is_done_again(cache, monkeypatch):
  train = [f"text {n % 7}" for n in range(20)]
  corpus = filtered(corpus_of(train, ["text 1"]), DataConfig(duplicates="near"), workers=0)
  unlink = Path.unlink
  for stop in range(1, 9):
    calls = itertools.count(1)

    def killed(self, missing_ok=False, stop=stop, calls=calls):
      if next(calls) == stop:
        raise KeyboardInterrupt
      unlink(self, missing_ok)

    with monkeypatch.context() as patch:
      patch.setattr(Path, "unlink", killed)
      with pytest.raises(KeyboardInterrupt):
        next(corpus.train())
  assert texts(corpus.train()) == ["text 0", *(f"text {n}" for n in range(2, 7))]


@pytest.mark.parametrize("damage", ["cut", "emptied", "lost"])
def test_damaged_decisions_are_taken_again(cache, caplog, damage):
  corpus = filtered(corpus_of(["a", "b", "a"], ["c"]), DataConfig(duplicates="exact"), workers=0)
  assert texts(corpus.train()) == ["a", "b"]
  file = cache / "decisions" / corpus.fingerprint / "train.left_out"
  content = file.read_bytes()
  if damage == "lost":
    file.unlink()
  else:
    file.write_bytes(content[:-2] if damage == "cut" else b"")
  assert texts(corpus.train()) == ["a", "b"] and file.read_bytes() == content
  assert "looking again for what to leave out" in caplog.text


def test_a_rule_that_leaves_out_everything_is_named(cache, tmp_path):
  (tmp_path / "text.txt").write_text("one\n\ntwo\n\nthree and four\n\nfive\n\n")
  data = DataConfig("text", str(tmp_path / "text.txt"), min_characters=7, unwanted="and", eval_fraction=0.0)
  message = refusal(prepare, data, TokenizerConfig(kind="byte"), ObjectiveConfig("causal"), 0)
  assert message == (
    f"{data.path}: no document is left to train on; of 4, 3 are left out as shorter than 7 characters: change "
    f"data.min_characters"
  )


def test_prepare_leaves_them_out(cache, tmp_path, caplog):
  caplog.set_level("INFO")
  path = tmp_path / "text.txt"
  path.write_text("\n\n".join(f"Paragraph {n % 150} has a text of its own." for n in range(300)))
  data = DataConfig("text", str(path), seq_len=32, eval_fraction=0.1, duplicates="exact")
  prepared = prepare(data, TokenizerConfig(kind="byte"), ObjectiveConfig("causal"), 0)
  assert prepared.token_file.train.documents + prepared.token_file.evaluation.documents == 150
  (block,) = [message for message in caplog.messages if message.startswith("corpus (text)")]
  assert "exact duplicates, left out" in block and "150" in block
  assert prepared.counts["train_filter_duplicates"] == 150


def test_a_corpus_has_counts_of_its_own(cache):
  """As the embedded one, which leaves out its own duplicates before it is split."""
  corpus = corpus_of(["a", "a", "b"], [])
  read = corpus.read
  corpus.read = lambda part, counts: counts.update(duplicates=7) or read(part, counts)
  corpus.left_out_of_both = {"duplicates": "duplicates"}
  without = filtered(corpus, DataConfig(duplicates="exact"), workers=0)
  assert texts(without.train()) == ["a", "b"]
  assert (without.counts["train_duplicates"], without.counts["train_filter_duplicates"]) == (7, 1)
  assert "filter_duplicates" in without.left_out and [*without.left_out_of_both] == ["duplicates"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
  """Of a text that is made while it is read: only some bytes per document, whatever its length."""
  monkeypatch.setattr(filters, "CHUNK", 10_000)
  monkeypatch.setattr(encode, "CHUNK", 10_000)
  monkeypatch.setattr(minhash, "_PAIRS", 64)
  tokenizer = train_tokenizer(TokenizerConfig(kind="byte"), [])

  def peak(documents: int) -> int:
    def read(part: str, counts: dict[str, int]) -> Iterator[tuple[str, ...]]:
      yield from ((f"{n} and {n * n} are numbers " * 20,) for n in range(documents if part == "train" else 5))

    monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / str(documents)))
    corpus = filtered(Corpus("made up", "", "f00d", read), DataConfig(duplicates="near"), workers=0)
    tracemalloc.start()
    try:
      build_token_file(tmp_path / f"{documents}.tokens", corpus, Encoder(tokenizer, True, True), workers=0)
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  peak(20)  # what is imported late
  few, many = peak(300), peak(1500)
  assert many - few < 1200 * 100, (few, many)  # a document has 500 characters, and a signature of 512 bytes
