"""Language-model evaluation against plain forward passes, one token at a time."""

import dataclasses
import functools
import gzip
import math
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import tests.support.tiny as tiny_models
from tests.training.test_scoring import TEXTS, make_run
from tfm_jax.decode import scoring
from tfm_jax.errors import UserError
from tfm_jax.tasks import language
from tfm_jax.tasks.language import evaluate_text

DOCUMENTS = [" ".join(TEXTS[:5]), "the cat sat", "a dog ran after one small grey bird", " ".join(TEXTS[1:5])]


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "text.txt"
  path.write_text("\n\n".join(DOCUMENTS) + "\n", encoding="utf-8")
  return str(path)


@functools.cache
def forward(model):
  """A plain forward pass, compiled for each length."""
  return jax.jit(model.logits)


def log_softmax(run, ids):
  """Of one row, in float64."""
  logits = np.asarray(forward(run.model)(run.params, {"inputs": np.asarray(ids, np.int32)[None]}), np.float64)[0]
  top = logits.max(-1, keepdims=True)
  return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def causal_oracle(run, text, window, stride):
  """(nats, tokens): each token by a forward pass over what its window has before it."""
  ids = run.tokenizer.encode(text)
  ids = ids if run.begin_id < 0 else np.concatenate([[run.begin_id], ids])
  total = 0.0
  for place in range(1, len(ids)):
    start = 0
    while start + window < place:  # the first window that predicts this token
      start += stride
    assert start == 0 or place - start >= window - stride
    total -= log_softmax(run, ids[start:place])[-1, ids[place]]
  return total, len(ids) - 1


@pytest.mark.slow
@pytest.mark.parametrize(
  ("variant", "begins", "window", "stride"), [("gpt", False, 8, 3), ("llama", True, 8, 8), ("gpt", True, 12, 12)]
)
def test_each_token_is_scored_once_given_its_window(file, variant, begins, window, stride):
  run = make_run(variant)
  run = dataclasses.replace(run, begin_id=run.tokenizer.bos_id if begins else -1)
  scores, rows = evaluate_text(run, file, window=window, stride=stride)
  expected = [causal_oracle(run, text, window, stride) for text in DOCUMENTS]
  for row, text, (nll, tokens) in zip(rows, DOCUMENTS, expected, strict=True):
    assert row["nll"] == pytest.approx(nll, rel=1e-4) and row["tokens"] == tokens
    assert text.startswith(row["text"].rstrip("…")) and row["bytes"] == len(text)
  assert scores["nll"] == pytest.approx(sum(nll for nll, _ in expected), rel=1e-4)
  assert scores["tokens"] == sum(tokens for _, tokens in expected)
  assert scores["unscored_tokens"] == (0 if begins else len(DOCUMENTS))
  assert (scores["window"], scores["stride"]) == (window, stride)


def masked_oracle(run, text, window, stride):
  """(nats, tokens) of a masked model: the window of a token is the one that has it nearest to its middle stretch."""
  ids, room = run.tokenizer.encode(text), window - 2
  starts, total = [0], 0.0
  while starts[-1] + room < len(ids):
    starts.append(min(starts[-1] + stride, len(ids) - room))
  for place, token in enumerate(ids):
    start = max((s for s in starts if s == 0 or place >= s + (room - stride) // 2), default=0)
    masked = ids[start : start + room].copy()
    masked[place - start] = run.tokenizer.mask_id
    row = [run.tokenizer.bos_id, *masked, run.tokenizer.eos_id]
    total -= log_softmax(run, row)[place - start + 1, token]
  return total, len(ids)


@pytest.mark.parametrize("stride", [4, 7, 10])
def test_a_masked_model_predicts_each_token_from_both_sides(file, stride):
  run = make_run("bert")
  scores, rows = evaluate_text(run, file, window=12, stride=stride)
  for row, text in zip(rows, DOCUMENTS, strict=True):
    nll, tokens = masked_oracle(run, text, 12, stride)
    assert row["nll"] == pytest.approx(nll, rel=1e-4) and row["tokens"] == tokens
  assert scores["pseudo_perplexity"] == scores["token_perplexity"] == math.exp(scores["nll"] / scores["tokens"])


TEXT = "the Öl costs 3 €\nand a 猫 sat\n\nthe cat\n"


@pytest.mark.parametrize(
  ("document", "documents", "lines", "size"), [("block", 2, 3, 40), ("line", 3, 3, 39), ("file", 1, 4, 43)]
)
def test_words_bytes_and_characters_are_those_of_the_text(tmp_path, document, documents, lines, size):
  """A blank line is a line of a file, and only separates other documents."""
  run = make_run("gpt", "char")
  path = tmp_path / "text.txt"
  path.write_text(TEXT, encoding="utf-8")
  scores, _ = evaluate_text(run, str(path), document=document)
  without, _ = evaluate_text(run, str(path), document=document, line_ends=False)
  assert scores["documents"] == documents and without["words"] == len(TEXT.split()) == 11
  assert scores["words"] == 11 + lines
  extra = len(TEXT.encode()) - len(TEXT)
  assert scores["bytes"] == scores["characters"] + extra and extra == 5
  assert scores["bytes"] == size
  assert scores["word_perplexity"] == pytest.approx(math.exp(scores["nll"] / scores["words"]), rel=1e-12)
  assert scores["bits_per_byte"] == pytest.approx(scores["nll"] / scores["bytes"] / math.log(2), rel=1e-12)
  assert scores["bits_per_character"] * scores["characters"] == pytest.approx(scores["bits_per_byte"] * scores["bytes"])
  assert scores["unknown_tokens"] == without["unknown_tokens"] > 0


@pytest.mark.skipif("TFM_DATA_DIR" not in os.environ, reason="TFM_DATA_DIR names no folder with wikitext2")
def test_words_of_wikitext_are_as_many_as_its_authors_count():
  """Merity et al. (2016): 217,646 tokens of validation text, <eos> at each line end included."""
  with gzip.open(Path(os.environ["TFM_DATA_DIR"], "wikitext2", "valid.txt.gz"), "rt", encoding="utf-8") as file:
    text = file.read()
  assert language._counts([text], line_ends=True)["words"].tolist() == [217_646]
  assert language._counts([text], line_ends=False)["words"].tolist() == [217_646 - 3_760]


def test_word_perplexity_is_that_of_the_total_whatever_the_tokens(tmp_path):
  """A model that gives every character the same probability has the word perplexity V ** (characters / words)."""
  run = make_run("gpt", "char")
  zero = dataclasses.replace(run, params=jax.tree.map(np.zeros_like, run.params), begin_id=run.tokenizer.bos_id)
  (tmp_path / "text.txt").write_text("abc de\n\nf ghi\n")
  scores, _ = evaluate_text(zero, str(tmp_path / "text.txt"))
  vocabulary = run.model.vocab_size
  assert scores["token_perplexity"] == pytest.approx(vocabulary, rel=1e-5)
  assert scores["word_perplexity"] == pytest.approx(vocabulary ** (11 / 6), rel=1e-4)
  assert scores["bits_per_character"] == scores["bits_per_byte"] == pytest.approx(math.log2(vocabulary), rel=1e-5)
  assert scores["bits_per_byte_low"] == pytest.approx(scores["bits_per_byte_high"], rel=1e-6)


def test_intervals_hold_their_scores_and_shrink_with_more_documents(tmp_path):
  run = make_run("gpt", "char")
  widths = []
  for count in (8, 128):
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("aab cde"), draw.integers(4, 14))) + "." for _ in range(count)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    scores, _ = evaluate_text(run, str(tmp_path / "text.txt"), seed=1)
    for name in ("token_perplexity", "word_perplexity", "bits_per_byte", "bits_per_character"):
      assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]
    widths.append(scores["bits_per_byte_high"] - scores["bits_per_byte_low"])
  assert 2 < widths[0] / widths[1] < 8  # about 4
  assert evaluate_text(run, str(tmp_path / "text.txt"), seed=1)[0] == scores
  assert evaluate_text(run, str(tmp_path / "text.txt"), seed=2)[0] != scores
  assert not any("_low" in name for name in evaluate_text(run, str(tmp_path / "text.txt"), intervals=False)[0])


