"""The page of a plan, and its table for the terminal."""

from collections.abc import Sequence

from tfm_jax.compare.plan.plan import Plan
from tfm_jax.compare.plan.rows import Row
from tfm_jax.compare.report.columns import NONE, STATUS, digits, percent, seconds_text
from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.chart import Line, line_chart
from tfm_jax.runtime.reporting.units import human_bytes, human_count

TERMINAL_ROWS = 10
_STYLE = """<style>
code { font-size: 0.78rem; overflow-wrap: anywhere; } td.n, td { vertical-align: top; }
td:has(code) { min-width: 24rem; } code span { white-space: nowrap; }
.curve .label { fill: var(--ink); font-weight: 600; }
</style>
"""


def plan_page(plan: Plan) -> str:
  """The plan as one HTML document that needs no other file and runs no script."""
  best = plan.best
  sections = [
    page.header(f"A plan for {plan.config}", _answer(plan), _facts(plan)),
    _section_of_notes(plan),
    page.section("Ranked", _ranking(plan), _table(plan)),
    page.section(
      f"Days against {_price_name(plan)}",
      "Each circle is a compiled layout that fits; the numbers are those of the table. No other layout beats those on "
      "the line in both.",
      f'<div class="scroll"><div class="wide">{_front(plan)}</div></div>',
    ),
    page.section("Commands", "The number is that of the table.", _commands(plan)),
    page.section(
      "Estimates and forecasts",
      "Layouts are chosen by an estimate from shapes alone, and then compiled. Corrected by the ratios of what was "
      "compiled, the estimate chooses the next.",
      _estimates(plan),
    ),
    page.section("Not compiled", "The best other layouts by estimate, and why they have no forecast.", _waiting(plan)),
    page.section(
      f"How far {_layout(best)} scales, by estimate",
      "Nothing here was compiled. Strong: the same batch on every slice. Weak: the same rows per chip. A level line is "
      "perfect scaling. " + ". ".join(limit[0].upper() + limit[1:] for limit in plan.limits) + ".",
      _scaling(plan),
    ),
  ]
  return page.page(f"A plan for {plan.config}", "\n".join(filter(None, sections)), _STYLE)


def terminal_table(plan: Plan) -> str:
  """The answer in a line, and the best rows."""
  cost = ["cost"] if plan.goal.prices else []
  head = ["", "layout", "step", "MFU", "days", "chip-hours", *cost, "left", "bound by"]
  shown = plan.rows[:TERMINAL_ROWS]
  body = [[str(n), _layout(row, full=True), *_figures(plan, row)] for n, row in enumerate(shown, 1)]
  widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
  line = lambda cells: "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
  text = [_answer(plan), "", line(head), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, body)]
  if len(plan.rows) > TERMINAL_ROWS:
    text.append(f"... and {len(plan.rows) - TERMINAL_ROWS} more")
  return "\n".join([*text, "", *(f"Note: {note}" for note in plan.notes), "", plan.best.command])


def _answer(plan: Plan) -> str:
  """The answer in a sentence."""
  best, goal = plan.best, plan.goal
  length = f"{goal.steps:,} steps ({human_count(goal.steps * plan.tokens_per_step)} tokens)"
  price = f"{_price(plan, best)} {_price_name(plan)}" if not goal.prices else f"a cost of {_price(plan, best)}"
  answer = f"{_layout(best)}: {length} in {digits(best.days or 0)} days for {price}, at {percent(best.mfu or 0)} MFU"
  if goal.days is not None and not best.in_time:
    return f"Nothing compiled ends within {goal.days:g} days. The fastest is {answer}."
  return f"{answer}."


def _ranking(plan: Plan) -> str:
  """How the rows are ordered."""
  order = "The fastest comes first."
  if plan.goal.days is not None:
    order = f"Of the rows that end within {plan.goal.days:g} days, the cheapest by {_price_name(plan)} comes first."
  return f"{order} Left: memory of a device that the step leaves free."


