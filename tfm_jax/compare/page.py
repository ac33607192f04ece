"""The page of a comparison: one HTML file that needs no other and runs no script."""

from html import escape

from tfm_jax.compare.columns import (
  KINDS,
  NO_REASON,
  NONE,
  STATUS,
  communication_axes,
  digits,
  emulated,
  explanations,
  figures,
  findings,
  mesh_text,
  minimum_over,
  overflows,
  seconds_text,
  sent_bytes,
  summary_columns,
)
from tfm_jax.compare.layout import picture
from tfm_jax.compare.record import OK, Comparison, Row
from tfm_jax.compare.style import STYLE
from tfm_jax.compare.svg import Bar, Part, chart, legend
from tfm_jax.training.tracking import human_bytes, human_count

MEMORY = (
  ("parameters", "parameters"),
  ("optimizer", "optimizer state"),
  ("gradients", "gradients"),
  ("activations", "activations kept for the backward pass"),
  ("temporaries", "temporaries"),
)
PARTS = (("compute", "compute"), ("hbm", "memory traffic (HBM)"), ("communication", "exposed communication"))
HATCH = (
  '<svg class="empty" aria-hidden="true"><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse">'
  '<path d="M0 5L5 0" fill="none"/></pattern></svg>'
)


def html_page(comparison: Comparison) -> str:
  """The comparison as one HTML document: summary, memory, step time, communication, and where a parameter lies.

  Everything is inline, and all text of the comparison is escaped. What a strategy has no figures for shows why.
  """
  names = ", ".join(row.strategy for row in comparison.strategies)
  title = f"Sharding strategies, {comparison.kind}: {names}"
  sections = [
    _header(comparison),
    _notes(comparison),
    _found(comparison),
    _summary(comparison),
    _memory(comparison),
    _time(comparison),
    _communication(comparison),
    _layouts(comparison),
    _everything(comparison),
  ]
  versions = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{HATCH}\n<main>\n"
    + "\n".join(section for section in sections if section)
    + f"\n<footer>{escape(versions)}</footer>\n</main>\n</body>\n</html>\n"
  )


def _header(comparison: Comparison) -> str:
  """What was compared."""
  facts = {
    "config": comparison.config,
    "overrides": " ".join(f"{key}={value}" for key, value in comparison.overrides.items()),
    "devices": comparison.devices,
    "topology": comparison.topology,
    "batch": f"{comparison.batch_size} rows, {human_count(comparison.tokens_per_step)} tokens a step",
    "parameters": human_count(comparison.parameters),
    "remat": comparison.remat,
    "command": comparison.command,
  }
  items = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items() if text)
  names = " · ".join(escape(row.strategy) for row in comparison.strategies)
  how = "forecast, from programs compiled for" if comparison.kind == "forecast" else "measured on"
  intro = f"Sharding strategies side by side, {how} {escape(comparison.devices)}."
  return f'<header><h1>{names}</h1><p class="soft">{intro}</p><dl class="facts">{items}</dl></header>'


def _notes(comparison: Comparison) -> str:
  """What has to be known before the figures are read."""
  if not comparison.notes:
    return ""
  items = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
  return f'<aside class="note" aria-label="Notes"><ul>{items}</ul></aside>'


def _found(comparison: Comparison) -> str:
  """What a reader looks for first."""
  items = "".join(
    f"<li><small>{escape(one.title)}</small><b>{escape(one.names)}</b> {escape(one.amount)}"
    f"<small>{escape(one.contrast)}</small></li>"
    for one in findings(comparison)
  )
  return f'<ul class="found">{items}</ul>' if items else ""


def _section(title: str, explanation: str, body: str) -> str:
  """A section; its explanation is escaped, its body is not."""
  return f"<section><h2>{escape(title)}</h2><p>{escape(explanation)}</p>{body}</section>"


def _summary(comparison: Comparison) -> str:
  """The table; a reason stands below its row."""
  columns = summary_columns(comparison)
  titles = [column.title.replace("-\n", "").replace("\n", " ") for column in columns]
  rows = []
  for row in comparison.strategies:
    cells = []
    for index, column in enumerate(columns):
      text = column.text(row)
      names = ["name" if index == 0 else "n" if column.number else "text", _tone(row, text)]
      cells.append(_cell("td", " ".join(filter(None, names)), text))
    rows.append(f"<tr{_class('said' * (row.status != OK))}>{''.join(cells)}</tr>")
    if row.status != OK:
      why = f'<b class="bad">{STATUS[row.status]}</b>: {escape(row.reason or NO_REASON)}'
      rows.append(f'<tr class="why"><td colspan="{len(columns)}">{why}</td></tr>')
  head = "".join(_cell("th", "n" * column.number, title) for column, title in zip(columns, titles, strict=True))
  said = " ".join(one if one.endswith(".") else f"{one}." for one in explanations(comparison))
  return _section("Summary", said, _table(head, "".join(rows)))


