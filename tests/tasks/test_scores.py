"""Scores of predictions against the field's own libraries and known cases; the bootstrap; two runs."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.predictions import class_row, number_row, random_rows, tag_row
from tfm_jax.errors import UserError
from tfm_jax.tasks.scores import MAIN, compare, score, scored_rows
from tfm_jax.tasks.scoring.answers import normalised
from tfm_jax.tasks.scoring.bootstrap import resamples
from tfm_jax.tasks.scoring.classes import OTHER, calibration_error, reliability
from tfm_jax.tasks.scoring.tags import bio_faults, entities

EXACT = pytest.approx


FORMS = pytest.mark.parametrize("form", ["classes", "numbers", "tags", "answers"])


# Classes.


@pytest.mark.parametrize(
  ("predictions", "labels", "f1"),
  [
    ("aaab", "aabb", 2 / 3),  # of the second of two classes
    ("bbba", "abbb", 2 / 3),
    ("aaaa", "aaaa", 1.0),
    ("abca", "abcb", (2 / 3 + 2 / 3 + 1) / 3),  # of three, the mean
    ("aaaa", "bbcc", 0.0),
  ],
)
def test_f1_is_of_the_second_of_two_classes_or_the_mean_over_more(predictions, labels, f1):
  rows = [{"prediction": prediction, "label": label} for prediction, label in zip(predictions, labels, strict=True)]
  assert score("classes", rows, intervals=False)["f1"] == EXACT(f1)


def test_f1_is_that_of_the_second_class_or_of_the_positive_one():
  # In the order of the probabilities "yes" is first: "no" is the second, whatever their order in the alphabet.
  rows = [class_row(p, n, yes=0.5, no=0.5) for p, n in [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "no")]]
  assert score("classes", rows, intervals=False)["f1"] == EXACT(4 / 5)
  assert score("classes", rows, intervals=False, positive="yes")["f1"] == EXACT(2 / 3)
  with pytest.raises(UserError, match=r"positive class 'yse'.*did you mean 'yes'"):
    score("classes", rows, positive="yse")


def test_a_class_that_is_only_in_the_probabilities_has_no_part_in_the_mean_of_f1():
  rows = [class_row("a", "a", a=0.9, b=0.05, c=0.05), class_row("b", "b", a=0.1, b=0.9, c=0.0)]
  assert score("classes", rows)["f1"] == score("classes", rows)["f1_low"] == 1.0


def test_text_that_names_no_class_is_wrong_and_no_class_of_its_own():
  pairs = [*[("yes", "yes")] * 4, *[("no", "no")] * 3, (OTHER, "yes")]
  rows = [{"prediction": prediction, "label": label} for prediction, label in pairs]
  scores = score("classes", rows)
  assert scores["accuracy"] == EXACT(7 / 8) and scores["f1"] == EXACT(8 / 9)
  assert scores["f1_macro"] == EXACT((8 / 9 + 1) / 2)
  weights = np.ones((1, len(rows)))
  of_all = scored_rows("classes", rows).resampled(weights)
  assert (of_all["f1"][0], of_all["f1_macro"][0]) == EXACT((scores["f1"], scores["f1_macro"]))
  better = compare("classes", rows, [*rows[:7], rows[7] | {"prediction": "yes"}]).differences["f1"]
  assert (better.a, better.b) == EXACT((8 / 9, 1.0)) and better.low == 0 and 0 < better.high < 0.5


def test_log_loss_and_its_floor_where_a_probability_was_rounded_to_zero():
  rows = random_rows("classes", 50)
  names = list(rows[0]["probabilities"])
  labels = [row["label"] for row in rows]
  probabilities = np.array([[row["probabilities"][name] for name in names] for row in rows])
  assert score("classes", rows)["log_loss"] == EXACT(sklearn.metrics.log_loss(labels, probabilities, labels=names))
  assert score("classes", [class_row("a", "b", a=1.0, b=0.0)])["log_loss"] == EXACT(-math.log(5e-7))
  scores = score("classes", [class_row("a", "c", a=1.0, b=0.0)])
  assert "log_loss" not in scores and scores["accuracy"] == 0


def test_the_calibration_error_is_the_weighted_distance_of_confidence_and_accuracy():
  # (0.6, 0.666..]: 0.62 wrong and 0.64 right; the last bin: 1.0 right, 0.95 right, 0.95 wrong.
  confidences, right = np.array([0.62, 0.64, 1.0, 0.95, 0.95]), np.array([False, True, True, True, False])
  expected = 2 / 5 * abs(0.5 - 0.63) + 3 / 5 * abs(2 / 3 - 2.9 / 3)
  rows = [class_row("a", "a" if good else "b", a=c, b=1 - c) for c, good in zip(confidences, right, strict=True)]
  assert score("classes", rows)["calibration_error"] == EXACT(expected)


def test_a_confidence_on_an_edge_is_in_the_lower_bin():
  bins = reliability(np.array([0.0, 0.2, 0.6, 0.61, 1.0]), np.ones(5, bool))
  assert [(round(15 * one.low), round(15 * one.high)) for one in bins] == [(0, 1), (2, 3), (8, 9), (9, 10), (14, 15)]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_equals_the_sum_over_half_open_bins(pairs):
  confidences, right = (np.array(values) for values in zip(*pairs, strict=True))
  error = 0.0
  for k in range(15):
    inside = (np.ceil(confidences * 15) == k + 1) | ((k == 0) & (confidences == 0))
    if inside.any():
      error += inside.mean() * abs(right[inside].mean() - confidences[inside].mean())
  assert calibration_error(reliability(confidences, right)) == EXACT(error, abs=1e-12)


def test_one_class_only_and_constant_predictions():
  assert score("classes", [class_row("a", "a", a=1.0)] * 3)["matthews"] == 0.0
  rows = [class_row("a", name, a=0.6, b=0.4) for name in "aab"]
  scores = score("classes", rows)
  assert scores["matthews"] == scores["f1"] == 0.0 and scores["accuracy"] == EXACT(2 / 3)


# Numbers.


@settings(max_examples=5)
@given(st.integers(2, 40), st.integers(0, 10**6), st.integers(1, 6))
def test_scores_of_numbers_equal_those_of_scipy_and_scikit_learn(count, seed, levels):
  draw = np.random.default_rng(seed)
  labels, predictions = draw.integers(0, levels + 1, count) * 1.0, draw.integers(0, levels + 1, count) / 2
  scores = score("numbers", [number_row(*pair) for pair in zip(predictions, labels, strict=True)], intervals=False)
  assert scores["mean_squared_error"] == EXACT(sklearn.metrics.mean_squared_error(labels, predictions))
  assert scores["mean_absolute_error"] == EXACT(sklearn.metrics.mean_absolute_error(labels, predictions))
  if np.ptp(labels) and np.ptp(predictions):
    assert scores["pearson"] == EXACT(scipy.stats.pearsonr(labels, predictions).statistic, abs=1e-12)
  else:
    assert scores["pearson"] == scores["spearman"] == 0.0


def test_what_is_not_finite_does_not_reach_json():
  scores = score("numbers", [number_row(math.nan, 1.0), number_row(2.0, 2.0), number_row(3.0, 1.0)])
  json.dumps(scores, allow_nan=False)
  assert "mean_squared_error" not in scores
  one = score("numbers", [number_row(3.0, 1.0)])
  json.dumps(one, allow_nan=False)
  assert one["pearson"] == 0.0 and one["mean_absolute_error"] == 2.0


# Tags.


@pytest.mark.parametrize(
  ("tags", "expected"),
  [
    ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
    ("I-PER I-PER O", {("PER", 0, 1)}),  # no B-
    ("O I-LOC", {("LOC", 1, 1)}),
    ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),  # the type changes
    ("I-PER I-LOC I-LOC", {("PER", 0, 0), ("LOC", 1, 2)}),
    ("B-PER B-PER I-PER", {("PER", 0, 0), ("PER", 1, 2)}),
    ("B-PER O I-PER", {("PER", 0, 0), ("PER", 2, 2)}),
    ("O O", set()),
  ],
)
def test_entities_are_those_of_the_conll_scorer_also_where_bio_is_faulty(tags, expected):
  assert set(entities(tags.split())) == expected


def test_bio_faults_are_counted():
  assert bio_faults(["B-PER", "I-PER", "I-PER", "O", "B-LOC"]) == 0
  assert bio_faults(["I-PER", "I-PER", "O", "I-LOC", "I-PER"]) == 3
  rows = [tag_row("O I-PER", "B-PER I-PER"), tag_row("B-PER I-LOC", "B-PER O")]
  assert score("tags", rows)["bio_faults"] == 2


def test_precision_recall_and_f1_of_a_case_counted_by_hand():
  rows = [
    tag_row("B-PER I-PER O B-LOC", "B-PER I-PER O B-ORG"),  # one right, one of the wrong type
    tag_row("O I-ORG I-ORG O", "O B-ORG I-ORG O"),  # right in spite of the fault
    tag_row("B-PER O O", "B-PER I-PER O"),  # too short
  ]
  scores = score("tags", rows)
  assert scores["precision"] == scores["recall"] == scores["f1"] == 0.5
  assert scores["accuracy"] == EXACT(8 / 11)
  assert list(scored_rows("tags", rows).right()) == [False, True, False]
  assert scored_rows("tags", rows).by_type() == {"LOC": (0, 1, 0), "ORG": (1, 1, 2), "PER": (1, 2, 2)}


def test_a_fault_does_not_reach_into_the_next_sentence():
  rows = [tag_row("O B-PER", "O B-PER"), tag_row("I-PER O", "I-PER O")]
  assert scored_rows("tags", rows).by_type() == {"PER": (2, 2, 2)}


def test_tags_that_mark_no_entities_have_only_an_accuracy():
  rows = [tag_row("NN VB DT", "NN VB NN"), tag_row("DT", "DT")]
  assert score("tags", rows, intervals=False) == {"accuracy": 0.75}
  assert list(scored_rows("tags", rows).right()) == [False, True]


def test_without_any_entity_f1_is_zero():
  assert score("tags", [tag_row("O O", "O O")])["f1"] == 0.0


# All forms.


@FORMS
def test_rows_without_a_label_have_no_part(form):
  rows = random_rows(form, 20)
  blank = [row | {"label": None} for row in rows]
  assert score(form, blank) == score(form, []) == {}
  mixed = [row for pair in zip(blank, rows, strict=True) for row in pair]
  assert score(form, mixed) == score(form, rows)


@FORMS
def test_scores_lie_within_their_intervals_and_bounds(form):
  scores = score(form, random_rows(form))
  assert MAIN[form] in scores and f"{MAIN[form]}_low" in scores
  for name in [name.removesuffix("_low") for name in scores if name.endswith("_low")]:
    assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
    if name not in ("log_loss", "mean_squared_error", "mean_absolute_error"):
      assert scores[f"{name}_low"] >= -1 and scores[f"{name}_high"] <= 1
  json.dumps(scores, allow_nan=False)


@FORMS
def test_the_order_of_the_rows_does_not_matter(form):
  rows = random_rows(form, 60)
  other = score(form, rows[::-1], intervals=False)
  assert other == EXACT(score(form, rows, intervals=False))


@FORMS
def test_perfect_predictions_score_one(form):
  rows = random_rows(form, 60)
  answer = lambda row: next((text for text in row["label"] if normalised(text)), "")  # others count as none
  right = lambda row: answer(row) if form == "answers" else row["label"]
  scores = score(form, [row | {"prediction": right(row)} for row in rows])
  assert scores[MAIN[form]] == EXACT(1.0) and scores[f"{MAIN[form]}_low"] == EXACT(1.0)
  if form != "numbers":
    assert scored_rows(form, [row | {"prediction": right(row)} for row in rows]).right().all()


@FORMS
def test_a_resample_scores_as_the_rows_that_it_draws(form):
  rows = random_rows(form, 40)
  weights = next(resamples(len(rows), seed=3, count=5))
  assert (weights.sum(axis=1) == len(rows)).all()
  fast = scored_rows(form, rows).resampled(weights)
  for r, counts in enumerate(weights.astype(int)):
    drawn = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    slow = score(form, drawn, intervals=False)
    assert {name: float(values[r]) for name, values in fast.items()} == EXACT({name: slow[name] for name in fast})


def test_the_interval_of_an_accuracy_is_the_binomial_one():
  rows = [class_row("a" if n < 320 else "b", "a", a=0.5, b=0.5) for n in range(400)]
  scores = score("classes", rows)
  low, high = scipy.stats.binom.interval(0.95, 400, 0.8)
  assert scores["accuracy_low"] == EXACT(low / 400, abs=0.006)
  assert scores["accuracy_high"] == EXACT(high / 400, abs=0.006)


def test_the_bootstrap_is_that_of_its_seed_and_of_all_examples():
  rows = random_rows("classes")
  assert score("classes", rows, seed=1) == score("classes", rows, seed=1) != score("classes", rows, seed=2)
  drawn = np.concatenate(list(resamples(50, seed=0)))
  assert drawn.shape == (1000, 50)
  assert np.abs(drawn.mean(axis=0) - 1).max() < 0.15  # every example is drawn as often as any other
  assert drawn.var() == EXACT(1 - 1 / 50, abs=0.03)


# Two runs.


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_examples():
  a = [class_row("x", "x" if n < 50 else "y", x=0.5, y=0.5) for n in range(100)]
  b = [row | {"prediction": row["label"] if n < 48 or 60 <= n < 70 else "z"} for n, row in enumerate(a)]
  found = compare("classes", a, b)
  assert found.table == (48, 2, 10, 40) and found.examples == 100
  assert found.mcnemar_p == EXACT(2 * sum(math.comb(12, k) for k in range(3)) / 2**12)
  accuracy = found.differences["accuracy"]
  assert (accuracy.a, accuracy.b) == (0.5, 0.58) and accuracy.difference == EXACT(0.08)
  # The paired difference has the variance of its -1, 0 and 1, far below that of two independent accuracies.
  deviation = math.sqrt((12 - 8**2 / 100) / 100**2)
  assert accuracy.high - accuracy.low == EXACT(2 * 1.96 * deviation, rel=0.15)
  assert -0.01 < accuracy.low < 0.08 < accuracy.high < 0.17 and 0.001 < accuracy.p_value < 0.06


@FORMS
def test_a_run_does_not_differ_from_itself(form):
  rows = random_rows(form, 50)
  found = compare(form, rows, rows)
  assert all(one.difference == one.low == one.high == 0 and one.p_value == 1 for one in found.differences.values())
  assert found.mcnemar_p == (None if form == "numbers" else 1.0)
  assert (found.table is None) == (form == "numbers")


@FORMS
def test_the_difference_changes_its_sign_with_the_order_of_the_runs(form):
  a = random_rows(form, 60)
  b = [row | {"prediction": a[0]["prediction"] if form != "tags" else ["O"] * len(row["words"])} for row in a]
  there, back = compare(form, a, b), compare(form, b, a)
  for name, one in there.differences.items():
    other = back.differences[name]
    assert (one.difference, one.low, one.high) == EXACT((-other.difference, -other.high, -other.low))
    assert one.p_value == other.p_value


def test_runs_over_different_examples_are_refused():
  rows = random_rows("classes", 5)
  with pytest.raises(UserError, match=r"different examples \(5 and 4\)"):
    compare("classes", rows, rows[:4])
  with pytest.raises(UserError, match="row 2 differs in text"):
    compare("classes", rows, [rows[0], rows[1] | {"text": "other"}, *rows[2:]])
  with pytest.raises(UserError, match="have no labels"):
    compare("classes", [row | {"label": None} for row in rows], [row | {"label": None} for row in rows])
