"""Pages of errors: their numbers are those of the scores, their marks those of the texts, and all text is escaped."""

import itertools
import json
import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tests.support.browser import headless
from tests.support.predictions import answer_row, class_row, number_row, random_rows, tag_row
from tfm_jax.errors import UserError
from tfm_jax.runtime.reporting.chart import Line, line_chart
from tfm_jax.runtime.reporting.page import Html, bar, table
from tfm_jax.tasks.report.answers import excerpt, question_word
from tfm_jax.tasks.report.comparison import comparison_page
from tfm_jax.tasks.report.page import errors_page
from tfm_jax.tasks.report.parts import MOST_CLASSES, OTHER, by_size, columns_of, confusion, cut, share_interval
from tfm_jax.tasks.report.tags import aligned
from tfm_jax.tasks.report.terminal import errors_text
from tfm_jax.tasks.scores import compare, score

NASTY = "<script>alert(1)</script>\"'><img src=x>&amp;"
NAMES = ("runs/a", "runs/b")
FORMS = pytest.mark.parametrize("form", ["classes", "numbers", "tags", "answers"])


def page_of(form, rows, **facts):
  return errors_page(form, rows, score(form, rows), "Errors", facts)


def tree(page):
  """The body as XML, which also checks that tags are balanced and attributes quoted."""
  return ElementTree.fromstring(page[page.index("<main>") : page.index("</main>") + len("</main>")])


def sections(page):
  return {one.findtext("h2"): one for one in tree(page).iter("section")}


def text_of(element):
  return "".join(element.itertext())


def cells(section):
  """The rows of a section's first table as text."""
  return [["".join(cell.itertext()) for cell in row] for row in section.find(".//table").iter("tr")]


def case_numbers(section):
  """The row numbers of the examples, in order."""
  return [
    int(text_of(one.find("small")).removeprefix("row ")) for one in section.iter("li") if one.find("small") is not None
  ]


def changed(form, rows):
  """Another run over the same examples, better than the first."""
  right = lambda row: (row["label"] or [""])[0] if form == "answers" else row["label"]
  return [row | {"prediction": right(row)} if n % 3 == 0 else row for n, row in enumerate(rows)]


# Every form.


@FORMS
def test_the_page_shows_all_scores_with_their_intervals(form):
  rows = random_rows(form)
  scores = score(form, rows)
  shown = {row[0]: row[2:] for row in cells(sections(page_of(form, rows))["Scores"])[1:]}
  names = [name for name in scores if not name.endswith(("_low", "_high"))]
  assert len(shown) == len(names) - (form == "classes")  # of three classes F1 is the mean over classes
  title = {"numbers": "mean squared error", "classes": "accuracy", "answers": "exact match"}.get(form, "precision")
  name = title.replace(" ", "_")
  value, low, high = (scores[key] for key in (name, f"{name}_low", f"{name}_high"))
  percent = [f"{value:.2%}", f"{100 * low:.1f} to {100 * high:.1f}%"]
  assert shown[title] == ([f"{value:.3f}", f"{low:.3f} to {high:.3f}"] if form == "numbers" else percent)


@FORMS
def test_pages_need_nothing_from_outside_and_run_no_script(form):
  rows = random_rows(form)
  for page in (page_of(form, rows), comparison_page(form, rows, changed(form, rows), NAMES, {})):
    assert not {one.tag for one in tree(page).iter()} & {"script", "img", "link", "iframe", "a", "use", "image"}
    assert not re.search(r"https?:|url\(|@import|\ssrc=|\shref=", page)
    assert page.count("<style>") == page.count("</style>") == 2


def nasty(form):
  label = NASTY + "2"
  if form == "classes":
    plain = class_row(NASTY, label, NASTY) | {"probabilities": {NASTY: 0.9, label: 0.1}, "pair": NASTY}
    return [plain, plain | {"choices": [NASTY, NASTY], "prediction": "1", "label": "2"}, plain | {"probabilities": {}}]
  if form == "numbers":
    return [number_row(1.0, 2.0, NASTY) | {"pair": NASTY}, number_row(3.0, 2.5, NASTY)]
  if form == "tags":
    row = tag_row("B-X O B-X B-X", "B-Y B-X O B-X") | {"words": [NASTY] * 4}
    return [row | {key: [tag.replace("X", NASTY) for tag in row[key]] for key in ("label", "prediction")}]
  row = answer_row(NASTY, [label], candidates=[NASTY, label], question=NASTY, context=f"{NASTY} {label} {NASTY}")
  return [row | {"id": NASTY}, answer_row("", [NASTY]), answer_row(NASTY, [])]


