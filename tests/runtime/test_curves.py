"""curves.html: drawn from metrics.jsonl, self-contained, and readable whatever the metrics hold."""

import math
import re

import pytest

from tfm_jax.runtime.reporting.chart import Line, line_chart
from tfm_jax.runtime.reporting.curves import curves_page, where_curves_are, write_curves
from tfm_jax.runtime.run_directory import RunDirectory


def record(step, split="train", **metrics):
  return {"step": step, "split": split, **metrics}


def run_with(path, records):
  run = RunDirectory(path)
  run.create()
  writer = run.open_metrics()
  for one in records:
    writer.write(one)
  writer.close()
  return run


OF_A_STEP = {"grad_norm": 1.5, "learning_rate": 0.1, "tokens_per_second": 2e4}
RECORDS = [
  record(0, "eval", loss=7.5, accuracy=0.0, perplexity=math.exp(7.5), unigram_entropy=5.5),
  *(record(n, loss=7.0 - n / 2, objective=7.0 - n / 2, **OF_A_STEP) for n in (1, 2, 3)),
  record(4, "eval", loss=5.25, accuracy=0.25, perplexity=math.exp(5.25), unigram_entropy=5.5),
]


def test_the_page_has_a_plot_for_each_metric():
  page = curves_page("quick", RECORDS)
  titles = re.findall(r"<h2>(.*?)</h2>", page)
  assert titles == ["Loss", "Perplexity", "Accuracy", "Learning rate", "Gradient norm", "Tokens per second"]
  assert page.count('class="curve"') == len(titles)
  for shown in ("held-out, step 4: 5.25", "train, step 3: 5.5", "unigram entropy"):
    assert shown in page
  assert "objective" not in page  # it is the loss here
  assert "objective" in curves_page("quick", [*RECORDS, record(5, loss=1.0, objective=1.5)])


def test_it_needs_no_other_file_and_no_script():
  page = curves_page("<run>", RECORDS)
  assert not re.search(r"<script|https?:|<link|<img|@import|url\(", page)
  assert "<run>" not in page and "&lt;run&gt;" in page
  assert "prefers-color-scheme: dark" in page


def test_a_short_run_is_drawn_whole_and_a_long_one_from_where_it_has_settled():
  def losses(steps):
    return curves_page("run", [record(n, loss=1000.0 if n == 1 else 2.0 + 1 / n) for n in range(1, steps + 1)])

  short, long = losses(20), losses(200)
  assert ">1k<" in short and "moving average" not in short
  assert ">1k<" not in long and "moving average" in long


def test_gradient_norms_of_one_size_are_drawn_from_zero():
  page = curves_page("run", [record(n, grad_norm=2.0 + n / 10) for n in range(1, 6)])
  assert ">0<" in page.split("<h2>Gradient norm</h2>")[1]


def test_values_that_are_not_finite_and_other_metrics_and_streams():
  records = [record(1, loss=None), record(2, loss=float("nan")), record(3, loss=2.0), record(3, "other", f1=0.5)]
  page = curves_page("run", records)
  assert "train, step 3: 2<" in page and "step 2:" not in page and "nan" not in page
  assert "<h2>f1</h2>" in page and "other, step 3: 0.5" not in page.split("<h2>f1</h2>")[0]
  assert "<h2>" not in curves_page("empty", [])


def test_a_long_run_is_thinned_but_keeps_its_extremes_and_its_ends():
  records = [record(n, grad_norm=100.0 if n == 7777 else 1.0, loss=3.0 + 1 / n) for n in range(1, 20_001)]
  page = curves_page("long", records)
  assert len(page) < 400_000
  assert "step 20,000: 3" in page
  faint = re.findall(r'class="faint" points="(.*?)"', page)
  heights = [float(point.split(",")[1]) for point in faint[1].split()]
  assert min(heights) < 20 < max(heights)  # the single spike


def test_the_page_of_a_run_refreshes_itself_until_the_run_is_finished(tmp_path):
  run = run_with(tmp_path / "run", RECORDS)
  write_curves(run, finished=False)
  assert 'http-equiv="refresh"' in run.curves.read_text()
  write_curves(run, finished=True)
  assert 'http-equiv="refresh"' not in run.curves.read_text() and "step 4" in run.curves.read_text()


def test_other_processes_write_no_page(tmp_path, monkeypatch):
  run = run_with(tmp_path / "run", RECORDS)
  monkeypatch.setattr(RunDirectory, "writes", False)
  write_curves(run, finished=True)
  assert not run.curves.exists()


def test_a_page_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
  run = run_with(tmp_path / "run", RECORDS)
  run.curves.mkdir()
  write_curves(run, finished=True)
  assert "cannot write" in caplog.text


def test_where_the_curves_are(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run = RunDirectory("runs/x")
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert where_curves_are(run) == "curves: runs/x/curves.html"
  monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
  assert where_curves_are(run) == "curves: runs/x/curves.html"
  run.tensorboard.mkdir(parents=True)
  assert where_curves_are(run) == "curves: runs/x/curves.html (or: tensorboard --logdir runs/x/tensorboard)"


@pytest.mark.parametrize(
  ("values", "log", "ticks"),
  [
    ([0.0, 5010.0], False, ["0", "2k", "4k", "6k"]),
    ([0.9, 95.0], True, ["1", "2", "5", "10", "20", "50"]),
    ([7.0], False, ["6", "6.5", "7", "7.5", "8"]),
  ],
)
def test_ticks_are_round(values, log, ticks):
  chart = line_chart("title", [Line("a", list(enumerate(values, 1)))], y_log=log, text="{:g}".format, size=(400, 190))
  drawn = re.findall(r'text-anchor="end">(.*?)<', chart)
  drawn = [f"{float(tick) / 1000:g}k" if float(tick) >= 1000 else tick for tick in drawn]
  assert drawn == ticks


def test_lines_end_where_the_axes_end():
  chart = line_chart("title", [Line("a", [(0, 0.0), (10, 100.0)], marks="filled")], size=(400, 200))
  places = re.findall(r'cx="(.*?)" cy="(.*?)"', chart)
  assert sorted(places) == [("384.0", "10.0"), ("58.0", "160.0")]


def test_names_below_the_axis_stay_beside_those_of_the_other_axis_and_inside_the_picture():
  chart = line_chart(
    "title", [Line("a", [(0.0001, 1.0), (0.5, 2.0), (1.0, 3.0)])], x_ticks=[0.0001, 0.5, 1.0], x_text="{:.4f}".format
  )
  left, middle, right = (float(x) for x in re.findall(r'<text x="([\d.]+)" y="227" text-anchor="middle">', chart))
  of_the_other_axis = float(re.search(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">', chart)[1])
  half = 6 * 7 / 2  # six letters
  assert left - half >= of_the_other_axis and right + half <= 540
  assert middle == pytest.approx((58 + 524) / 2, abs=0.1)  # below its place
