"""Scores of answers against the official scripts of SQuAD and CMRC 2018, written again, and odd cases by hand."""

import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.predictions import answer_row
from tfm_jax.tasks.scores import score

EXACT = pytest.approx


# Answers: the official scripts, written again as plainly as possible.


def official_normalise(text):
  text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def official_f1(reference, prediction, version):
  theirs, ours = official_normalise(reference).split(), official_normalise(prediction).split()
  if version == 2 and (len(theirs) == 0 or len(ours) == 0):
    return int(theirs == ours)
  same = sum((Counter(theirs) & Counter(ours)).values())
  if same == 0:
    return 0
  precision, recall = same / len(ours), same / len(theirs)
  return 2 * precision * recall / (precision + recall)


def official_scores(rows, version):
  exact, f1 = [], []
  for row in rows:
    references = row["label"]
    if version == 2:
      references = [text for text in references if official_normalise(text)] or [""]
    exact.append(max(int(official_normalise(r) == official_normalise(row["prediction"])) for r in references))
    f1.append(max(official_f1(r, row["prediction"], version) for r in references))
  return exact, f1


def official_best_threshold(rows, f1):
  current = best = sum(not row["label"] for row in rows)
  threshold = 0.0
  for n in sorted(range(len(rows)), key=lambda n: rows[n]["no_answer"]):
    current += f1[n] if rows[n]["label"] else -1 if rows[n]["prediction"] else 0
    if current > best:
      best, threshold = current, rows[n]["no_answer"]
  return best / len(rows), threshold


def texts_of(*pieces):
  return st.lists(st.sampled_from(pieces), max_size=9).map("".join)


TEXTS = texts_of("the ", "an ", "a", "fox ", "Red", ",", "'s ", " ", "12 ", "é")


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=8))
def test_answers_score_as_the_script_of_squad_1_1(pairs):
  rows = [answer_row(*pair) for pair in pairs]
  exact, f1 = official_scores(rows, 1)
  scores = score("answers", rows, intervals=False, language="en")
  assert scores == {"exact_match": EXACT(np.mean(exact)), "f1": EXACT(np.mean(f1))}


@settings(max_examples=60)
@given(
  st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=3), st.sampled_from([0, 0.2, 0.5, 0.9])), min_size=1, max_size=8)
)
def test_answers_score_as_the_script_of_squad_2_0(triples):
  rows = [answer_row(*triple) for triple in triples] + [answer_row("fox", [], 0.5)]
  exact, f1 = official_scores(rows, 2)
  scores = score("answers", rows, intervals=False)
  assert scores["exact_match"] == EXACT(np.mean(exact)) and scores["f1"] == EXACT(np.mean(f1))
  has = np.array([bool(row["label"]) for row in rows])
  assert scores["no_answer_f1"] == EXACT(np.array(f1)[~has].mean())
  assert scores["has_answer_f1"] == EXACT(np.array(f1)[has].mean() if has.any() else 0.0)
  best, threshold = official_best_threshold(rows, f1)
  assert (scores["best_f1"], scores["best_f1_threshold"]) == (EXACT(best), threshold)


@pytest.mark.parametrize(
  ("prediction", "references", "exact", "f1"),
  [
    ("The Beatles!", ["beatles"], 1, 1),
    ("U.S. Army", ["US army"], 1, 1),
    ("an apple a day", ["apple day"], 1, 1),
    ("theatre", ["atre"], 0, 0),
    ("fox–the–hen", ["fox– –hen"], 1, 1),  # punctuation beyond ASCII stays, and an article leaves a space
    ("red fox", ["the fox", "red red fox"], 0, 0.8),
    ("", ["fox"], 0, 0),
    ("the", ["a"], 1, 0),  # both are nothing: SQuAD 1.1 counts no common word
    ("...", ["?"], 1, 0),
    ("\u00a0fox\n fox", ["fox fox"], 1, 1),
  ],
)
def test_odd_answers(prediction, references, exact, f1):
  scores = score("answers", [answer_row(prediction, references)], intervals=False)
  assert scores == {"exact_match": exact, "f1": EXACT(f1)}


def test_where_questions_are_unanswerable_empty_texts_agree():
  rows = [answer_row("", []), answer_row("the", ["a"]), answer_row("fox", []), answer_row("...", [])]
  scores = score("answers", rows, intervals=False)
  assert scores["exact_match"] == scores["f1"] == 0.75
  assert scores["has_answer_f1"] == 1.0 and scores["no_answer_f1"] == EXACT(2 / 3)


def test_the_best_threshold_brings_back_answers_that_the_run_withheld():
  rows = [
    answer_row("", ["fox"], 0.6, candidates=["", "fox"]),  # wrongly withheld
    answer_row("hill", ["hill"], 0.1),
    answer_row("", [], 0.9, candidates=["", "hill"]),
  ]
  scores = score("answers", rows, intervals=False)
  assert scores["f1"] == EXACT(2 / 3)
  assert (scores["best_f1"], scores["best_f1_threshold"]) == (1.0, 0.6)
  rows[0] = answer_row("wrong", ["fox"], 0.1)
  rows[1] = answer_row("wrong", ["hill"], 0.2)
  scores = score("answers", rows, intervals=False)
  assert (scores["best_f1"], scores["best_f1_threshold"]) == (EXACT(1 / 3), 0.0)


def official_chinese_f1(reference, prediction):
  removed = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"

  def pieces(text):
    out, other = [], ""
    for char in [c for c in text.lower().strip() if c not in removed] + ["一"]:
      if re.match(r"[\u4e00-\u9fa5]", char):
        out += other.split()  # these cases have no signs that NLTK would split
        out, other = [*out, char], ""
      else:
        other += char
    return out[:-1]

  theirs, ours = pieces(reference), pieces(prediction)
  runs = [ours[i:j] for i in range(len(ours)) for j in range(i + 1, len(ours) + 1)]
  common = [run for run in runs if any(theirs[k : k + len(run)] == run for k in range(len(theirs)))]
  longest = max(map(len, common), default=0)
  return 2 * longest / (len(ours) + len(theirs)) if longest else 0


CHINESE = texts_of(*"北京大学，。《》 ", "nba ", "1998")


@settings(max_examples=80)
@given(CHINESE, st.lists(CHINESE, min_size=1, max_size=3))
def test_chinese_answers_score_as_the_script_of_cmrc(prediction, references):
  scores = score("answers", [answer_row(prediction, references)], intervals=False, language="zh")
  assert scores["f1"] == EXACT(max(official_chinese_f1(reference, prediction) for reference in references))


@pytest.mark.parametrize(
  ("prediction", "references", "exact", "f1"),
  [
    ("《北京大学》。", ["北京大学"], 1, 1),
    ("北京的大学", ["北京大学"], 0, 4 / 9),  # the longest run is two characters
    ("1998年", ["于1998年", "1999年"], 0, 0.8),
    ("3.5%的人", ["3.5%的人"], 1, 1),
    ("NBA总冠军", ["nba总冠军"], 1, 1),
    ("", ["北京"], 0, 0),
  ],
)
def test_odd_chinese_answers(prediction, references, exact, f1):
  rows = [answer_row(prediction, references)]
  assert score("answers", rows, intervals=False) == {"exact_match": exact, "f1": EXACT(f1)}  # the language is detected


def test_an_unanswerable_chinese_question():
  rows = [answer_row("", []), answer_row("北京", []), answer_row("北京", ["北京"])]
  assert score("answers", rows, intervals=False)["f1"] == EXACT(2 / 3)