def _facts(plan: Plan) -> dict[str, str]:
  prices = ", ".join(f"{chip} {price:g}" for chip, price in plan.goal.prices.items())
  return {
    "topologies": ", ".join(plan.goal.topologies),
    "batch": f"{plan.batch_size} rows, {human_count(plan.tokens_per_step)} tokens per step",
    "parameters": human_count(plan.parameters),
    "within": f"{plan.goal.days:g} days" if plan.goal.days is not None else "",
    "price per chip-hour": prices,
    "overrides": " ".join(f"{key}={value}" for key, value in plan.overrides.items()),
    "searched": f"{plan.searched:,} layouts, of which {len(plan.rows)} were compiled",
    "command": plan.command,
  }


def _section_of_notes(plan: Plan) -> str:
  items = "".join(f"<li>{page.html_of(note)}</li>" for note in plan.notes)
  return f"<section><ul>{items}</ul></section>" if items else ""


def _layout(row: Row, full: bool = False) -> str:
  """A layout in words; `full`: with its memory keys."""
  mesh = ":".join([row.strategy, *(f"{axis}={n}" for axis, n in row.mesh.items() if n > 1)])
  mesh += f":rounds={row.rounds}" if row.rounds > 1 else ""
  more = f" {row.remat}/{row.microbatches}{'' if row.scan else ' unrolled'}" if full else ""
  return f"{row.topology} {mesh}{more}"


def _price_name(plan: Plan) -> str:
  return "cost" if plan.goal.prices else "chip-hours"


def _price(plan: Plan, row: Row) -> str:
  return f"{row.price:,.0f}" if row.price >= 100 else digits(row.price)


def _figures(plan: Plan, row: Row) -> list[str]:
  """Step, MFU, days, chip-hours, cost if there are prices, memory left, and what binds."""
  if not row.fits:
    missing = human_bytes(-row.memory_left) if row.memory_left and row.memory_left < 0 else ""
    over = f"over by {missing}" if missing else STATUS.get(row.status, row.status)
    return [NONE, NONE, NONE, NONE, *([NONE] if plan.goal.prices else []), over, STATUS.get(row.status, row.status)]
  return [
    seconds_text(row.forecast_step_seconds or 0.0),
    percent(row.mfu or 0.0),
    digits(row.days or 0.0) + ("" if row.in_time in (None, True) else " (late)"),
    f"{row.chip_hours or 0.0:,.0f}" if (row.chip_hours or 0.0) >= 100 else digits(row.chip_hours or 0.0),
    *([_price(plan, row)] if plan.goal.prices else []),
    human_bytes(row.memory_left or 0.0),
    row.bound_by or NONE,
  ]


def _table(plan: Plan) -> str:
  columns = ["", "topology", "strategy", "mesh", "remat", "microbatches", "step", "MFU", "days", "chip-hours"]
  columns += [*(["cost"] if plan.goal.prices else []), "left", "bound by"]
  rows = []
  for number, row in enumerate(plan.rows, 1):
    mesh = " ".join(f"{axis}={n}" for axis, n in row.mesh.items() if n > 1) or "1 device"
    mesh += f", {row.rounds} rounds" if row.rounds > 1 else ""
    parts = f"{row.microbatches}{'' if row.scan else ', unrolled'}"
    rows.append([str(number), row.topology, row.strategy, mesh, row.remat, parts, *_figures(plan, row)])
  failures = "".join(
    f"<p>{number}: {page.html_of(row.reason)}</p>" for number, row in enumerate(plan.rows, 1) if row.reason
  )
  return page.table(columns, rows, text_columns=5) + failures