def test_documents_share_batches(file, monkeypatch):
  run, sizes = make_run("gpt"), []
  original = scoring._nll
  monkeypatch.setattr(
    scoring, "_nll", lambda model, params, batch: sizes.append(batch["inputs"].shape) or original(model, params, batch)
  )
  few, _ = evaluate_text(run, file, window=16, intervals=False)
  assert len(sizes) == 1 and sizes[0] == (32, 16)
  monkeypatch.setattr(scoring, "_LOGITS", 4 * 16 * run.model.vocab_size)
  many, _ = evaluate_text(run, file, window=16, intervals=False)
  assert sizes[1] == (4, 16) and len(sizes) > 3
  assert many["nll"] == pytest.approx(few["nll"], rel=1e-5)


def test_a_sharded_model_gives_the_same_scores(file):
  run = make_run("gpt")
  sharded = dataclasses.replace(run, model=dataclasses.replace(run.model, placement=tiny_models.placement("fsdp", 8)))
  one, other = (evaluate_text(r, file, intervals=False)[0] for r in (run, sharded))
  assert one == pytest.approx(other, rel=1e-5)


def test_json_lines_are_documents(tmp_path):
  run = make_run("gpt")
  (tmp_path / "text.jsonl").write_text('{"text": "the cat sat"}\n{"text": "a dog\\n\\nran"}\n')
  _, rows = evaluate_text(run, str(tmp_path / "text.jsonl"))
  assert [(row["text"], row["words"]) for row in rows] == [("the cat sat", 4), ("a dog\n\nran", 6)]


@pytest.mark.parametrize(
  ("variant", "options", "message"),
  [
    ("t5", {}, "perplexity needs a causal or a masked language model: family=t5 is an encoder-decoder"),
    ("gpt", {"window": 64}, "window=64 is longer than the model's 32 positions"),
    ("bert", {"window": 64}, "window=64 is longer than the model's 32 positions"),
    ("gpt", {"window": 1}, "window=1 is too short: a window needs at least 2"),
    ("bert", {"window": 2}, "window=2 is too short: a window needs at least 3"),
    ("gpt", {"window": 8, "stride": 9}, "stride=9 must lie between 1 and 8"),
    ("bert", {"window": 8, "stride": 7}, "stride=7 must lie between 1 and 6"),
    ("gpt", {"stride": 0}, "stride=0 must lie between"),
    ("gpt", {"document": "page"}, "document=page: expected one of block, line, file"),
  ],
)
def test_refusals(file, variant, options, message):
  with pytest.raises(UserError, match=message):
    evaluate_text(make_run(variant), file, **options)


def test_what_cannot_be_read_is_one_line(tmp_path):
  run = make_run("gpt")
  (tmp_path / "short.txt").write_text("a\n")
  (tmp_path / "empty.txt").write_text("\n")
  for name, message in [("short.txt", "nothing to score"), ("empty.txt", "empty|no text"), ("none.txt", "none.txt")]:
    with pytest.raises(UserError, match=message):
      evaluate_text(make_run("gpt", "char"), str(tmp_path / name))
  with pytest.raises(UserError, match="the run has no tokenizer"):
    evaluate_text(dataclasses.replace(run, tokenizer=None), str(tmp_path / "short.txt"))
