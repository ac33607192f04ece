"""Several runs in one page: their curves over one another, against steps, tokens, FLOP and seconds."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.curves import (
  TITLES,
  WIDE,
  Records,
  about_lines,
  drawn_metrics,
  evaluations,
  plot,
  short_number,
)
from tfm_jax.runtime.reporting.progress import logged_progress
from tfm_jax.runtime.reporting.units import human_count, human_seconds
from tfm_jax.runtime.run_directory import RunDirectory

# What a loss is drawn against, and how its values are written.
AXES = {"tokens": human_count, "FLOP": human_count, "seconds": human_seconds}
FALLING = ("loss", "bits_per_byte")  # drawn against all of them
THIRD = (360, 230)  # size of a plot of which three stand side by side
BESIDE = ("learning_rate", "tokens_per_second")  # drawn first of the others


@dataclasses.dataclass(frozen=True)
class LoggedRun:
  """What the page shows of a run.

  Attributes:
    records: those of metrics.jsonl, each with the tokens, FLOP and seconds of training up to its step, as far as they
      are known.
    settings: "section.key" -> value of its configuration.
    parameters: how many it has; 0: unknown.
  """

  records: Records
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  parameters: int = 0


def read_run(path: str) -> LoggedRun:
  """A run directory. Raises UserError if a file of it is damaged."""
  run = RunDirectory(path)
  parameters = next((entry["parameters"] for entry in run.starts() if "parameters" in entry), 0)
  return LoggedRun(logged_progress(run), _flat(run.read_config()) if run.exists else {}, parameters)


def overlay_page(runs: Mapping[str, LoggedRun]) -> str:
  """An HTML page: the runs in numbers, what sets them apart, and one plot per metric with a line for each run."""
  records = {name: run.records for name, run in runs.items()}
  drawn = drawn_metrics(records)
  title = f"{len(runs)} runs" if len(runs) > 1 else f"The run {next(iter(runs))}"
  sections = [page.header(title, about_lines(records), {})]
  sections.append(page.section("In numbers", "", _numbers(runs)))
  if apart := _apart(runs):
    sections.append(page.section("Settings that differ", "", apart))
  for metric in (name for name in FALLING if name in drawn):
    wide = f'<div class="scroll"><div class="wide">{plot(records, metric, size=WIDE)}</div></div><br>'
    others = [
      _card(f"{TITLES[metric]} against {axis}", plot(records, metric, axis, text, THIRD))
      for axis, text in AXES.items()
      if any(axis in record for of_run in records.values() for record in of_run)
    ]
    sections.append(page.section(TITLES[metric], "", wide + _cards(others, width=330)))
  names = sorted((name for name in drawn if name not in FALLING), key=lambda name: name not in BESIDE)
  sections.append(f"<section>{_cards([_card(TITLES.get(n, n), plot(records, n)) for n in names])}</section>")
  sections += [evaluations(name if len(runs) > 1 else "", of_run) for name, of_run in records.items()]
  return page.page(title, "\n".join(sections))


def short_names(paths: Sequence[str]) -> list[str]:
  """The last parts of paths, as few of them as tell all paths apart."""
  parts = [Path(path).parts for path in paths]
  for count in range(1, max(map(len, parts)) + 1):
    names = ["/".join(part[-count:]) for part in parts]
    if len(set(names)) == len(set(paths)):
      return names
  return list(paths)


def _cards(cards: Sequence[str], width: int = 400) -> str:
  """Cards side by side, as many as fit if each has at least so many pixels."""
  columns = f"grid-template-columns: repeat(auto-fill, minmax(min(100%, {width}px), 1fr))"
  return f'<div class="cards" style="{columns}">{"".join(cards)}</div>'


def _card(title: str, body: str) -> str:
  return f'<div class="card"><h2>{escape(title)}</h2>{body}</div>'


def _numbers(runs: Mapping[str, LoggedRun]) -> str:
  """One row per run: how long it was trained, how fast, and its last evaluation."""
  losses = ("loss", "bits_per_byte")
  rows = []
  for name, run in runs.items():
    last = max(run.records, key=lambda record: record["step"])
    held_out = [record for record in run.records if record["split"] != "train"]
    first_split = [record for record in held_out if record["split"] == held_out[0]["split"]]
    speeds = [r["tokens_per_second"] for r in run.records if r["split"] == "train" and r.get("tokens_per_second")]
    known = lambda axis, text, last=last: text(last[axis]) if axis in last else "-"
    rows.append(
      [
        name,
        f"{run.parameters:,}" if run.parameters else "-",
        f"{last['step']:,}",
        *(known(axis, text) for axis, text in AXES.items()),
        human_count(float(np.median(speeds))) if speeds else "-",
        *(short_number(first_split[-1].get(loss)) if first_split else "-" for loss in losses),
        *(_lowest(first_split, loss) for loss in losses),
      ]
    )
  titles = ["run", "parameters", "steps", "tokens", "FLOP", "training time", "tokens/s (median)"]
  titles += [f"{which} held-out {TITLES[loss].lower()}" for which in ("last", "lowest") for loss in losses]
  empty = {i for i in range(1, len(titles)) if all(row[i] == "-" for row in rows)}
  keep = lambda row: [cell for i, cell in enumerate(row) if i not in empty]
  return page.table(keep(titles), [keep(row) for row in rows])


def _lowest(records: Records, name: str) -> str:
  """The lowest value, and its step."""
  values = [(record[name], record["step"]) for record in records if isinstance(record.get(name), float)]
  return f"{short_number(min(values)[0])} (step {min(values)[1]:,})" if values else "-"


def _apart(runs: Mapping[str, LoggedRun]) -> str:
  """A table of the keys of the configuration in which the runs differ; empty if there are none."""
  known = {name: run.settings for name, run in runs.items() if run.settings}
  keys = dict.fromkeys(itertools.chain.from_iterable(known.values()))
  texts = {key: [str(settings.get(key, "-")) for settings in known.values()] for key in keys}
  rows = [[key, *values] for key, values in texts.items() if len(set(values)) > 1]
  return page.table(["key", *known], rows) if rows else ""


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
  """ "section.key" -> value."""
  keys: dict[str, Any] = {}
  for name, value in config.items():
    keys |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, Mapping) else {name: value}
  return keys