def _table(head: str, body: str) -> str:
  """A table that scrolls by itself where the page is too narrow."""
  return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(tag: str, name: str, text: str) -> str:
  """A cell of a table."""
  return f"<{tag}{_class(name)}>{escape(text)}</{tag}>"


def _class(name: str) -> str:
  """The attribute, or nothing."""
  return f' class="{name}"' if name else ""


def _tone(row: Row, text: str) -> str:
  """Good or bad news in a cell of the summary."""
  if row.status != OK or overflows(row):
    return "bad" if text == STATUS[row.status] or text == "no" or text.startswith("+") else ""
  return "good" if text == "yes" else ""


def _missing(row: Row, what: str) -> str:
  """What stands in place of a bar."""
  return f"{STATUS[row.status]}: {row.reason or NO_REASON}" if row.status != OK else f"no {what} is known"


def _memory(comparison: Comparison) -> str:
  """Stacked bars of memory, and the limit."""
  limits = {row.memory_limit for row in comparison.strategies if row.memory_limit}
  limit = min(limits, default=None)
  bars = []
  for row in comparison.strategies:
    detail = mesh_text(row)
    if row.memory_bytes is None:
      bars.append(Bar(row.strategy, detail, reason=_missing(row, "memory")))
      continue
    memory = row.memory_bytes
    notes = [f"over by {human_bytes(row.over_bytes)}" if row.over_bytes else "does not fit"] if overflows(row) else []
    if row.microbatches is not None and row.microbatches > 1:
      notes.append(f"{row.microbatches} microbatches")
    parts = tuple(Part(name, title, getattr(memory, name)) for name, title in MEMORY)
    bars.append(Bar(row.strategy, detail, human_bytes(memory.peak), ", ".join(notes), parts, warning=overflows(row)))
  said = "What one device holds at the peak of a step, beside the bar in total."
  said += " The activations are estimated from the model's shapes; temporaries are the rest of what the compiler says."
  if limit:
    said += f" A device has {human_bytes(limit)}."
  name = f"a device has {human_bytes(limit)}" if limit else ""
  return _section("Memory on one device", said, legend(MEMORY) + chart("Memory", bars, "bytes", limit, name))


def _time(comparison: Comparison) -> str:
  """Step times: measured, or what a forecast is made of."""
  bars = []
  for row in comparison.strategies:
    parts, tokens, detail = row.forecast_step_seconds, row.tokens_per_second_per_device, mesh_text(row)
    rate = f"{human_count(tokens)} tokens/s a device" if tokens is not None else ""
    if parts:
      made = tuple(Part(name, title, getattr(parts, name)) for name, title in PARTS)
      ghost = Part("hidden", "hidden communication", parts.hidden)
      rate = "does not fit the memory" if overflows(row) else rate
      bars.append(Bar(row.strategy, detail, seconds_text(parts.total), rate, made, ghost, warning=overflows(row)))
    elif row.step_seconds is not None:
      made = (Part("other" if emulated(comparison) else "median", "median step", row.step_seconds),)
      text = seconds_text(row.step_seconds)
      bars.append(Bar(row.strategy, detail, text, rate, made, whisker=row.step_seconds_range))
    else:
      bars.append(Bar(row.strategy, detail, reason=_missing(row, "step time")))
  if comparison.kind == "forecast":
    said = (
      "Of a step: what the matrix and vector units bound, what memory traffic bounds, and collectives while nothing"
    )
    said += " else runs. Hatched, and no part of the total: communication hidden behind computation."
    keys = [*PARTS, ("hidden", "hidden communication")]
    return _section("Step time, forecast", said, legend(keys) + chart("Step time", bars, "seconds"))
  said = "The median step; the line spans the fastest and the slowest."
  if emulated(comparison):
    said += " Emulated devices share one processor: these times rank nothing."
  return _section("Step time, measured", said, chart("Step time", bars, "seconds"))