@FORMS
@pytest.mark.parametrize("labelled", [True, False])
def test_all_text_is_escaped(form, labelled):
  rows = nasty(form) if labelled else [row | {"label": None} for row in nasty(form)]
  page = errors_page(form, rows, score(form, rows), NASTY, {NASTY: NASTY})
  pages = [page, comparison_page(form, rows, rows[:0] + rows, (NASTY, NASTY), {NASTY: NASTY})] if labelled else [page]
  for one in pages:
    assert "<script" not in one and "<img" not in one
    assert NASTY in text_of(tree(one).find("header"))
  assert NASTY in text_of(tree(page).findall("section")[-1]) or NASTY in text_of(tree(page))


@FORMS
def test_without_a_label_the_page_shows_predictions_and_scores_nothing(form):
  rows = [row | {"label": None} for row in random_rows(form, 30)]
  page = page_of(form, rows)
  assert list(sections(page)) == ["Predictions"] and "nothing is scored" in page
  assert case_numbers(sections(page)["Predictions"]) == list(range(1, 21))
  assert errors_text(form, rows, {}) == "30 predictions; no example has a label, so nothing is scored"
  tree(page_of(form, []))


@FORMS
def test_without_mistakes(form):
  rows = random_rows(form, 60)
  right = lambda row: next((t for t in row["label"] if t), "") if form == "answers" else row["label"]
  rows = [row | {"prediction": right(row)} for row in rows]
  if form == "answers":
    rows = [row for row in rows if row["prediction"] not in ("", "the")]
  page = page_of(form, rows)
  assert text_of(sections(page)["Mistakes"]).endswith(f"None: all {len(rows)} predictions are right.")
  assert "no mistakes" in errors_text(form, rows, score(form, rows))


@FORMS
def test_rows_without_a_label_keep_the_numbers_of_the_others(form):
  rows = random_rows(form, 12)
  mixed = [one for row in rows for one in (row | {"label": None}, row)]
  page = page_of(form, mixed)
  numbers = case_numbers(next(one for title, one in sections(page).items() if "istakes" in title))
  assert numbers and all(number % 2 == 0 for number in numbers)
  assert "without a label" in text_of(tree(page).find("header"))


@FORMS
def test_a_page_of_many_long_examples_stays_small(form):
  rows = random_rows(form, 300)
  text = "<long> " * 300
  longer = {
    "classes": {"text": text}, "numbers": {"text": text}, "tags": {}, "answers": {"context": "fox " + text}
  }[form]  # fmt: skip
  rows = [row | longer for row in rows] * 10
  assert len(page_of(form, rows)) < 1_000_000
  assert len(comparison_page(form, rows, changed(form, rows), NAMES, {})) < 1_000_000


def test_text_that_cannot_be_encoded_does_not_stop_the_page():
  rows = [class_row("a", "b", "half \ud83d of a pair", a=0.9, b=0.1)]
  assert "half ? of a pair" in page_of("classes", rows)


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


def test_whether_the_model_answers_is_counted():
  rows = [answer_row("x", ["x"]), answer_row("", ["x"]), answer_row("y", []), answer_row("", []), answer_row("", [])]
  shown = cells(sections(page_of("answers", rows))["Answer or none"])[1:]
  assert shown == [["answer", "150%", "150%", "2"], ["(no answer)", "133%", "267%", "3"]]


# Two runs.


@FORMS
def test_a_comparison_shows_what_only_one_run_gets_right(form):
  rows = random_rows(form)
  other = changed(form, rows)
  found = compare(form, rows, other)
  page = sections(comparison_page(form, rows, other, NAMES, {}))
  shown = {row[0]: row[2:] for row in cells(page["Scores"])[1:]}
  assert len(shown) == len(found.differences) - (form == "classes")
  one = next(iter(found.differences.values()))
  values = next(iter(shown.values()))
  assert values[2] == (f"{one.difference:+.3f}" if form == "numbers" else f"{100 * one.difference:+.2f}")
  if form == "numbers":
    assert case_numbers(page["runs/b is nearer than runs/a"]) and "No example" in text_of(
      page["runs/a is nearer than runs/b"]
    )
    return
  both, only_a, only_b, neither = found.table
  shown = cells(page["Right and wrong"])[1:]
  assert [row[-1] for row in shown] == [f"{both + only_a:,}", f"{only_b + neither:,}"]
  assert shown[1][1] == f"{only_b:,}{only_b / found.examples:.0%}"
  assert f"p = {found.mcnemar_p:.4f}" in text_of(page["Right and wrong"]) or found.mcnemar_p < 0.0001
  assert f"{only_b:,} examples" in text_of(page["runs/b right, runs/a wrong"])
  right_b = np.flatnonzero(found.right_b & ~found.right_a) + 1
  assert set(case_numbers(page["runs/b right, runs/a wrong"])) <= set(right_b)
  assert len(case_numbers(page["runs/b right, runs/a wrong"])) == min(20, only_b)
  assert ("No example" in text_of(page["runs/a right, runs/b wrong"])) == (only_a == 0)


