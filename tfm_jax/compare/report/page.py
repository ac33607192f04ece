"""The page of a comparison: one self-contained HTML file without scripts."""

from html import escape

from tfm_jax.compare.report.columns import (
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
from tfm_jax.compare.report.shard_map import picture
from tfm_jax.compare.report.style import STYLE
from tfm_jax.compare.report.svg import Bar, Part, chart, legend
from tfm_jax.compare.results import OK, Comparison, StrategyResult
from tfm_jax.runtime.reporting.units import human_bytes, human_count

MEMORY = (
  ("parameters", "parameters"),
  ("optimizer", "optimizer state"),
  ("gradients", "gradients"),
  ("activations", "activations stored for the backward pass"),
  ("temporaries", "temporaries"),
)
PARTS = (("compute", "compute"), ("hbm", "memory traffic (HBM)"), ("communication", "exposed communication"))
HATCH = (
  '<svg class="empty" aria-hidden="true"><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse">'
  '<path d="M0 5L5 0" fill="none"/></pattern></svg>'
)


def html_page(comparison: Comparison) -> str:
  """The comparison as one HTML document: summary, memory, step time, communication, and where a parameter lies.

  Everything is inline, and all text of the comparison is escaped. A strategy without figures shows the reason.
  """
  names = ", ".join(result.strategy for result in comparison.strategies)
  title = f"Sharding strategies, {comparison.kind}: {names}"
  sections = [
    _header(comparison),
    _notes(comparison),
    _findings(comparison),
    _summary(comparison),
    _memory(comparison),
    _time(comparison),
    _communication(comparison),
    _shard_maps(comparison),
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
  """What was compared, and the command that repeats it."""
  facts = {
    "config": comparison.config,
    "overrides": " ".join(f"{key}={value}" for key, value in comparison.overrides.items()),
    "devices": comparison.devices,
    "topology": comparison.topology,
    "batch": f"{comparison.batch_size} rows, {human_count(comparison.tokens_per_step)} tokens per step",
    "parameters": human_count(comparison.parameters),
    "remat": comparison.remat,
  }
  items = [f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items() if text]
  if comparison.command:
    items.append(f"<div><dt>command</dt><dd><code>{escape(comparison.command)}</code></dd></div>")
  names = " · ".join(escape(result.strategy) for result in comparison.strategies)
  how = "forecast with programs compiled for" if comparison.kind == "forecast" else "measured on"
  intro = f"Sharding strategies side by side, {how} {escape(comparison.devices)}."
  return f'<header><h1>{names}</h1><p class="soft">{intro}</p><dl class="facts">{"".join(items)}</dl></header>'


def _notes(comparison: Comparison) -> str:
  """Sentences to read before the figures."""
  if not comparison.notes:
    return ""
  items = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
  return f'<aside class="note" aria-label="Notes"><ul>{items}</ul></aside>'


def _findings(comparison: Comparison) -> str:
  """What a reader looks for first, as cards."""
  items = "".join(
    f"<li><small>{escape(one.title)}</small><b>{escape(one.names)}</b> {escape(one.amount)}"
    f"<small>{escape(one.contrast)}</small></li>"
    for one in findings(comparison)
  )
  return f'<ul class="findings">{items}</ul>' if items else ""


def _section(title: str, explanation: str, body: str) -> str:
  """A section. The explanation is escaped here; the body is HTML."""
  return f"<section><h2>{escape(title)}</h2><p>{escape(explanation)}</p>{body}</section>"


def _summary(comparison: Comparison) -> str:
  """The summary table; a reason has a line of its own below its strategy."""
  columns = summary_columns(comparison)
  titles = [column.title.replace("-\n", "").replace("\n", " ") for column in columns]
  rows = []
  for result in comparison.strategies:
    cells = []
    for index, column in enumerate(columns):
      text = column.text(result)
      names = ["name" if index == 0 else "n" if column.number else "text", _tone(result, text)]
      cells.append(_cell("td", " ".join(filter(None, names)), text))
    rows.append(f"<tr{_class('explained' * (result.status != OK))}>{''.join(cells)}</tr>")
    if result.status != OK:
      why = f'<b class="bad">{STATUS[result.status]}</b>: {escape(result.reason or NO_REASON)}'
      rows.append(f'<tr class="why"><td colspan="{len(columns)}">{why}</td></tr>')
  head = "".join(_cell("th", "n" * column.number, title) for column, title in zip(columns, titles, strict=True))
  return _section("Summary", " ".join(explanations(comparison)), _table(head, "".join(rows)))


def _table(head: str, body: str) -> str:
  """A table that scrolls sideways if the page is too narrow."""
  return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(tag: str, name: str, text: str) -> str:
  """A cell of a table."""
  return f"<{tag}{_class(name)}>{escape(text)}</{tag}>"


def _class(name: str) -> str:
  """The class attribute; nothing for an empty name."""
  return f' class="{name}"' if name else ""


def _tone(result: StrategyResult, text: str) -> str:
  """The class of a cell of the summary with good or bad news."""
  if result.status != OK or overflows(result):
    return "bad" if text == STATUS[result.status] or text == "no" or text.startswith("+") else ""
  return "good" if text == "yes" else ""


def _missing(result: StrategyResult, what: str) -> str:
  """The text in place of a bar."""
  return f"{STATUS[result.status]}: {result.reason or NO_REASON}" if result.status != OK else f"no {what} is known"


def _no_bar(result: StrategyResult, what: str) -> Bar:
  """The bar of a strategy without this figure: its text."""
  return Bar(result.strategy, mesh_text(result) if result.mesh else "", reason=_missing(result, what))


def _memory(comparison: Comparison) -> str:
  """Stacked bars of memory, with the limit of a device."""
  limits = {result.memory_limit for result in comparison.strategies if result.memory_limit}
  limit = min(limits, default=None)
  bars = []
  for result in comparison.strategies:
    if result.memory_bytes is None:
      bars.append(_no_bar(result, "memory"))
      continue
    memory, too_large, notes = result.memory_bytes, overflows(result), []
    if too_large:
      notes.append(f"over by {human_bytes(result.over_bytes)}" if result.over_bytes else "does not fit")
    if result.microbatches is not None and result.microbatches > 1:
      notes.append(f"{result.microbatches} microbatches")
    parts = tuple(Part(name, title, getattr(memory, name)) for name, title in MEMORY)
    text, note = human_bytes(memory.peak), ", ".join(notes)
    bars.append(Bar(result.strategy, mesh_text(result), text, note, parts, warning=too_large))
  text = "What one device holds at the peak of a step; beside the bar the total. Activations are what loops of the"
  text += " compiled program store for the backward pass, and temporaries the rest of the compiler's figure."
  name = f"a device has {human_bytes(limit)}" if limit else ""
  if limit:
    text += f" A device has {human_bytes(limit)}."
  return _section("Memory on one device", text, legend(MEMORY) + chart("Memory", bars, "bytes", limit, name))


def _time(comparison: Comparison) -> str:
  """Bars of step times: measured, or the parts of a forecast."""
  bars = []
  for result in comparison.strategies:
    parts, tokens, detail = result.forecast_step_seconds, result.tokens_per_second_per_device, mesh_text(result)
    rate = f"{human_count(tokens)} tokens/s per device" if tokens is not None else ""
    if parts:
      stack = tuple(Part(name, title, getattr(parts, name)) for name, title in PARTS)
      ghost = Part("hidden", "hidden communication", parts.hidden)
      too_large = overflows(result)
      note = "does not fit the memory" if too_large else rate
      bars.append(Bar(result.strategy, detail, seconds_text(parts.total), note, stack, ghost, warning=too_large))
    elif result.step_seconds is not None:
      median = (Part("other" if emulated(comparison) else "median", "median step", result.step_seconds),)
      text = seconds_text(result.step_seconds)
      bars.append(Bar(result.strategy, detail, text, rate, median, whisker=result.step_seconds_range))
    else:
      bars.append(_no_bar(result, "step time"))
  if comparison.kind == "forecast":
    text = "Compute: limited by the matrix and vector units. Memory traffic: limited by HBM. Exposed communication:"
    text += " collectives during which nothing else runs. Hatched: communication hidden behind computation, which is no"
    text += " part of the total."
    keys = [*PARTS, ("hidden", "hidden communication")]
    return _section("Step time, forecast", text, legend(keys) + chart("Step time", bars, "seconds"))
  text = "The median step; the line spans the fastest and the slowest."
  if emulated(comparison):
    text += " Emulated devices share one processor: these times do not rank the strategies."
  return _section("Step time, measured", text, chart("Step time", bars, "seconds"))


def _communication(comparison: Comparison) -> str:
  """A bar per strategy and set of mesh axes: bytes by kind of collective, and the analytic minimum."""
  bars: list[Bar] = []
  kinds: set[str] = set()
  for result in comparison.strategies:
    if sent_bytes(result) is None:
      bars.append(_no_bar(result, "communication"))
      continue
    minimum, axes = minimum_over(result), communication_axes(result)
    for index, over in enumerate(axes):
      sent_over = [one for one in result.collectives if one.axes == over]
      kinds.update(one.kind for one in sent_over)
      parts = tuple(
        Part(one.kind if one.kind in KINDS else "other", f"{one.count} x {one.kind}", one.bytes)
        for one in sorted(sent_over, key=lambda one: (*KINDS, one.kind).index(one.kind))
      )
      total, count = sum(one.bytes for one in sent_over), sum(one.count for one in sent_over)
      together, least = minimum.get(over, ((over,), 0.0))
      alone = len(together) == 1
      sent = sum(one.bytes for one in result.collectives if one.axes in together)
      note = f"{count} collective{'s' * (count != 1)}" + (f", {digits(sent / least)} x minimum" if least else "")
      note += "" if alone or not least else f" with those over {' and '.join(a for a in together if a != over)}"
      name = result.strategy if index == 0 else ""
      bars.append(Bar(name, f"over {over}", human_bytes(total), note, parts, tick=least if alone and least else None))
    if not axes:
      bars.append(Bar(result.strategy, mesh_text(result), "sends nothing"))
  text = "What one device sends per step, with ring algorithms, by the mesh axes over which it sends. Beside the bar:"
  text += " the total, and the number of collectives."
  keys = [(kind if kind in KINDS else "other", kind) for kind in (*KINDS, *sorted(kinds - set(KINDS))) if kind in kinds]
  if any(result.minimum_bytes for result in comparison.strategies):
    text += " The tick is the analytic minimum: the least that the strategy has to send."
    keys.append(("tick", "analytic minimum"))
  if any(len(group) > 1 for result in comparison.strategies for group, _ in minimum_over(result).values()):
    text += " Bars that share one minimum have no tick: a reduction over replica and data may be divided between them."
  if any(one.axes == "?" for result in comparison.strategies for one in result.collectives):
    text += ' "?": groups of devices that match no set of mesh axes.'
  return _section("Communication by mesh axis", text, legend(keys) + chart("Communication", bars, "bytes"))


def _shard_maps(comparison: Comparison) -> str:
  """The picture of a parameter for each strategy."""
  results = [result for result in comparison.strategies if result.shard_map]
  if not results:
    return ""
  names = dict.fromkeys(
    f"{shard_map.parameter} ({' x '.join(map(str, shard_map.shape)) or 'scalar'})"
    for result in results
    if (shard_map := result.shard_map)
  )
  text = "Left: the parameter, split as under the strategy; each piece shows the devices that hold it. Right: the mesh"
  text += " of devices, each in the colour of its piece. Hover over either for details."
  cards = "".join(picture(result, results) for result in results)
  absent = "".join(
    f'<p class="absent"><b>{escape(result.strategy)}</b>: {escape(_missing(result, "shard map"))}</p>'
    for result in comparison.strategies
    if not result.shard_map
  )
  return _section(f"Where {', '.join(names)} lies", text, f'<div class="cards">{cards}</div>{absent}')


def _everything(comparison: Comparison) -> str:
  """The figures of the CSV file that some strategy has, one column per strategy; folded."""
  columns = [figures(comparison, result) for result in comparison.strategies]
  same = {"strategy", "kind", "config", "devices", "topology", "batch_rows", "tokens_per_step", "model_parameters"}
  names = [name for name in (columns[0] if columns else ()) if name not in same | {"reason"}]
  names = [name for name in names if any(column[name] is not None for column in columns)]
  head = _cell("th", "", "") + "".join(_cell("th", "n", column["strategy"]) for column in columns)
  body = ""
  for name in names:
    cells = "".join(_cell("td", "n", _figure(column[name])) for column in columns)
    body += f"<tr>{_cell('td', '', name)}{cells}</tr>"
  summary = "<summary>All figures, as in comparison.csv</summary>"
  return f"<section><details>{summary}{_table(head, body)}</details></section>"


def _figure(value: object) -> str:
  """The text of a figure, without a unit."""
  if value is None:
    return NONE
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:.4g}" if isinstance(value, float) else str(value)