def _communication(comparison: Comparison) -> str:
  """For each strategy and set of mesh axes a bar of bytes by kind, and the minimum."""
  bars: list[Bar] = []
  kinds: set[str] = set()
  for row in comparison.strategies:
    if sent_bytes(row) is None:
      bars.append(Bar(row.strategy, mesh_text(row), reason=_missing(row, "communication")))
      continue
    minimum, axes = minimum_over(row), communication_axes(row)
    for index, over in enumerate(axes):
      here = [one for one in row.collectives if one.axes == over]
      kinds.update(one.kind for one in here)
      parts = tuple(
        Part(one.kind if one.kind in KINDS else "other", f"{one.count} x {one.kind}", one.bytes)
        for one in sorted(here, key=lambda one: (*KINDS, one.kind).index(one.kind))
      )
      total, count = sum(one.bytes for one in here), sum(one.count for one in here)
      together, least = minimum.get(over, ((over,), 0.0))
      alone = len(together) == 1
      sent = sum(one.bytes for one in row.collectives if one.axes in together)
      note = f"{count} collective{'s' * (count != 1)}" + (f", {digits(sent / least)} x minimum" if least else "")
      note += "" if alone or not least else f" with those over {' and '.join(a for a in together if a != over)}"
      name = row.strategy if index == 0 else ""
      bars.append(Bar(name, f"over {over}", human_bytes(total), note, parts, tick=least if alone and least else None))
    if not axes:
      bars.append(Bar(row.strategy, mesh_text(row), "sends nothing"))
  said = "What one device sends in a step, by the mesh axes over which it sends, each collective done around a ring;"
  said += " beside the bar their total and number."
  keys = [(kind if kind in KINDS else "other", kind) for kind in (*KINDS, *sorted(kinds - set(KINDS))) if kind in kinds]
  if any(row.minimum_bytes for row in comparison.strategies):
    said += " The tick is the least that the strategy has to send; where it may choose between"
    said += " sets of axes, as a reduction over replica and data, there is none but one minimum for all of them."
    keys.append(("tick", "analytic minimum"))
  if any(one.axes == "?" for row in comparison.strategies for one in row.collectives):
    said += ' "?": between groups of devices that are those of no set of mesh axes.'
  return _section("Communication by mesh axis", said, legend(keys) + chart("Communication", bars, "bytes"))


def _layouts(comparison: Comparison) -> str:
  """The picture of a parameter for each strategy."""
  rows = [row for row in comparison.strategies if row.layout]
  if not rows:
    return ""
  names = dict.fromkeys(
    f"{row.layout.parameter} ({' x '.join(map(str, row.layout.shape)) or 'scalar'})" for row in rows if row.layout
  )
  said = (
    "Left the parameter, cut as the strategy cuts it, each piece with the devices that hold it; right the devices by"
  )
  said += " mesh coordinates, in the colour of the piece they hold. Point at either for details."
  cards = "".join(picture(row, rows) for row in rows)
  absent = "".join(
    f'<p class="absent"><b>{escape(row.strategy)}</b>: {escape(_missing(row, "layout"))}</p>'
    for row in comparison.strategies
    if not row.layout
  )
  return _section(f"Where {', '.join(names)} lies", said, f'<div class="cards">{cards}</div>{absent}')


def _everything(comparison: Comparison) -> str:
  """All figures, folded away: those of the CSV file that are known of some row, a strategy a column."""
  rows = [figures(comparison, row) for row in comparison.strategies]
  same = {"strategy", "kind", "config", "devices", "topology", "batch_rows", "tokens_per_step", "model_parameters"}
  same |= {"reason"}
  names = [
    name for name in (rows[0] if rows else ()) if name not in same and any(row[name] is not None for row in rows)
  ]
  head = _cell("th", "", "") + "".join(_cell("th", "n", row["strategy"]) for row in rows)
  body = "".join(
    f"<tr>{_cell('td', '', name)}{''.join(_cell('td', 'n', _figure(row[name])) for row in rows)}</tr>" for name in names
  )
  summary = "<summary>All figures, as in comparison.csv</summary>"
  return f"<section><details>{summary}{_table(head, body)}</details></section>"


def _figure(value: object) -> str:
  """A figure without a unit."""
  if value is None:
    return NONE
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:.4g}" if isinstance(value, float) else str(value)
