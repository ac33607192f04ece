"""The sections of each form on the pages of errors: counts, order and marks."""

import itertools
import re

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tests.support.error_pages import case_numbers, cells, page_of, sections, text_of, tree
from tests.support.predictions import answer_row, class_row, number_row, random_rows, tag_row
from tfm_jax.tasks.report.answers import excerpt, question_word
from tfm_jax.tasks.report.parts import MOST_CLASSES, OTHER, by_size, confusion, share_interval
from tfm_jax.tasks.report.tags import aligned
from tfm_jax.tasks.scores import score

# Classes.


def test_the_confusion_matrix_is_that_of_scikit_learn():
  rows = random_rows("classes")
  expected = sklearn.metrics.confusion_matrix([r["label"] for r in rows], [r["prediction"] for r in rows])
  header, *body = cells(sections(page_of("classes", rows))["Confusion matrix"])
  assert header == ["label \\ prediction", "a", "b", "c", "all"]
  for name, counts, row in zip("abc", expected, body, strict=True):
    shares = [f"{count}{count / counts.sum():.0%}" for count in counts]
    assert row == [name, *shares, str(counts.sum())]


def test_rare_classes_are_merged():
  names = [f"c{n:02d}" for n in range(30)]
  pairs = [(name, name) for n, name in enumerate(names) for _ in range(n + 1)] + [("c00", "c01"), ("c29", "c00")]
  shown, counts = confusion(pairs, names)
  assert shown == [*names[11:], OTHER] and len(shown) == MOST_CLASSES
  assert counts.sum() == len(pairs) and counts[-1, -1] == sum(range(1, 12)) + 1 and counts[-2, -1] == 1


def test_the_table_of_classes_has_the_scores_of_scikit_learn():
  rows = random_rows("classes")
  expected = sklearn.metrics.precision_recall_fscore_support(
    [r["label"] for r in rows], [r["prediction"] for r in rows]
  )
  for row, precision, recall, f1, support in zip(
    cells(sections(page_of("classes", rows))["Classes"])[1:], *expected, strict=True
  ):
    assert row[2:6] == [f"{f1:.1%}", f"{precision:.1%}", f"{recall:.1%}", str(support)]


def test_the_most_confident_mistakes_come_first():
  rows = [class_row("a" if p > 0.5 else "b", "b", f"text {p}", a=p, b=1 - p) for p in (0.6, 0.3, 0.9, 0.2, 0.7)]
  mistakes = sections(page_of("classes", rows))["Mistakes"]
  assert case_numbers(mistakes) == [3, 5, 1]
  assert "3 of 5 examples are wrong (60.0%)" in text_of(mistakes)
  assert "a (predicted)90.0%b (label)10.0%" in text_of(mistakes)


def test_at_most_thirty_mistakes_are_shown():
  rows = [class_row("a", "b", a=0.9, b=0.1)] * 50
  section = sections(page_of("classes", rows))["The 30 worst mistakes"]
  assert len(case_numbers(section)) == 30
  assert text_of(section.find(".//summary")) == "20 more"


def test_the_label_is_shown_however_improbable_it_is():
  probabilities = {f"c{n}": (10 - n) / 55 for n in range(10)}
  mistakes = sections(page_of("classes", [class_row("c0", "c9", **probabilities)]))["Mistakes"]
  shown = [text_of(one) for one in mistakes.iter("span") if "name" in one.get("class", "")]
  assert shown == ["c0 (predicted)", "c1", "c2", "c9 (label)"]


def test_rows_without_probabilities_still_have_a_page():
  rows = [class_row(p, n, "text") for p, n in ("ab", "aa", "bb")]
  page = page_of("classes", rows)
  assert "Reliability" not in sections(page) and "a (predicted)" in page and "b (label)" in page


def test_a_single_class():
  page = page_of("classes", [class_row("a", "a", "text", a=1.0)] * 40)
  assert cells(sections(page)["Confusion matrix"])[1:] == [["a", "40100%", "40"]]


def test_the_reliability_table_counts_every_example():
  rows = random_rows("classes")
  section = sections(page_of("classes", rows))["Reliability"]
  assert sum(int(row[2]) for row in cells(section)[1:]) == len(rows)
  assert f"Expected calibration error: {score('classes', rows)['calibration_error']:.2%}" in text_of(section)


def test_choices_are_listed_with_the_label_marked():
  row = class_row("1", "2", "context", **{"1": 0.8, "2": 0.2}) | {"choices": ["wrong end", "right end"]}
  items = list(sections(page_of("classes", [row]))["Mistakes"].find(".//ol[@class='choices']"))
  assert [(text_of(one), one.find("span").get("class")) for one in items] == [
    ("wrong end", "bad"),
    ("right end", "good"),
  ]


