"""The results as a page with plots, and as tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.output import facts, text_table
from benchmarks.train.load import LIMIT
from benchmarks.train.results import table
from tfm_jax.runtime.reporting import page as html
from tfm_jax.runtime.reporting.chart import Line, line_chart

Case = Mapping[str, Any]


def page(results: Mapping[str, Any]) -> str:
  """report.html: it needs no other file and runs no script."""
  settings = results["settings"]
  intro = (
    f"Training steps in turns, {settings['blocks']} blocks of each side. All sides have the same weights, tokens and "
    f"optimizer. A block in which other processes used more than {LIMIT:.0%} of the cores was discarded and run again."
  )
  parts = [
    html.header("Training steps, this package and its peers", intro, facts(results["machine"], results["command"]))
  ]
  parts += [_case(case) for case in results["cases"]]
  parts.append(_details(results))
  return html.page("Training steps compared", "\n".join(parts))


def terminal_table(case: Case) -> str:
  """A case's table in columns."""
  return f"{case['case']}: {case['about']}\n{text_table(*table(case))}"


def _case(case: Case) -> str:
  """The table and the plots of a case."""
  about = (
    f"{case['about']}: {case['parameters']:,} parameters, {case['tokens_per_step']:,} positions per step, of which "
    f"{case['useful_tokens_per_step']:,.0f} are text. Times are medians over blocks, with their range; factors are "
    "medians over rounds."
  )
  plots = [
    ("Seconds per step, by round", _blocks_plot(case)),
    ("Difference of the loss from ours, relative, in float32", _difference_plot(case)),
    ("Loss of the check", _loss_plot(case)),
    ("Single steps in the order of each side", _steps_plot(case)),
  ]
  cards = "".join(f'<div class="card"><h2>{title}</h2>{plot}</div>' for title, plot in plots)
  return html.section(
    case["case"], about, html.table(*table(case)) + f'<div class="cards" style="margin-top: 18px">{cards}</div>'
  )


def _sides(case: Case) -> Sequence[str]:
  return list(case["sides"])


def _blocks_plot(case: Case) -> str:
  lines = []
  for number, side in enumerate(_sides(case), 1):
    points = [(b["round"] + 1, b["step_seconds"]) for b in case["blocks"] if b["side"] == side and b["kept"]]
    dropped = [(b["round"] + 1, b["step_seconds"]) for b in case["blocks"] if b["side"] == side and not b["kept"]]
    lines += [Line(side, points, number, marks="filled")]
    lines += [Line(f"{side}, discarded", [point], number, marks="hollow") for point in dropped]
  rounds = sorted({b["round"] + 1 for b in case["blocks"]})
  return line_chart("Seconds per step", lines, x_name="round", y_low=0.0, x_ticks=rounds, text=_seconds)


def _difference_plot(case: Case) -> str:
  peers = [side for side in _sides(case) if side != "ours"]
  lines = [
    Line(side, list(enumerate(case["agreement"][side]["differences"], 1)), number)
    for number, side in enumerate(peers, 2)
  ]
  if lines:
    limits = zip(*(case["agreement"][side]["limits"] for side in peers), strict=True)
    lines.append(Line("tolerance", list(enumerate(map(max, limits), 1)), 0, "dashed"))
  return line_chart("Difference of the loss", lines, y_log=True, text=lambda x: f"{x:.0e}")


def _loss_plot(case: Case) -> str:
  lines = [
    Line(side, list(enumerate(case["agreement"][side]["losses"], 1)), number)
    for number, side in enumerate(_sides(case), 1)
  ]
  return line_chart("Loss", lines, text=lambda x: f"{x:.3g}")


def _steps_plot(case: Case) -> str:
  lines = []
  for number, side in enumerate(_sides(case), 1):
    seconds = [s for b in case["blocks"] if b["side"] == side and b["kept"] for s in b["seconds"]]
    lines.append(Line(side, list(enumerate(seconds, 1)), number))
  return line_chart("Seconds of single steps", lines, y_low=0.0, text=_seconds)


def _details(results: Mapping[str, Any]) -> str:
  """Versions and flags of each side."""
  rows = []
  for case in results["cases"]:
    for name, side in case["sides"].items():
      if "versions" in side:
        join = lambda values: ", ".join(f"{key} {value}" for key, value in values.items() if value != "")
        rows.append([f"{case['case']}: {name}", side["about"], join(side["versions"]), join(side["flags"])])
  environment = ", ".join(f"{k}={v}" for k, v in results["machine"]["environment"].items()) or "nothing that matters"
  return html.section(
    "Versions and flags", f"Environment: {environment}.", html.table(["side", "what", "versions", "flags"], rows, 4)
  )


def _seconds(value: float) -> str:
  return f"{value * 1e3:.4g} ms" if value < 1 else f"{value:.3g} s"
