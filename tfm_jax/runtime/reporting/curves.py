"""The curves of runs as one HTML page, drawn from the records of metrics.jsonl."""

import importlib.util
import logging
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.chart import Line, Point, line_chart
from tfm_jax.runtime.reporting.units import human_count
from tfm_jax.runtime.run_directory import RunDirectory

log = logging.getLogger(__name__)

Records = Sequence[Mapping[str, Any]]

TITLES = {
  "loss": "Loss",
  "perplexity": "Perplexity",
  "accuracy": "Accuracy",
  "bits_per_byte": "Bits per byte",
  "bits_per_pixel": "Bits per pixel",
  "bleu": "BLEU",
  "chrf": "chrF",
  "rouge1": "ROUGE-1",
  "rouge2": "ROUGE-2",
  "rougeL": "ROUGE-L",
  "learning_rate": "Learning rate",
  "grad_norm": "Gradient norm",
  "tokens_per_second": "Tokens per second",
  "mfu": "Model FLOPs utilization (mfu)",
}
# Not drawn: timings, which tokens_per_second shows as well, and a constant, which is a line in the plot of the loss.
HIDDEN = ("step", "split", "step_seconds", "data_wait_seconds", "unigram_entropy")
LOGARITHMIC = ("perplexity", "grad_norm")
FROM_ZERO = ("tokens_per_second", "mfu")
FALLING = (
  "loss",
  "objective",
  "perplexity",
  "bits_per_byte",
  "bits_per_pixel",
)  # their first values are far above the rest
EXACT = ("learning_rate",)  # drawn without a moving average
UNIGRAM = "unigram entropy: the loss of guessing each piece by its frequency"
HELD_OUT_COLOUR = 4
MOST_POINTS = 600  # of a line; more would be drawn on top of each other
AVERAGED_FROM = 40  # records: shorter curves are drawn without a moving average
REFRESH = '<meta http-equiv="refresh" content="60">\n'  # the browser loads the page again every minute


def write_curves(run: RunDirectory, finished: bool) -> None:
  """Draws metrics.jsonl of a run as its curves.html. A page that cannot be written is logged, and does not end the run.

  Args:
    run: the run directory. Processes that do not write to it do nothing.
    finished: whether the run has ended; until then the page refreshes itself in the browser.
  """
  if not run.writes:
    return
  try:
    run.write_curves(curves_page({run.path.name: run.read_metrics()}, head="" if finished else REFRESH))
  except (OSError, UserError) as error:
    log.warning("cannot write %s: %s", run.curves, error)


def where_curves_are(run: RunDirectory) -> str:
  """The line about curves.html at the end of a run; it mentions TensorBoard only if that is installed."""
  here = Path.cwd()
  inside = run.is_local and Path(run.path).is_relative_to(here)
  folder = str(Path(run.path).relative_to(here)) if inside else str(run.path)
  tensorboard = importlib.util.find_spec("tensorboard") and run.tensorboard.exists()
  hint = f" (or: tensorboard --logdir {folder}/{run.tensorboard.name})" if tensorboard else ""
  return f"curves: {folder}/{run.curves.name}{hint}"


def curves_page(runs: Mapping[str, Records], head: str = "") -> str:
  """An HTML page with one plot per metric, of one run or of several in one plot.

  Args:
    runs: the name of each run, and its records in the order of metrics.jsonl.
    head: HTML for the page's head.
  """
  metrics = [*TITLES]
  for records in runs.values():
    metrics += [name for record in records for name in record if name not in metrics and name not in HIDDEN]
  drawn = [name for name in dict.fromkeys(metrics) if any(_values(r, name) for r in runs.values())]
  if all(record.get("objective", record.get("loss")) == record.get("loss") for r in runs.values() for record in r):
    drawn = [name for name in drawn if name != "objective"]  # what is minimised is the loss
  title = f"Curves of {', '.join(runs)}"
  evaluated = any(record["split"] != "train" for records in runs.values() for record in records)
  held_out = "With points: held-out, one per evaluation. Without: training"
  intro = held_out if evaluated else "Nothing is held out. The lines: training"
  averaged = any(sum(r["split"] == "train" for r in records) >= AVERAGED_FROM for records in runs.values())
  intro += ", the moving average of single steps (pale)." if averaged else ", single steps."
  sections = [page.header(title, intro, _facts(next(iter(runs.values()))) if len(runs) == 1 else {})]
  if "loss" in drawn:
    sections.append(
      page.section("Loss", "", f'<div class="scroll"><div class="wide">{_plot(runs, "loss")}</div></div>')
    )
  others = [
    f'<div class="card"><h2>{escape(TITLES.get(n, n))}</h2>{_plot(runs, n)}</div>' for n in drawn if n != "loss"
  ]
  if others:
    sections.append(f'<section><div class="cards">{"".join(others)}</div></section>')
  sections += [_evaluations(name if len(runs) > 1 else "", records) for name, records in runs.items()]
  return page.page(title, "\n".join(sections), head)