# Groups.


def test_groups_by_length_hold_every_example_once_in_ascending_order():
  rows = random_rows("classes", 230)
  sizes = [len(row["text"].split()) for row in rows]
  groups = by_size("classes", rows, sizes, "words")
  assert sum(group.count for group in groups) == len(rows) and len(groups) == 8
  ends = [[int(number) for number in re.findall(r"\d+", group.name)] for group in groups]
  assert all(before[-1] < after[0] for before, after in itertools.pairwise(ends))
  low, high = ends[2][0], ends[2][-1]
  own = [row for row, size in zip(rows, sizes, strict=True) if low <= size <= high]
  assert groups[2].value == pytest.approx(np.mean([row["label"] == row["prediction"] for row in own]))


def test_texts_of_equal_length_and_few_texts_have_no_groups():
  rows = random_rows("classes", 100)
  assert by_size("classes", rows, [7] * 100, "words") == []
  assert by_size("classes", rows[:30], list(range(30)), "words") == []


def test_chinese_texts_are_measured_in_characters():
  rows = [class_row("a", "ab"[n % 2], "很好" * (n + 1), a=0.6, b=0.4) for n in range(60)]
  assert "characters" in cells(sections(page_of("classes", rows))["By length of the text"])[1][0]


def test_the_interval_of_a_share_is_that_of_wilson():
  for count, of in ((0, 5), (3, 3), (7, 40)):
    expected = scipy.stats.binomtest(count, of).proportion_ci(method="wilson")
    assert share_interval(count, of) == pytest.approx(tuple(expected), abs=1e-6)


# Numbers.


def test_the_largest_errors_come_first_and_nan_breaks_nothing():
  rows = [number_row(1.0, 1.5), number_row(4.0, 1.0), number_row(2.0, 2.0), number_row(0.0, 2.0)]
  assert case_numbers(sections(page_of("numbers", rows))["Mistakes"]) == [2, 4, 1]
  tree(page_of("numbers", [*rows, number_row(float("nan"), 1.0)]))
  tree(page_of("numbers", rows[:1]))


def test_the_scatter_plot_has_every_example():
  rows = random_rows("numbers", 150)
  section = sections(page_of("numbers", rows))["Predictions and labels"]
  assert len(section.findall(".//g/circle")) == 150


# Tags.


PER, LOC = "PER", "LOC"


@pytest.mark.parametrize(
  ("labels", "predictions", "expected"),
  [
    ([(PER, 0, 1)], [(PER, 0, 1)], ["right"]),
    ([(PER, 0, 1)], [(LOC, 0, 1)], ["type"]),
    ([(PER, 0, 1)], [(PER, 0, 2)], ["boundary"]),
    ([(PER, 0, 1)], [(LOC, 1, 2)], ["both"]),
    ([(PER, 0, 1)], [(PER, 2, 2)], ["missed", "extra"]),
    ([(PER, 0, 3)], [(PER, 0, 0), (PER, 2, 3)], ["boundary", "extra"]),
    ([(PER, 0, 0), (PER, 1, 1)], [(PER, 0, 1)], ["boundary", "missed"]),
    ([(PER, 0, 1), (LOC, 2, 2)], [(LOC, 0, 2)], ["both", "missed"]),
  ],
)
def test_entities_are_matched(labels, predictions, expected):
  found = aligned(labels, predictions)
  assert sorted(one.kind for one in found) == sorted(expected)
  assert sorted(one.label for one in found if one.label) == sorted(labels)
  assert sorted(one.prediction for one in found if one.prediction) == sorted(predictions)


def test_a_sentence_shows_its_words_once_with_the_marks_of_both():
  row = tag_row("B-LOC I-LOC O B-PER O", "B-LOC O O B-ORG B-PER")
  (case,) = sections(page_of("tags", [row]))["Mistakes"].find("ol")
  sentence = case.find(".//p")
  marks = [(text_of(mark), mark.get("class")) for mark in sentence.iter("mark")]
  assert marks == [("w0", "label predicted"), ("w1", "predicted"), ("w3", "label predicted"), ("w4", "label")]
  tags = [text_of(one) for one in sentence.iter("span")]
  assert tags == ["LOC, wrong boundary", "PER, is ORG", "missed PER"]
  words = text_of(sentence)
  for tag in tags:
    words = words.replace(tag, "", 1)
  assert words.split() == row["words"]