def _front(plan: Plan) -> str:
  """Days against price, on logarithmic axes, one colour per topology, with the Pareto front as a line."""
  numbers = {id(row): str(number) for number, row in enumerate(plan.rows, 1)}
  lines = []
  front = [(row.days or 0.0, row.price) for row in plan.front]
  lines.append(Line("", front, 0, "dashed"))
  for colour, topology in enumerate(plan.goal.topologies, 1):
    own = sorted((row for row in plan.rows if row.fits and row.topology == topology), key=lambda row: row.days or 0.0)
    points, labels = [(row.days or 0.0, row.price) for row in own], [numbers[id(row)] for row in own]
    lines.append(Line(topology, points, colour, "points", "filled", labels=labels))
  spread = [row.price for row in plan.rows if row.fits]
  wide = max(spread) > 3 * min(spread)
  return line_chart(
    f"Days against {_price_name(plan)}",
    lines,
    x_name="days",
    x_log=_wide([row.days or 0.0 for row in plan.rows if row.fits]),
    y_log=wide,
    size=(1100, 420),
    x_text=digits,
    text=human_count,
  )


def _wide(values: Sequence[float]) -> bool:
  """Whether values spread so far that a logarithmic axis shows them better."""
  return max(values) > 3 * min(values) > 0


def _commands(plan: Plan) -> str:
  rows = [
    [str(number), _layout(row), page.Html(f"<code>{_unbroken(row.command)}</code>")]
    for number, row in enumerate(plan.rows, 1)
    if row.fits
  ]
  return page.table(["", "layout", "command"], rows, text_columns=3)


def _unbroken(command: str) -> str:
  """A command as HTML, broken into lines at blanks alone, not at the hyphens of flags."""
  return " ".join(f"<span>{page.html_of(word)}</span>" for word in command.split(" "))


def _estimates(plan: Plan) -> str:
  rows = []
  for number, row in enumerate(plan.rows, 1):
    seconds = row.forecast_step_seconds
    rows.append(
      [
        str(number),
        _layout(row, full=True),
        seconds_text(row.estimate_seconds),
        seconds_text(seconds) if seconds else NONE,
        f"{seconds / row.estimate_seconds:.2f}" if seconds else NONE,
        human_bytes(row.estimate_memory_bytes),
        human_bytes(row.memory_bytes) if row.memory_bytes else NONE,
        f"{row.memory_bytes / row.estimate_memory_bytes:.2f}" if row.memory_bytes else NONE,
      ]
    )
  columns = ["", "layout", "estimated step", "forecast", "ratio", "estimated memory", "compiled", "ratio"]
  return page.table(columns, rows, text_columns=2)


def _waiting(plan: Plan) -> str:
  if not plan.waiting:
    return "<p>Every layout was compiled.</p>"
  rows = [[one.candidate, one.reason, seconds_text(one.seconds), human_bytes(one.memory_bytes)] for one in plan.waiting]
  return page.table(["layout", "why", "step, by estimate", "memory, by estimate"], rows, text_columns=2)


def _scaling(plan: Plan) -> str:
  if not plan.scaling:
    return "<p>No other slice of this chip serves.</p>"
  lines = [
    Line(
      kind,
      [(point.chips, point.tokens_per_second_per_chip) for point in plan.scaling if point.kind == kind],
      colour,
      "dashed",
      "hollow",
    )
    for colour, kind in enumerate(("strong", "weak"), 1)
  ]
  chart = line_chart(
    "Tokens/s per chip over the number of chips, by estimate",
    lines,
    x_name="chips",
    x_log=True,
    y_low=0.0,
    x_ticks=sorted({point.chips for point in plan.scaling}),
    size=(1100, 300),
    x_text="{:,.0f}".format,
  )
  rows = [
    [
      point.kind,
      point.topology,
      point.bound_by,
      f"{point.batch_size:,}",
      str(point.microbatches),
      seconds_text(point.seconds),
      human_count(point.tokens_per_second_per_chip),
      percent(point.communication),
    ]
    for point in plan.scaling
  ]
  columns = ["scaling", "slice", "bound by", "batch", "microbatches", "step", "tokens/s per chip", "communication"]
  return f'<div class="scroll"><div class="wide">{chart}</div></div>{page.table(columns, rows, text_columns=3)}'
