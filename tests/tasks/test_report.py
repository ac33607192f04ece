"""Pages of errors: their numbers are those of the scores, their marks those of the texts, and all text is escaped."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from tests.support.browser import headless
from tests.support.error_pages import case_numbers, cells, page_of, sections, text_of, tree
from tests.support.predictions import answer_row, class_row, number_row, random_rows, tag_row
from tfm_jax.errors import UserError
from tfm_jax.runtime.reporting.chart import Line, line_chart
from tfm_jax.runtime.reporting.page import Html, bar, table
from tfm_jax.tasks.report.comparison import comparison_page
from tfm_jax.tasks.report.page import errors_page
from tfm_jax.tasks.report.parts import columns_of, cut
from tfm_jax.tasks.report.terminal import errors_text
from tfm_jax.tasks.scores import compare, score

NASTY = "<script>alert(1)</script>\"'><img src=x>&amp;"
NAMES = ("runs/a", "runs/b")
FORMS = pytest.mark.parametrize("form", ["classes", "numbers", "tags", "answers"])


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
  assert any(NASTY in text_of(section) for section in tree(page).findall("section"))


@FORMS
def test_without_a_label_the_page_shows_predictions_and_scores_nothing(form):
  rows = [row | {"label": None} for row in random_rows(form, 30)]
  page = page_of(form, rows)
  assert list(sections(page)) == ["Predictions"] and "nothing is scored" in page
  assert case_numbers(sections(page)["Predictions"]) == list(range(1, 21))
  assert errors_text(form, rows, {}) == "30 predictions; no example has a label, so nothing is scored"
  tree(page_of(form, []))


def test_scores_that_need_no_label_are_shown():
  """Those of similarity: how often the pair of a text is the nearest."""
  rows, scores = [number_row(0.5, None, "a") | {"pair": "b", "rank": 1}], {"recall_at_1": 0.625}
  page = errors_page("numbers", rows, scores, "title", {})
  assert list(sections(page)) == ["Scores", "Predictions"] and "nothing is scored" not in page
  assert "0.625" in text_of(sections(page)["Scores"])
  text = errors_text("numbers", rows, scores)
  assert "recall at 1" in text and "0.625" in text and "nothing is scored" not in text


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
  rows = random_rows(form, 60)
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


@pytest.mark.slow
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