def test_kinds_of_errors_and_types_add_up():
  rows = random_rows("tags")
  page = sections(page_of("tags", rows))
  kinds = {row[0]: int(row[3].replace(",", "")) for row in cells(page["Kinds of errors"])[1:]}
  types = cells(page["Types of entities"])[1:]
  labelled, predicted = (sum(int(row[place]) for row in types) for place in (5, 6))
  paired = sum(kinds.values()) - kinds["missed"] - kinds["extra: the label has no entity there"]
  assert paired + kinds["missed"] == labelled
  assert paired + kinds["extra: the label has no entity there"] == predicted
  assert kinds["right"] == pytest.approx(score("tags", rows)["precision"] * predicted)
  total = sum(int(row[-1]) for row in cells(page["Confusion of types"])[1:])
  assert total == sum(kinds.values())


def test_a_bio_fault_that_changes_no_entity_is_no_mistake():
  rows = [tag_row("I-PER O", "B-PER O"), tag_row("O O", "B-PER O")]
  section = sections(page_of("tags", rows))["Mistakes"]
  assert case_numbers(section) == [2] and "1 of 2 sentences" in text_of(section)


def test_tags_that_mark_no_entities():
  rows = [tag_row("NN VB DT", "NN VB NN"), tag_row("DT", "DT")]
  page = sections(page_of("tags", rows))
  assert "DT, is NN" in text_of(page["Mistakes"])
  assert [row[0] for row in cells(page["Tags"])[1:]] == ["DT", "NN", "VB"]


# Answers.


def test_an_excerpt_marks_exactly_the_spans():
  context = "".join(f"word{n} " for n in range(300))
  start, reference = context.index("word50"), context.index("word250")
  html = excerpt(context, [(start, start + 6, "predicted"), (reference, reference + 7, "label")])
  marks = re.findall(r'<mark class="(\w+)">(.*?)</mark>', html)
  assert marks == [("predicted", "word50"), ("label", "word250")]
  parts = [part.strip() for part in re.sub("<.*?>", "", html).split("...") if part.strip()]
  assert len(parts) == 2 and all(part in context for part in parts)
  assert all(word in context.split() for part in parts for word in part.split())  # no word is cut


def test_an_excerpt_marks_spans_that_overlap():
  html = excerpt("abcdefgh", [(1, 5, "predicted"), (3, 7, "label")])
  assert html == (
    'a<mark class="predicted">bc</mark><mark class="label predicted">de</mark><mark class="label">fg</mark>h'
  )
  assert excerpt("a" * 1000, []) == "a" * 280 + " ..."


def test_the_reference_that_is_nearest_to_the_prediction_is_marked():
  context = "fox one. " + "x " * 200 + "fox two."
  row = answer_row("two", ["fox"], context=context, candidates=["two"]) | {
    "start": len(context) - 4,
    "end": len(context) - 1,
  }
  marks = [text_of(one) for one in sections(page_of("answers", [row]))["Mistakes"].find("ol").iter("mark")]
  assert marks == ["fox", "two"] and "one" not in text_of(sections(page_of("answers", [row]))["Mistakes"].find("ol"))


@pytest.mark.parametrize(
  ("question", "word"),
  [
    ("How many people?", "how many"),
    ("In what year?", "what"),
    ("To whom was it sold?", "who"),
    ("Who's there?", "who"),
    ("Name it.", "other"),
    ("Whatever is somewhere", "other"),
  ],
)
def test_question_words(question, word):
  assert question_word(question, "en") == word


@pytest.mark.parametrize(
  ("question", "word"),
  [("谁写的？", "谁"), ("为什么？", "为什么"), ("是什么？", "什么"), ("有多少人？", "多少"), ("在哪里？", "哪里")],
)
def test_chinese_question_words(question, word):
  assert question_word(question, "zh").startswith(word)


def test_the_groups_of_question_words_have_the_scores_of_their_rows():
  rows = random_rows("answers", 90)
  rows = [row | {"question": ["Who?", "Where is it?"][n % 3 == 0]} for n, row in enumerate(rows)]
  shown = cells(sections(page_of("answers", rows))["By question word"])[1:]
  assert [(row[0], row[4]) for row in shown] == [("who", "60"), ("where", "30")]
  assert shown[1][2] == f"{score('answers', rows[::3])['f1']:.2%}"


def test_the_confidence_in_there_being_no_answer_counts_too():
  rows = [
    answer_row("fox", ["hen"], candidates=["fox"]),  # 0.5
    answer_row("", ["hen"], no_answer=0.9),
    answer_row("", ["hen"], no_answer=0.1),
  ]
  assert case_numbers(sections(page_of("answers", rows))["Mistakes"]) == [2, 1, 3]


def test_whether_the_model_answers_is_counted():
  rows = [answer_row("x", ["x"]), answer_row("", ["x"]), answer_row("y", []), answer_row("", []), answer_row("", [])]
  shown = cells(sections(page_of("answers", rows))["Answer or none"])[1:]
  assert shown == [["answer", "150%", "150%", "2"], ["(no answer)", "133%", "267%", "3"]]
