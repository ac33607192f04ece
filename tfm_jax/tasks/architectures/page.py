"""architectures.html, architectures.json, and the same table for a terminal."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from tfm_jax.models.families.table import find_family
from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.chart import COLOURS, Line, line_chart
from tfm_jax.runtime.reporting.units import human_bytes, human_count, human_seconds
from tfm_jax.tasks.architectures.plan import FLOPS, PARAMETERS, Plan
from tfm_jax.tasks.architectures.runs import Result

_TITLES = {
  PARAMETERS: "Equal parameters, steps and rows",
  FLOPS: "Equal FLOPs",
}
_SAID = {
  PARAMETERS: "Each architecture is as wide as gives it the parameters of the first, and trains for as many steps.",
  FLOPS: "The same models, trained for as many steps as take the FLOPs of the first.",
}
_READING = (
  "Held-out loss is in nats per predicted token: of causal models all tokens of the text, of masked ones the masked "
  "tokens, of encoder-decoders what the decoder writes. Losses of different objectives are not comparable; bits per "
  "byte exist where each token of the text is predicted once. FLOPs are those of matrix products, with attention in "
  "full; the arithmetic of gates, norms and softmax is not in them. Tokens/s are positions, those of both sides of an "
  "encoder-decoder. Learning rates are those that the experiment file gives each family: the command tunes none."
)
_PLACES = (
  "Held-out loss by the number of tokens before the target in its document and row, in bins of doubling length. Of a "
  "model that reads from left to right, a line that still falls at the right uses distant tokens. An encoder reads "
  "what follows too, and a decoder beside an encoder the whole source, so that their lines say little of distances."
)


def architectures_page(plan: Plan, results: Sequence[Result]) -> str:
  """The page."""
  first = results[0].entry
  data, train = first.config.data, first.config.train
  facts = {
    "text": data.path or data.source,
    "rows": f"{train.batch_size} of {data.seq_len} tokens per step",
    "parameters": f"{first.parameters:,}",
    "FLOPs": human_count(first.step_flops * first.steps),
    "tasks": ", ".join(f"{task} ({plan.metrics[task]} of {n:,} examples)" for task, n in results[0].examples.items()),
    "seeds": str(plan.seeds),
  }
  intro = "One text, one tokenizer; ± is the standard deviation over the seeds of the fine-tuning."
  parts = [page.header("Architectures side by side", intro, facts)]
  for equal in (PARAMETERS, FLOPS):
    part = [result for result in results if result.entry.equal == equal]
    table = page.table(columns(plan), [row(plan, result) for result in part], text_columns=2)
    parts.append(page.section(_TITLES[equal], _SAID[equal], table))
  parts.append(page.section("How to read the table", _READING, ""))
  cards = "".join(
    f'<div class="card"><h2>{_TITLES[equal]}</h2>{_places([r for r in results if r.entry.equal == equal])}</div>'
    for equal in (PARAMETERS, FLOPS)
  )
  parts.append(page.section("Loss and the place in the text", _PLACES, f'<div class="cards">{cards}</div>'))
  cards = "".join(
    f'<div class="card"><h2>{_TITLES[equal]}</h2>{_curves([r for r in results if r.entry.equal == equal])}</div>'
    for equal in (PARAMETERS, FLOPS)
  )
  parts.append(page.section("Loss during training", "Held out, by FLOPs spent.", f'<div class="cards">{cards}</div>'))
  return page.page("Architectures side by side", "\n".join(parts))


def _lines(results: Sequence[Result], points: Sequence[Sequence[tuple[float, float]]], marks: str) -> list[Line]:
  forms = ("solid", "dashed")
  return [
    Line(result.entry.name, list(of), number % COLOURS + 1, forms[number // COLOURS % 2], marks)
    for number, (result, of) in enumerate(zip(results, points, strict=True))
  ]


def _places(results: Sequence[Result]) -> str:
  """A line per architecture; a bin stands at its geometric middle."""
  middle = lambda low, high: ((low + 1) * (high + 1)) ** 0.5
  points = [[(middle(low, high), loss) for low, high, loss, _ in r.measures.places] for r in results]
  lines = _lines(results, points, "filled")
  return line_chart("loss by place", lines, x_name="tokens before, and the target itself", x_log=True, text=_number)


def _curves(results: Sequence[Result]) -> str:
  points = [[(step * r.entry.step_flops, loss) for step, loss in r.measures.curve] for r in results]
  return line_chart("held-out loss", _lines(results, points, "none"), x_name="FLOPs", text=_number)


def columns(plan: Plan) -> list[str]:
  """The titles of the table."""
  fixed = ["architecture", "family", "layers", "width", "parameters", "steps", "FLOPs", "time"]
  measured = ["tokens/s", "memory", "held-out loss", "bits per byte"]
  return [*fixed, *measured, *(f"{task}: {metric}" for task, metric in plan.metrics.items())]


def row(plan: Plan, result: Result) -> list[str]:
  """The cells of one architecture."""
  entry, measures = result.entry, result.measures
  c = entry.config.model
  bits = measures.metrics.get("bits_per_byte")
  return [
    entry.name,
    entry.config.family,
    f"{c.num_layers} + {c.decoder_depth}" if find_family(entry.config.family).encoder_decoder else str(c.num_layers),
    str(c.embed_dim),
    f"{entry.parameters:,}",
    f"{entry.steps:,}",
    human_count(entry.step_flops * entry.steps),
    human_seconds(measures.step_seconds * entry.steps),
    human_count(measures.tokens_per_second),
    human_bytes(measures.memory) if measures.memory else "-",
    _number(measures.metrics["loss"]),
    "-" if bits is None else _number(bits),
    *(_score(result.scores[task]) for task in plan.metrics),
  ]


def _number(value: float) -> str:
  return f"{value:.3f}"


def _score(values: Sequence[float]) -> str:
  """The mean, and the standard deviation of several, in hundredths."""
  mean = f"{100 * statistics.fmean(values):.1f}"
  return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def terminal_table(plan: Plan, results: Sequence[Result]) -> str:
  """Both tables as text."""
  lines = []
  for equal in (PARAMETERS, FLOPS):
    cells = [columns(plan), *(row(plan, result) for result in results if result.entry.equal == equal)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += ["", f"{_TITLES[equal]}:"]
    for line in cells:
      padded = [cell.rjust(n) if i else cell.ljust(n) for i, (cell, n) in enumerate(zip(line, widths, strict=True))]
      lines.append("  ".join(padded).rstrip())
  return "\n".join(lines)


def to_json(plan: Plan, results: Sequence[Result]) -> str:
  """architectures.json."""
  return json.dumps({"metrics": dict(plan.metrics), "seeds": plan.seeds, "rows": [_json(r) for r in results]}, indent=2)


def _json(result: Result) -> dict[str, Any]:
  entry, measures = result.entry, result.measures
  return {
    "architecture": entry.name,
    "equal": entry.equal,
    "family": entry.config.family,
    "embed_dim": entry.config.model.embed_dim,
    "parameters": entry.parameters,
    "steps": entry.steps,
    "step_flops": entry.step_flops,
    "run": f"{entry.folder}/pretraining",
    "metrics": dict(measures.metrics),
    "tokens_per_second": measures.tokens_per_second,
    "step_seconds": measures.step_seconds,
    "memory_bytes": measures.memory,
    "loss_by_place": [
      {"first": first, "last": last, "loss": loss, "targets": targets} for first, last, loss, targets in measures.places
    ],
    "scores": dict(result.scores),
    "examples": dict(result.examples),
  }
