"""python -m tfm_jax.plot: several runs in one page, against steps, tokens, FLOP and seconds."""

import base64
import json
import re
import struct
import subprocess
import time

import pytest

from tests.runtime.test_curves import RECORDS, record, run_with
from tests.support.browser import headless
from tfm_jax.plot import main as plot
from tfm_jax.runtime.reporting import picture
from tfm_jax.runtime.reporting.overlay import LoggedRun, overlay_page, short_names
from tfm_jax.runtime.reporting.progress import progress_at, with_progress
from tfm_jax.runtime.run_directory import RunDirectory


def logged(steps, tokens=1000, seconds=0.5, every=10):
  """Records of a run with a fixed batch and equally long steps, with an evaluation five steps after the last."""
  at = [1, *range(every, steps + 1, every)]
  speed = {"tokens_per_second": tokens / seconds, "step_seconds": seconds}
  train = [record(n, loss=5.0 - n / steps, learning_rate=0.1, **speed) for n in at]
  return [record(0, "eval", loss=5.0), *train, record(steps + 5, "eval", loss=4.0, bits_per_byte=2.5)]


def test_progress_is_the_sum_over_all_steps_also_those_without_a_record():
  records = with_progress(logged(50), 6.0)
  for one in records:
    assert one["tokens"] == 1000 * one["step"] and one["FLOP"] == 6000 * one["step"], one
    assert one["seconds"] == pytest.approx(0.5 * one["step"])
  assert all("FLOP" not in one for one in with_progress(logged(50), 0.0))
  assert with_progress([record(1, loss=2.0)], 6.0) == [record(1, loss=2.0)]


def test_batches_that_grow_are_counted_as_they_were():
  speed = lambda tokens: {"tokens_per_second": tokens / 0.5, "step_seconds": 0.5}
  records = [record(1, **speed(10)), record(10, **speed(10)), record(20, **speed(30)), record(25, "eval", loss=1.0)]
  assert [one["tokens"] for one in with_progress(records, 0.0)] == [10, 100, 100 + 300, 100 + 450]


def test_what_a_record_has_counted_is_taken():
  """Two rates before the first record, steps after the last one, and records of an earlier release at the start."""
  speed = {"tokens_per_second": 20.0, "step_seconds": 0.5}
  counted = [record(4, tokens=100, flop=7.0, **speed), record(8, tokens=180, flop=13.0, **speed)]
  rows = with_progress([*counted, record(6, "eval"), record(9, "eval")], 0.0)
  assert [row["tokens"] for row in rows] == [100, 180, 140, 200]
  assert [row["FLOP"] for row in rows] == [7, 13, 10, 14.5] and [row["seconds"] for row in rows] == [2, 4, 3, 4.5]
  rows = with_progress([record(2, **speed), *counted], 3.0)
  assert [row["tokens"] for row in rows] == [20, 100, 180] and [row["FLOP"] for row in rows] == [60, 7, 13]


def test_the_progress_at_a_step_that_has_no_record(tmp_path):
  run = run_with(tmp_path / "a", logged(50))
  assert progress_at(run, 45) == (45_000, 0.0) and progress_at(RunDirectory(tmp_path / "none"), 5) == (0, 0)
  run.append_start({"step_tokens": 0, "step_flop": 6e9})  # a task without tokens
  assert progress_at(run, 45) == (45_000, 0.0)
  run.append_start({"step_tokens": 1000, "step_flop": 6e9})
  assert progress_at(run, 52) == (52_000, 52 * 6e9)


def test_a_long_run_takes_no_time():
  records = logged(20_000, every=1)
  begin = time.perf_counter()
  assert with_progress(records, 6.0)[-1]["tokens"] == 20_005_000
  assert time.perf_counter() - begin < 2


def lines(page, title):
  """The points of each line of the plot with this title, from its hidden titles."""
  chart = page.split(f"<h2>{title}</h2>")[1].split("</div></div>")[0].split('class="card"')[0]
  return re.findall(r"<title>(.*?)</title>", chart)


def test_the_loss_is_drawn_against_each_axis_with_a_line_per_run():
  runs = {
    "slow": LoggedRun(with_progress(logged(50), 6.0), {"a.b": 1, "c": 2}, 1000),
    "fast": LoggedRun(with_progress(logged(50, seconds=0.25), 6.0), {"a.b": 3, "c": 2}, 2000),
  }
  page = overlay_page(runs)
  assert "slow, step 55: 4" in page and "fast, step 55: 4" in page
  assert "slow, tokens 55,000: 4" in lines(page, "Loss against tokens")
  assert "fast, FLOP 330,000: 4" in lines(page, "Loss against FLOP")
  seconds = lines(page, "Loss against seconds")
  assert "slow, seconds 27.5: 4" in seconds and "fast, seconds 13.75: 4" in seconds
  assert "slow, tokens 55,000: 2.5" in lines(page, "Bits per byte against tokens")
  assert "fast, step 50: 0.1" in lines(page, "Learning rate")
  assert "fast, step 50: 4k" in lines(page, "Tokens per second")
  assert "<td>a.b</td>" in page and "<td>c</td>" not in page
  assert "<td>slow</td>" in page and ">1,000<" in page and ">330k<" in page and ">2.5 (step 55)<" in page
  assert not re.search(r"<script|https?:|<link|<img|@import|url\(", page)


