"""Weak scaling, forecast: python -m tfm_jax.compare.scaling --config=F.py --strategies=A --topologies=T,U --out=DIR.

--config=FILE.py[:VARIANT]   what is trained
--strategies=fsdp,hsdp       names, as for compare
--topologies=v5p:2x2x4,...   slices of one generation, from small to large; each is compiled
--rows=4                     rows of the batch for each chip: the same everywhere
--to=4096                    beyond the largest slice, extrapolated to so many chips
--out=DIR                    takes scaling.json and scaling.html
--config.KEY=VALUE           replaces a key of the config
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfm_jax.compare.compare import compare
from tfm_jax.compare.curve import curve_page
from tfm_jax.compare.topology import parse_topology
from tfm_jax.errors import UserError
from tfm_jax.training.command import Flags, run_command
from tfm_jax.training.config import Config


@dataclasses.dataclass(frozen=True)
class Point:
  """A forecast for a number of chips; `extrapolated`: not compiled. `reason`: why there are no seconds."""

  strategy: str
  chips: int
  seconds: float | None
  tokens_per_second_per_chip: float | None
  extrapolated: bool
  reason: str | None = None


def weak_scaling(
  config: Config, strategies: Sequence[str], topologies: Sequence[str], rows: int, to: int
) -> list[Point]:
  """Forecasts with the same rows a chip on each topology, and beyond the largest up to `to` chips.

  Beyond, the step time is a + b n^(1/d) with n chips on a torus of d dimensions, fitted to the compiled ones (three at
  least): what grows is the way around the rings; what a chip computes and sends does not.

  Raises:
    UserError: topologies of several generations, or too few.
  """
  names = {parse_topology(t)[0] for t in topologies}
  if len(names) != 1:
    raise UserError(f"--topologies are of {', '.join(sorted(names)) or 'none'}: name slices of one generation")
  points: list[Point] = []
  for topology in topologies:
    chips = _chips(topology)
    train = dataclasses.replace(config.train, batch_size=rows * chips)
    made = compare(dataclasses.replace(config, train=train), strategies, topology=topology)
    for row in made.strategies:
      seconds = row.forecast_step_seconds.total if row.forecast_step_seconds else None
      points.append(Point(row.strategy, chips, seconds, row.tokens_per_second_per_device, False, row.reason))
  dimensions = len(parse_topology(topologies[-1])[1].split("x"))
  for strategy in strategies:
    points += _beyond([p for p in points if p.strategy == strategy and p.seconds is not None], to, dimensions)
  return points


def _chips(topology: str) -> int:
  _, shape, slices = parse_topology(topology)
  return slices * int(np.prod([int(n) for n in shape.split("x")]))


def _beyond(points: list[Point], to: int, dimensions: int) -> list[Point]:
  """Extrapolated points at doublings of the largest."""
  if len(points) < 3:
    return []
  chips = np.array([p.chips for p in points], float)
  seconds = np.array([p.seconds for p in points], float)
  slope, _ = np.polyfit(chips ** (1 / dimensions), seconds, 1)
  made, last = [], points[-1]
  n = 2 * last.chips
  while n <= to:
    # From the last compiled point on, and never faster than it.
    total = seconds[-1] + max(slope, 0.0) * (n ** (1 / dimensions) - last.chips ** (1 / dimensions))
    tokens = (last.tokens_per_second_per_chip or 0.0) * seconds[-1] / total
    made.append(Point(last.strategy, n, float(total), float(tokens), True))
    n *= 2
  return made


def main(flags: Flags) -> None:
  """Forecasts what the flags say, writes and prints it."""
  from tfm_jax.compare import calibration
  from tfm_jax.training.config import load

  path, out = flags.require("config"), Path(flags.require("out"))
  strategies, topologies = (flags.require(name).split(",") for name in ("strategies", "topologies"))
  rows, to = flags.values.get("rows", "4"), flags.values.get("to", "4096")
  if not (rows.isdigit() and to.isdigit() and int(rows)):
    raise UserError(f"--rows={rows} --to={to}: whole numbers are wanted")
  points = weak_scaling(load(path, flags.overrides), strategies, topologies, int(rows), int(to))
  out.mkdir(parents=True, exist_ok=True)
  command = shlex.join(["python", "-m", "tfm_jax.compare.scaling", *sys.argv[1:]])
  record = {
    "config": path, "overrides": flags.overrides, "command": command, "topologies": topologies,
    "rows_per_chip": int(rows), "calibration": calibration.sentence(),
  }  # fmt: skip
  text = json.dumps(record | {"points": [dataclasses.asdict(p) for p in points]}, indent=1)
  (out / "scaling.json").write_text(text + "\n")
  (out / "scaling.html").write_text(curve_page(f"Weak scaling of {path}", record, points))
  for p in sorted(points, key=lambda p: (p.strategy, p.chips)):
    said = f"{p.seconds:9.3f} s a step  {p.tokens_per_second_per_chip:9.0f} tokens/s a chip" if p.seconds else p.reason
    print(f"{p.strategy:16} {p.chips:6} chips  {said}{'  (extrapolated)' if p.extrapolated else ''}")
  print(f"{calibration.sentence()}\nwritten: {out / 'scaling.html'}, scaling.json")


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, flags=("config", "strategies", "topologies", "rows", "to", "out")))
