"""Scores of generated texts against sacrebleu's and rouge-score's own, and known cases; their pages."""

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from tests.support.error_pages import case_numbers, page_of, sections, text_of
from tests.support.predictions import text_row
from tfm_jax.tasks.report.comparison import comparison_page
from tfm_jax.tasks.report.terminal import errors_text
from tfm_jax.tasks.scores import compare, score, scored_rows, signatures
from tfm_jax.tasks.scoring.bootstrap import resamples

ROWS = [
  text_row("the cat sat on the mat.", "a cat sat on a mat."),
  text_row("dogs are running home", ["a dog runs home", "dogs run home", "the dogs are going home"]),
  text_row("", "nothing was written here"),
  text_row("one small grey bird saw all of the town", "one small grey bird saw all of the old town"),
]
CHINESE = [text_row("我昨天去了北京。", "我昨天到了北京。"), text_row("他是一个学生", "他是学生。")]


def streams(rows):
  """References as sacrebleu wants them."""
  lists = [[row["label"]] if isinstance(row["label"], str) else row["label"] for row in rows]
  return [[one[i] if i < len(one) else None for one in lists] for i in range(max(map(len, lists)))]


@pytest.mark.parametrize(("rows", "tokenize"), [(ROWS, "13a"), (CHINESE, "zh")])
def test_bleu_and_chrf_are_those_of_sacrebleu_over_the_corpus(rows, tokenize):
  texts = [row["prediction"] for row in rows]
  bleu, chrf = BLEU(tokenize=tokenize), CHRF()
  scores = score("texts", rows, intervals=False)
  assert scores["bleu"] == pytest.approx(bleu.corpus_score(texts, streams(rows)).score, rel=1e-12)
  assert scores["chrf"] == pytest.approx(chrf.corpus_score(texts, streams(rows)).score, rel=1e-12)
  assert scores["bleu"] > 10
  named = signatures("texts", rows)
  assert (named["BLEU"], named["chrF"]) == (str(bleu.get_signature()), str(chrf.get_signature()))
  assert f"tok:{tokenize}" in named["BLEU"]


def test_a_resample_has_the_bleu_of_a_corpus_that_holds_its_examples_as_often():
  scored = scored_rows("texts", ROWS)
  weights = next(resamples(len(ROWS), seed=3))[:20]
  drawn = scored.resampled(weights)
  for i, counts in enumerate(weights.astype(int)):
    rows = [row for row, count in zip(ROWS, counts, strict=True) for _ in range(count)]
    texts = [row["prediction"] for row in rows]
    assert drawn["bleu"][i] == pytest.approx(BLEU().corpus_score(texts, streams(rows)).score, rel=1e-9)
    assert drawn["chrf"][i] == pytest.approx(CHRF().corpus_score(texts, streams(rows)).score, rel=1e-9)
    assert drawn["rougeL"][i] == pytest.approx(score("texts", rows, intervals=False)["rougeL"])


def test_rouge_by_hand():
  # Stems: the cat sat on the mat / a cat sat on a mat. Common words: cat sat on mat, 4 of 6 and of 6; pairs: "cat sat",
  # "sat on", 2 of 5 and of 5; the longest common subsequence is the four words.
  scores = score("texts", [ROWS[0]], intervals=False)
  assert [scores[f"rouge{n}"] for n in "12L"] == pytest.approx([4 / 6, 2 / 5, 4 / 6])
  # "runs" and "running" have one stem, and "dogs" and "dog": 3 of 3 words against 3.
  assert score("texts", [text_row("dogs running home", "dog runs home")], intervals=False)["rouge1"] == 1.0


def test_rouge_takes_the_best_of_several_references():
  row = text_row("dogs run home", ["nothing alike", "dogs run home", "dogs"])
  assert score("texts", [row], intervals=False)["rouge2"] == 1.0
  both = score("texts", [row, text_row("x", "y")], intervals=False)
  assert both["rouge1"] == 0.5


def test_rouge_of_chinese_counts_characters():
  # 他是一个学生 has 6 characters; 他是学生。 has 4 of them and a full stop: 2 * 4 / (6 + 5).
  assert score("texts", CHINESE[1:], intervals=False)["rouge1"] == pytest.approx(8 / 11)


def test_texts_without_references_are_not_scored_and_intervals_hold_the_score():
  assert score("texts", [text_row("a", None)]) == {} and signatures("texts", [text_row("a", None)]) == {}
  scores = score("texts", [*ROWS, text_row("a", None)])
  for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL"):
    assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]


def test_two_systems_are_compared_by_their_distance_from_the_references():
  better = [row | {"prediction": row["label"] if isinstance(row["label"], str) else row["label"][0]} for row in ROWS]
  found = compare("texts", ROWS, better)
  assert found.differences["chrf"].b == 100 and found.right_a is None
  np.testing.assert_array_equal(found.gains > 0, [True] * 4)
  page = sections(comparison_page("texts", ROWS, better, ("old", "new"), {}))
  assert case_numbers(page["new is nearer than old"])[0] == 3  # the empty text has most to gain
  assert case_numbers(page["old is nearer than new"]) == []


def test_the_page_shows_the_worst_texts_first_with_what_differs_marked():
  rows = [*ROWS, text_row("equal", "equal")]
  page = page_of("texts", rows)
  mistakes = sections(page)["Mistakes"]
  numbers = case_numbers(mistakes)
  assert numbers[0] == 3 and 5 not in numbers and sorted(numbers) == [1, 2, 3, 4]
  marks = {
    kind: [text_of(m) for m in mistakes.iter("mark") if m.get("class") == kind] for kind in ("predicted", "label")
  }
  assert "old" in marks["label"] and "the" in marks["predicted"]
  assert "the nearest of 3" in text_of(mistakes) and "Lengths" in sections(page)
  text = errors_text("texts", rows, score("texts", rows))
  assert "largest errors" in text and "BLEU" in text and "reference: nothing was written here" in text