def _plot(runs: Mapping[str, Records], name: str) -> str:
  """The plot of one metric: of one run its splits in different colours, of several runs each in one colour."""
  several = len(runs) > 1
  lines: list[Line] = []
  for number, (run, records) in enumerate(runs.items(), 1):
    for order, split in enumerate(dict.fromkeys(["train", *(record["split"] for record in records)])):
      points = [(record["step"], record[name]) for record in records if record["split"] == split and _has(record, name)]
      if split == "train":
        training = _training(run if several else "train", points, number, averaged=name not in EXACT)
        lines += training[-1:] if several else training
      else:
        label = run if several else "held-out" if split == "eval" else split
        colour = number if several else HELD_OUT_COLOUR + order - 1
        lines.append(Line(label, _thinned(points), colour, marks="filled"))
  low, high = _range(lines, name)
  entropy = [r["unigram_entropy"] for records in runs.values() for r in records if _has(r, "unigram_entropy")]
  if name == "loss" and not several and entropy and (high is None or entropy[-1] <= high):
    ends = [x for line in lines for x, _ in line.points]
    lines.append(Line(UNIGRAM, [(min(ends), entropy[-1]), (max(ends), entropy[-1])], 0, "dashed"))
  drawn = [y for line in lines for _, y in line.points if high is None or y <= high]
  y_log = name in LOGARITHMIC and min(drawn, default=0.0) > 0 and max(drawn) > 20 * min(drawn)
  return line_chart(
    TITLES.get(name, name),
    lines,
    y_log=y_log,
    y_low=None if y_log else low,
    y_high=high,
    size=(1100, 400) if name == "loss" else (540, 250),
    text=_number,
  )


def _training(name: str, points: list[Point], colour: int, averaged: bool) -> list[Line]:
  """The line of single training steps; where there are many, their moving average above them."""
  if len(points) < AVERAGED_FROM or not averaged:
    return [Line(name, _thinned(points), colour)]
  return [Line("", _thinned(points), colour, "faint"), Line(name, _thinned(_average(points)), colour)]


def _average(points: list[Point]) -> list[Point]:
  """Exponential moving average over about a hundredth of the points, unbiased at the start."""
  keep = max(1 - 100 / len(points), 0.5)
  total = weight = 0.0
  out = []
  for x, y in points:
    total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
    out.append((x, total / weight))
  return out


def _thinned(points: list[Point]) -> list[Point]:
  """About `MOST_POINTS` points at most: the lowest and the highest of each of equally long stretches."""
  if len(points) <= MOST_POINTS:
    return points
  size = math.ceil(2 * len(points) / MOST_POINTS)
  stretches = (points[first : first + size] for first in range(0, len(points), size))
  value = lambda point: point[1]
  ends = ({min(stretch, key=value), max(stretch, key=value)} for stretch in stretches)
  return [point for pair in ends for point in sorted(pair)]


def _range(lines: Sequence[Line], name: str) -> tuple[float | None, float | None]:
  """(low, high) ends of the vertical axis; None: the smallest or largest value.

  The first values of a loss and single outliers of a speed are cut off, so that the rest of the curve can be read.
  """
  strong = [point for line in lines if line.form != "faint" for point in line.points]
  if not strong:
    return None, None
  if name in FROM_ZERO:
    values = sorted(y for _, y in strong)
    return 0.0, values[int(0.9 * (len(values) - 1))] * 1.3
  if name == "grad_norm":
    return 0.0, None
  last = max(x for x, _ in strong)
  settled = [y for x, y in strong if x >= 0.05 * last]
  if name not in FALLING or len(strong) < AVERAGED_FROM:
    return None, None
  return None, max(settled) + 0.05 * (max(settled) - min(settled))


def _facts(records: Records) -> dict[str, str]:
  """The last values of a run."""
  facts: dict[str, str] = {}
  for split in dict.fromkeys(record["split"] for record in reversed(records)):
    last = next(record for record in reversed(records) if record["split"] == split)
    label = {"train": "training", "eval": "held-out"}.get(split, split)
    facts |= {f"{label} {name}": _number(last[name]) for name in ("loss", "accuracy", "perplexity") if _has(last, name)}
  return {"step": f"{max((record['step'] for record in records), default=0):,}"} | facts


def _evaluations(run: str, records: Records) -> str:
  """All evaluations of a run as a table, closed at first."""
  rows = [record for record in records if record["split"] != "train"]
  if not rows:
    return ""
  names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("step", "split")]
  columns = ["step", "split", *(name.replace("_", " ") for name in names)]
  cells = [[f"{row['step']:,}", row["split"], *(_number(row.get(name)) for name in names)] for row in rows]
  summary = f"All evaluations{f' of {run}' if run else ''} as numbers"
  table = page.table(columns, cells, text_columns=2)
  return f"<section><details><summary>{escape(summary)}</summary>{table}</details></section>"


def _has(record: Mapping[str, Any], name: str) -> bool:
  """Whether a record has a finite number of that name."""
  value = record.get(name)
  return isinstance(value, (int, float)) and math.isfinite(value)


def _values(records: Records, name: str) -> list[float]:
  """All values of one metric."""
  return [record[name] for record in records if _has(record, name)]


def _number(value: Any) -> str:
  """A value in a few digits."""
  if not isinstance(value, (int, float)):
    return "-"
  return human_count(value) if abs(value) >= 1000 else f"{value:.4g}"