def test_a_comparison_of_different_examples_is_refused():
  rows = random_rows("classes", 5)
  with pytest.raises(UserError, match="different examples"):
    comparison_page("classes", rows, rows[::-1], NAMES, {})


# The terminal.


@FORMS
def test_the_terminal_has_few_short_lines(form):
  rows = random_rows(form)
  text = errors_text(form, rows, score(form, rows))
  assert len(text.splitlines()) <= 40 and max(map(columns_of, text.splitlines())) <= 100
  assert text.count("  row ") == 5


def test_the_terminal_has_the_confusion_matrix_of_few_classes():
  rows = random_rows("classes")
  text = errors_text("classes", rows, score("classes", rows))
  counts = Counter((row["label"], row["prediction"]) for row in rows)
  for name in "abc":
    assert re.search(rf"^{name} +" + " +".join(str(counts[name, other]) for other in "abc") + "$", text, re.MULTILINE)
  many = [class_row(f"c{n}", f"c{n + 1}") for n in range(9)]
  assert "predicted\n" not in errors_text("classes", many, score("classes", many))


def test_the_terminal_obeys_no_text():
  rows = [class_row("好" * 60, "\x1b[31mred", "\x1b]0;title\x07 first\nsecond\u202e" + "好" * 200)]
  text = errors_text("classes", rows, score("classes", rows))
  assert all(line.isprintable() for line in text.splitlines())
  assert max(map(columns_of, text.splitlines())) <= 100


def test_cut_texts_fit():
  assert cut("short", 5) == "short" and cut("longer", 5) == "lo..."
  assert cut("好好好", 6) == "好好好" and cut("好好好好", 6) == "好..."


# What the pages add to tables and charts.


def test_tables_escape_text_and_leave_html():
  html = table(["<a>", "n"], [["<b>", Html("<i>1</i>")]], kind="k")
  body = '<tr><td>&lt;b&gt;</td><td class="n"><i>1</i></td></tr>'
  assert html.endswith(f'<table class="k"><tr><th>&lt;a&gt;</th><th class="n">n</th></tr>{body}</table></div>')


def test_bars_reach_from_zero_to_their_value_and_stay_inside():
  assert 'style="left:0.0%;width:25.0%"' in bar(0.25)
  assert 'style="left:40.0%;width:10.0%"' in bar(0.4, zero=0.5)
  assert 'style="left:10.0%;right:60.0%"' in bar(0.25, 0.1, 0.4)
  assert 'style="left:0.0%;width:100.0%"' in bar(7.0)


def test_a_chart_draws_ranges_and_widens_its_axis_for_them():
  points = [(0, 0.5), (1, float("nan")), (2, 0.6)]
  html = line_chart("t", [Line("", points, marks="filled", ranges=[(0.0, 1.0), (0, 1), (0.55, 0.65)])])
  places = re.findall(r'<path d="M[\d.]+ ([\d.]+)V([\d.]+)"', html)
  assert len(places) == 2  # the point that is not finite has no range either
  (low, high), (other_low, other_high) = [tuple(map(float, pair)) for pair in places]
  assert low - high == pytest.approx(10 * (other_low - other_high), rel=0.03)
  assert 10 <= high < low <= 210


# A browser.

MEASURE = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  const e = document.documentElement;
  document.title = JSON.stringify({page: e.scrollWidth - e.clientWidth, width: innerWidth}); });</script></body>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  return headless(tmp_path_factory.mktemp("profile"))


@FORMS
def test_in_a_browser_nothing_is_wider_than_the_window(browser, form, tmp_path):
  rows = random_rows(form) + [row | {"text": "x" * 400} for row in nasty(form)]
  if form == "classes":
    rows += [
      class_row("a_very_long_name_of_a_class_" * 3, "b", "text", **{"a_very_long_name_of_a_class_" * 3: 0.9, "b": 0.1})
    ]
  for name, page in {
    "errors": page_of(form, rows),
    "comparison": comparison_page(form, rows, changed(form, rows), ("runs/" + "long_name_" * 5, "runs/b"), {}),
  }.items():
    path = tmp_path / f"{name}.html"
    path.write_text(page.replace("</body>", MEASURE), encoding="utf-8")
    sizes = json.loads(re.search(r"<title>(\{.*?\})</title>", browser(path, 640, "--dump-dom"))[1])
    assert sizes == {"page": 0, "width": 640}
