"""The curves of a run as one HTML page, drawn from the records of metrics.jsonl, and plots for other pages."""

import dataclasses
import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.chart import COLOURS, Line, Point, line_chart
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
  "param_norm": "Parameter norm",
  "update_norm": "Update norm",
  "tokens_per_second": "Tokens per second",
  "useful_tokens_per_second": "Tokens per second, without padding",
  "mfu": "Model FLOPs utilization (mfu)",
}
# Not drawn: timings, which tokens_per_second shows as well, and a constant, which is a line in the plot of the loss.
# Those of overlaid runs are axes.
HIDDEN = ("step", "split", "step_seconds", "data_wait_seconds", "unigram_entropy", "tokens", "flop", "FLOP", "seconds")
BY_LAYER = ("grad_norm", "param_norm", "update_norm")  # with train.layer_norms
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
WIDE = (1100, 400)  # size of a plot that is as wide as the page
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
    run.write_curves(curves_page(run.path.name, run.read_metrics(), "" if finished else REFRESH))
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


def curves_page(name: str, records: Records, head: str = "") -> str:
  """An HTML page with one plot per metric of a run.

  Args:
    name: of the run.
    records: in the order of metrics.jsonl.
    head: HTML for the page's head.
  """
  runs = {name: records}
  drawn, title = drawn_metrics(runs), f"Curves of {name}"
  sections = [page.header(title, about_lines(runs), _facts(records))]
  if "loss" in drawn:
    wide = plot(runs, "loss", size=WIDE)
    sections.append(page.section("Loss", "", f'<div class="scroll"><div class="wide">{wide}</div></div>'))
  others = [f'<div class="card"><h2>{escape(TITLES.get(n, n))}</h2>{plot(runs, n)}</div>' for n in drawn if n != "loss"]
  by_layer = [(title, drawing) for n in BY_LAYER for title, drawing in _by_layer(records, n).items()]
  others += [f'<div class="card"><h2>{escape(title)}</h2>{drawing}</div>' for title, drawing in by_layer]
  if others:
    sections.append(f'<section><div class="cards">{"".join(others)}</div></section>')
  return page.page(title, "\n".join([*sections, evaluations("", records)]), head)


def _names(records: Records) -> dict[str, None]:
  """The names of all metrics, in their order."""
  return dict.fromkeys(name for record in records for name in record)


def _by_layer(records: Records, metric: str) -> dict[str, str]:
  """Title -> plot over the steps, of the norms `METRIC/LAYER` in the records: the blocks of each tower, coloured by
  their depth, and the other parts."""
  parts: dict[str, list[str]] = {}
  for name in _names(records):
    if name.startswith(f"{metric}/"):
      layer = name.removeprefix(f"{metric}/")
      parts.setdefault(layer.rpartition("/")[0] if "blocks/" in layer else "", []).append(layer)
  plots = {}
  for part, layers in sorted(parts.items(), reverse=True):  # other parts last
    layers.sort(key=lambda layer: (len(layer), layer) if part else (0, layer))
    lines = []
    for number, layer in enumerate(layers):
      name = f"{metric}/{layer}"
      points = [(record["step"], record[name]) for record in records if _has(record, name)]
      points = _thinned(_average(points) if len(points) >= AVERAGED_FROM else points)
      depth = number / max(len(layers) - 1, 1) if part else None
      form = "solid" if part or number < COLOURS else "dashed"
      lines.append(Line(layer, points, number % COLOURS + 1, form, depth=depth))
    of = f"by layer{'' if part == 'blocks' else f': {part}'}" if part else "of other parts"
    title = f"{TITLES[metric]} {of}"
    plots[title] = line_chart(title, lines, y_log=True, text=short_number)
  return plots


def drawn_metrics(runs: Mapping[str, Records]) -> list[str]:
  """The metrics that there is something to draw of: those of `TITLES` first, then others in their order."""
  metrics = [*TITLES]
  for records in runs.values():
    named = [name for name in _names(records) if "/" not in name]  # the others are of a layer
    metrics += [name for name in named if name not in metrics and name not in HIDDEN]
  drawn = [name for name in dict.fromkeys(metrics) if any(_values(r, name) for r in runs.values())]
  if all(record.get("objective", record.get("loss")) == record.get("loss") for r in runs.values() for record in r):
    drawn = [name for name in drawn if name != "objective"]  # what is minimised is the loss
  return drawn


def about_lines(runs: Mapping[str, Records]) -> str:
  """What the lines with and without points are."""
  evaluated = any(record["split"] != "train" for records in runs.values() for record in records)
  held_out = "With points: held-out, one per evaluation. Without: training"
  intro = held_out if evaluated else "Nothing is held out. The lines: training"
  averaged = any(sum(r["split"] == "train" for r in records) >= AVERAGED_FROM for records in runs.values())
  single = "" if len(runs) > 1 else " (pale)"
  return intro + (f", the moving average of single steps{single}." if averaged else ", single steps.")


def plot(
  runs: Mapping[str, Records],
  name: str,
  axis: str = "step",
  axis_text: Callable[[float], str] = human_count,
  size: tuple[int, int] = (540, 250),
) -> str:
  """The plot of one metric: of one run its splits in different colours, of several runs each in one colour.

  Args:
    runs: the name of each run, and its records in the order of metrics.jsonl.
    name: the metric.
    axis: what it is drawn against; records that lack it are left out.
    axis_text: how its values are written.
    size: its width and height.
  """
  several = len(runs) > 1
  lines: list[Line] = []
  for number, (run, records) in enumerate(runs.items(), 1):
    for order, split in enumerate(dict.fromkeys(["train", *(record["split"] for record in records)])):
      of_split = [r for r in records if r["split"] == split and _has(r, name) and _has(r, axis)]
      points = [(record[axis], record[name]) for record in of_split]
      if split == "train":
        training = _training(run if several else "train", points, number, averaged=name not in EXACT)
        lines += training[-1:] if several else training
      else:
        label = run if several else "held-out" if split == "eval" else split
        colour = number if several else HELD_OUT_COLOUR + order - 1
        lines.append(Line(label, _thinned(points), colour, marks="filled"))
  # More lines than colours: those of the same colour differ in their form.
  lines = [dataclasses.replace(line, form="dashed") if line.colour > COLOURS else line for line in lines]
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
    x_name=axis,
    x_text=axis_text,
    size=size,
    text=short_number,
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
    facts |= {
      f"{label} {name}": short_number(last[name]) for name in ("loss", "accuracy", "perplexity") if _has(last, name)
    }
  return {"step": f"{max((record['step'] for record in records), default=0):,}"} | facts


def evaluations(run: str, records: Records) -> str:
  """All evaluations of a run as a table, closed at first."""
  rows = [record for record in records if record["split"] != "train"]
  if not rows:
    return ""
  names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("step", "split")]
  columns = ["step", "split", *(name.replace("_", " ") for name in names)]
  cells = [[f"{row['step']:,}", row["split"], *(short_number(row.get(name)) for name in names)] for row in rows]
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


def short_number(value: Any) -> str:
  """A value in a few digits."""
  if not isinstance(value, (int, float)):
    return "-"
  return human_count(value) if abs(value) >= 1000 else f"{value:.4g}"
