"""What a training step costs against depth, width, length and batch: python -m benchmarks.costs --out=DIR.

Each size is compiled and timed in a process of its own, with random batches. A table per axis has the seconds per
step, the peak memory and the compile time, and the exponent p of cost = c * size^p, from a fit on logarithms.

--config=FILE.py         the experiment; default: configs/gpt2_small.py
--axes=depth,width,length,batch
--base=depth:4,width:256,length:256,batch:4
                         the sizes of the axes that stay the same
--sizes=4                sizes per axis, each twice the one before; the second is the base's
--seconds=3              time per size
--out=runs/costs         the folder for costs.json and costs.html
--config.KEY=VALUE       replaces a key of the config
"""

import math
import sys
from collections.abc import Callable
from typing import Any

from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("config", "axes", "base", "sizes", "seconds", "out")
BASE = {"depth": 4, "width": 256, "length": 256, "batch": 4}
HEAD_DIM = 64
AXES: dict[str, Callable[[int], dict[str, Any]]] = {
  "depth": lambda n: {"model.num_layers": n},
  "width": lambda n: {
    "model.embed_dim": n,
    "model.num_heads": max(n // HEAD_DIM, 1),
    "model.head_dim": min(HEAD_DIM, n),
    "model.mlp_dim": 4 * n,
  },
  "length": lambda n: {"data.seq_len": n},
  "batch": lambda n: {"train.batch_size": n},
}
# Cost -> how it is read from a measurement, and how it is written.
COSTS: dict[str, tuple[Callable[[dict[str, Any]], float], Callable[[float], str]]] = {
  "step": (lambda r: r["step_seconds"]["median"], lambda x: f"{x * 1e3:.4g} ms"),
  "peak memory": (lambda r: float(_peak(r)), lambda x: f"{x / 2**20:.0f} MiB"),
  "memory by the compiler": (lambda r: r["compiler_peak_bytes"], lambda x: f"{x / 2**20:.0f} MiB"),
  "compile": (lambda r: r["compile_seconds"], lambda x: f"{x:.1f} s"),
}


def main(flags: Flags) -> None:
  """Measures the sizes of each axis and prints a table for each."""
  from benchmarks import output
  from benchmarks.point import measure

  config = flags.values.get("config", "configs/gpt2_small.py")
  axes = output.names_of(flags, "axes", ",".join(AXES), tuple(AXES))
  base = BASE | _base(flags)
  count, seconds = output.count_of(flags, "sizes", 4, 2), output.count_of(flags, "seconds", 3, 1)
  out = output.folder_of(flags, "runs/costs")
  results: dict[str, Any] = {"command": output.command("benchmarks.costs"), "base": base, "axes": {}}
  sections = []
  for axis in axes:
    sizes = [base[axis] * 2**i // 2 for i in range(count) if base[axis] * 2**i >= 2]
    points = []
    for size in sizes:
      chosen = base | {axis: size}
      overrides = {key: x for name, n in chosen.items() for key, x in AXES[name](n).items()}
      longest = max(base["length"], *sizes) if axis == "length" else base["length"]
      overrides = _defaults(config, longest) | overrides | flags.overrides
      points.append(measure(config, overrides, seconds, out / "logs"))
      print(f"{axis} {size}: {COSTS['step'][1](points[-1]['step_seconds']['median'])} per step", flush=True)
    results["axes"][axis] = {"sizes": sizes, "points": points, "exponents": exponents(sizes, points)}
    columns, rows = table(axis, sizes, points)
    print(f"\n{output.text_table(columns, rows)}\n", flush=True)
    sections.append(_section(axis, sizes, points, columns, rows))
  intro = f"{config}, each size in a process of its own. Not varied: {_text(base)}."
  output.write(out, "costs", "What a training step costs", intro, results, "".join(sections))


def exponents(sizes: list[int], points: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Cost -> the exponent of the fit over all sizes, and those between neighbours."""
  from benchmarks.fit import exponent, local_exponents

  found = {}
  for name, (read, _) in COSTS.items():
    costs = [read(point) for point in points]
    found[name] = {"exponent": _number(exponent(sizes, costs)), "local": [*map(_number, local_exponents(sizes, costs))]}
  return found


def table(axis: str, sizes: list[int], points: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
  """(columns, rows): one row per size, and the exponents below them."""
  rows = [
    [str(size), *(text(read(point)) for read, text in COSTS.values())]
    for size, point in zip(sizes, points, strict=True)
  ]
  fits = exponents(sizes, points)
  rows.append(["exponent", *("-" if x["exponent"] is None else f"{x['exponent']:.2f}" for x in fits.values())])
  last = [x["local"][-1] for x in fits.values()]
  rows.append(["of the last two", *("-" if x is None else f"{x:.2f}" for x in last)])
  return [axis, *COSTS], rows


def _section(
  axis: str, sizes: list[int], points: list[dict[str, Any]], columns: list[str], rows: list[list[str]]
) -> str:
  """The table and a plot per cost, both axes logarithmic."""
  from tfm_jax.runtime.reporting import page
  from tfm_jax.runtime.reporting.chart import Line, line_chart

  cards = ""
  for number, (name, (read, text)) in enumerate(COSTS.items(), 1):
    line = Line("", [(size, read(point)) for size, point in zip(sizes, points, strict=True)], number, marks="filled")
    plot = line_chart(name, [line], x_name=axis, x_log=True, y_log=True, x_ticks=sizes, text=text)
    cards += f'<div class="card"><h2>{name}</h2>{plot}</div>'
  return page.section(f"Against {axis}", "", page.table(columns, rows) + f'<div class="cards">{cards}</div>')


def _base(flags: Flags) -> dict[str, int]:
  from tfm_jax.errors import UserError

  sizes = {}
  for part in flags.values.get("base", "").split(","):
    name, _, number = part.strip().partition(":")
    if part and (name not in AXES or not number.isdigit() or int(number) < 1):
      raise UserError(f"--base: {part!r} is not AXIS:SIZE, with an axis of {', '.join(AXES)}")
    if part:
      sizes[name] = int(number)
  return sizes


def _defaults(config: str, longest: int) -> dict[str, Any]:
  """A small vocabulary, so that the blocks are most of the step, and a table of positions that all lengths share."""
  from tfm_jax.training.config import load

  loaded = load(config)
  positions = max(loaded.model.max_positions, longest) if loaded.model.positions == "learned" else 0
  return {
    "tokenizer.vocab_size": 4096,
    "sharding.strategy": "dp",
    **({"model.max_positions": positions} if positions else {}),
  }


def _peak(result: dict[str, Any]) -> int:
  from benchmarks.point import peak

  return peak(result)


def _number(value: float) -> float | None:
  return None if math.isnan(value) else value


def _text(base: dict[str, int]) -> str:
  return ", ".join(f"{name} {size}" for name, size in base.items())


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