def test_runs_of_earlier_releases_and_of_other_kinds_are_drawn_too():
  page = overlay_page({"old": LoggedRun(RECORDS), "new": LoggedRun(with_progress(logged(20), 0.0))})
  assert "old, step 4: 5.25" in page and "Loss against FLOP" not in page and "Settings that differ" not in page
  assert "Loss against tokens" in page


def test_names_are_as_short_as_they_can_be():
  assert short_names(["runs/a", "runs/b/"]) == ["a", "b"]
  assert short_names(["x/run", "y/run", "gs://bucket/run"]) == ["x/run", "y/run", "bucket/run"]
  assert short_names(["a", "a"]) == ["a", "a"]


def test_the_command(tmp_path, capsys):
  for name in "ab":
    run = run_with(tmp_path / name, logged(20))
    run.write_config({"seed": 0, "train": {"steps": 20, "batch_size": {"a": 4, "b": 8}[name]}})
    run.append_start({"parameters": 123_456, "step_tokens": 1000, "step_flop": 6e9})
    run.append_start({"parameters": 123_456})  # of a start that only printed the result
  out = tmp_path / "page.html"
  a, b = str(tmp_path / "a"), str(tmp_path / "b")
  assert plot([a, b, f"--out={out}"]) == 0
  page = out.read_text()
  assert "b, step 25: 4" in page and "b, FLOP 1.5e+11: 4" in page and ">123,456<" in page
  assert "<td>train.batch_size</td>" in page and "<td>train.steps</td>" not in page
  assert plot([a, f"--out={out}"]) == 0 and "The run" in out.read_text()
  assert plot([str(tmp_path / "c"), f"--out={out}"]) == 2
  assert "no metrics.jsonl" in capsys.readouterr().err
  assert plot([a]) == 2 and plot(["--out=x", "--what=1", "a"]) == 2
  assert "usage: python -m tfm_jax.plot RUN... --out=FILE" in capsys.readouterr().err
  assert plot([a, f"--out={tmp_path / 'x.pdf'}"]) == 2
  assert "FILE.png" in capsys.readouterr().err
  (tmp_path / "a" / "run.json").write_text("{")
  assert plot([a, f"--out={out}"]) == 2 and "run.json is damaged" in capsys.readouterr().err
  assert json.loads((tmp_path / "b" / "run.json").read_text())


def test_a_picture_shows_the_whole_page(tmp_path, capsys):
  headless(tmp_path)  # skips without a browser
  run_with(tmp_path / "a", logged(50))
  out = tmp_path / "page.png"
  assert plot([str(tmp_path / "a"), f"--out={out}"]) == 0
  width, height = struct.unpack(">II", out.read_bytes()[16:24])
  assert width == 2 * picture.WIDTH and height > 2 * 900
  assert [path.name for path in tmp_path.glob("*.png")] == ["page.png"]


# Presses the button and puts the file that it would save into the title.
PRESSED = """<script>
HTMLAnchorElement.prototype.click = () => {}
URL.createObjectURL = blob => {
  const reader = new FileReader()
  reader.onload = () => { document.title = reader.result }
  reader.readAsDataURL(blob)
}
document.querySelector("button").click()
</script>"""


@pytest.mark.slow
def test_the_button_of_the_page_saves_the_same_picture(tmp_path):
  run = headless(tmp_path / "profile")
  run_with(tmp_path / "<a & b>", logged(50))
  out = tmp_path / "page.html"
  assert plot([str(tmp_path / "<a & b>"), f"--out={out}"]) == 0
  page = out.read_text()
  assert not re.search(r"https?:|<link|<img|@import|url\(", page)  # no other file
  out.write_text(page.replace("</body>", f"{PRESSED}</body>"))
  kind, data = re.search(r"<title>(.*?),(.*?)</title>", run(out, 1000, "--dump-dom")).groups()
  assert kind == "data:image/png;base64"
  width, height = struct.unpack(">II", base64.b64decode(data)[16:24])
  assert width == 2 * 1000 and height > 2 * 900


@pytest.mark.parametrize("fails", ["missing", "silent", "hangs"])
def test_without_a_browser_that_works_it_is_one_line(fails, tmp_path, capsys, monkeypatch):
  run_with(tmp_path / "a", RECORDS)
  monkeypatch.setattr("shutil.which", lambda name: None if fails == "missing" else "/bin/true")

  def hangs(command, **options):
    raise subprocess.TimeoutExpired(command, 1)

  if fails == "hangs":
    monkeypatch.setattr("subprocess.run", hangs)
  assert plot([str(tmp_path / "a"), f"--out={tmp_path / 'page.png'}"]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and ".html" in error and not (tmp_path / "page.png").exists()
