"""sweep.html and the table: whole, sorted, escaped."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from tfm_jax.tasks.sweeps import results
from tfm_jax.tasks.sweeps.page import sweep_page
from tfm_jax.tasks.sweeps.runs import FINISHED, Metric, Point, SweepRun
from tfm_jax.tasks.sweeps.space import space_of

RANDOM = {
  "optimizer.learning_rate": ("log", 1e-5, 1e-3),
  "model.dropout": ("uniform", 0.0, 0.3),
  "model.num_layers": ("int", 1, 4),
  "train.batch_size": [16, 32],
}


class Page(HTMLParser):
  """Checks that tags are closed, and collects them."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags = [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag != "meta":
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


NASTY = '<script>alert("no & never")</script>'


def made_up(count=12, seeds=2):
  """A random sweep with invented curves; one run failed, and one point has a value that is not plain text."""
  space = space_of({"random": count, **RANDOM, "data.path": ["a", NASTY]})
  points = []
  for number, values in enumerate(space.points, 1):
    top = 0.9 - 0.1 * abs(np.log10(values["optimizer.learning_rate"]) + 4) - values["model.dropout"] / 3
    runs = []
    for seed in range(seeds):
      records = [
        {"step": step, "split": "eval", "loss": 1.0, "accuracy": top * (1 - np.exp(-step / 200)) + 0.005 * seed}
        for step in range(0, 1001, 100)
      ]
      run = SweepRun(
        number,
        values,
        seed,
        Path(f"{number:03d}_seed={seed}"),
        {},
        {},
        FINISHED,
        "",
        records,
        61.0,
      )
      runs.append(run)
    points.append(Point(number, values, runs))
  points[3].runs[1].status, points[3].runs[1].error = "failed", f"killed by SIGKILL: {NASTY}"
  return space, points


def test_the_page_is_whole_escaped_and_needs_nothing_else():
  space, points = made_up()
  text = sweep_page("configs/sst2.py", space, points, Metric("accuracy"))
  parsed = Page(text)
  assert "<script" not in text and "https://" not in text and "prefers-color-scheme: dark" in text
  assert [tag for tag, _ in parsed.tags].count("h2") == 6 + len(space.dimensions)
  threads = [a for tag, a in parsed.tags if a.get("class") == "thread"]
  assert len(threads) == 12 and "var(--c4)" in threads[-1]["style"] and "var(--c4)" not in threads[0]["style"]
  assert sum(a.get("class") == "solid" for tag, a in parsed.tags if tag == "polyline") >= 2  # the best's curves
  assert "http-equiv" not in text and "http-equiv" in sweep_page("x", space, points, Metric("accuracy"), active=True)
  for some in ([], points[:1]):
    Page(sweep_page("x", space, some, Metric("accuracy")))
    Page(sweep_page("x", space, some, Metric("nothing")))


def test_the_table_is_sorted_by_the_metric():
  _, points = made_up()
  for metric in (Metric("accuracy"), Metric("loss")):
    means = [point.mean(metric) for point in results.ranked(points, metric)]
    assert means == sorted(means, reverse=metric.name == "accuracy")
  points[0].runs[0].records[-1]["accuracy"] = None  # as JSON has a value that is not finite
  assert Metric("accuracy").of(points[0].runs[0].records)[0] == 900
