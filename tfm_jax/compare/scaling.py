"""Weak scaling, forecast: python -m tfm_jax.compare.scaling --config=F.py --strategies=A --topologies=T,U --out=DIR.

--config=FILE.py[:VARIANT]   the experiment
--strategies=fsdp,hsdp       names, as for compare
--topologies=v5p:2x2x4,...   slices of one TPU generation, from small to large; each is compiled for
--rows=4                     rows of the batch per chip, the same for every slice
--to=4096                    extrapolate beyond the largest slice, up to this number of chips
--out=DIR                    where scaling.json and scaling.html are written
--config.KEY=VALUE           replaces a key of the config
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfm_jax.compare.compare import compare
from tfm_jax.compare.forecast.topology import chip_count, parse_topology
from tfm_jax.compare.report.curve import curve_page
from tfm_jax.errors import UserError
from tfm_jax.runtime.chips import TPUS
from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.config import Config
from tfm_jax.training.help import config_keys

FLAGS = ("config", "strategies", "topologies", "rows", "to", "out")


@dataclasses.dataclass(frozen=True)
class Point:
  """The forecast of one strategy on one number of chips.

  Attributes:
    strategy: its name.
    chips: number of chips.
    seconds: of a step; None if there is no forecast.
    tokens_per_second_per_chip: None if there is no forecast.
    extrapolated: whether it follows from smaller slices; otherwise it was compiled.
    reason: why there is no forecast.
  """

  strategy: str
  chips: int
  seconds: float | None
  tokens_per_second_per_chip: float | None
  extrapolated: bool
  reason: str | None = None


def weak_scaling(
  config: Config, strategies: Sequence[str], topologies: Sequence[str], rows: int, to: int
) -> list[Point]:
  """Forecasts with the same rows per chip on each topology, and beyond the largest up to `to` chips.

  The extrapolated step time is a + b n^(1/d) for n chips on a torus of d dimensions, fitted to at least three compiled
  ones: only the way around the rings grows; what a chip computes and sends does not.

  Args:
    config: the experiment; its batch size is replaced.
    strategies: names.
    topologies: such as "v5p:2x2x4", from small to large.
    rows: of the global batch, per chip.
    to: most chips.

  Raises:
    UserError: topologies of several TPU generations, or none.
  """
  generations = {parse_topology(topology)[0] for topology in topologies}
  if len(generations) != 1:
    raise UserError(f"--topologies are of {', '.join(sorted(generations)) or 'none'}: name slices of one generation")
  (generation,) = generations
  points: list[Point] = []
  for topology in topologies:
    chips = chip_count(topology)
    train = dataclasses.replace(config.train, batch_size=rows * chips)
    comparison = compare(dataclasses.replace(config, train=train), strategies, topology=topology)
    for result in comparison.strategies:
      seconds = result.forecast_step_seconds.total if result.forecast_step_seconds else None
      per_device = result.tokens_per_second_per_device
      tokens = None if per_device is None else per_device * TPUS[generation].per_chip
      points.append(Point(result.strategy, chips, seconds, tokens, False, result.reason))
  dimensions = len(parse_topology(topologies[-1])[1].split("x"))
  for strategy in strategies:
    compiled = [point for point in points if point.strategy == strategy and point.seconds is not None]
    points += _extrapolated(compiled, to, dimensions)
  return points


def _extrapolated(points: list[Point], to: int, dimensions: int) -> list[Point]:
  """Points at doublings of the largest compiled one, see `weak_scaling`; none if fewer than three were compiled."""
  if len(points) < 3:
    return []
  chips = np.array([point.chips for point in points], float)
  seconds = np.array([point.seconds for point in points], float)
  slope, _ = np.polyfit(chips ** (1 / dimensions), seconds, 1)
  out, last = [], points[-1]
  n = 2 * last.chips
  while n <= to:
    # Starts at the last compiled point, and is never faster than it.
    total = seconds[-1] + max(slope, 0.0) * (n ** (1 / dimensions) - last.chips ** (1 / dimensions))
    tokens = (last.tokens_per_second_per_chip or 0.0) * seconds[-1] / total
    out.append(Point(last.strategy, n, float(total), float(tokens), True))
    n *= 2
  return out


def main(flags: Flags) -> None:
  """Runs the forecasts that the flags describe, writes them and prints them."""
  from tfm_jax.compare.forecast import calibration
  from tfm_jax.training.config import load

  path, out = flags.require("config"), Path(flags.require("out"))
  strategies, topologies = (flags.require(name).split(",") for name in ("strategies", "topologies"))
  rows, to = flags.values.get("rows", "4"), flags.values.get("to", "4096")
  if not (rows.isdigit() and to.isdigit() and int(rows)):
    raise UserError(f"--rows={rows} --to={to}: both must be whole numbers")
  if out.exists() and not out.is_dir():
    raise UserError(f"--out={out} is a file, not a folder")
  points = weak_scaling(load(path, flags.overrides), strategies, topologies, int(rows), int(to))
  out.mkdir(parents=True, exist_ok=True)
  record = {
    "config": path,
    "overrides": flags.overrides,
    "command": shlex.join(["python", "-m", "tfm_jax.compare.scaling", *sys.argv[1:]]),
    "topologies": topologies,
    "rows_per_chip": int(rows),
    "calibration": calibration.sentence(),
  }
  text = json.dumps(record | {"points": [dataclasses.asdict(point) for point in points]}, indent=1)
  (out / "scaling.json").write_text(text + "\n")
  (out / "scaling.html").write_text(curve_page(f"Weak scaling of {path}", _facts(record), points))
  for point in sorted(points, key=lambda point: (point.strategy, point.chips)):
    print(f"{point.strategy:16} {point.chips:6} chips  {_line(point)}")
  print(f"{calibration.sentence()}\nwritten: {out / 'scaling.html'}, scaling.json")


def _facts(record: dict[str, Any]) -> dict[str, str]:
  """What the page says about the forecast, as text."""
  overrides = " ".join(f"{key}={value}" for key, value in record["overrides"].items())
  return {
    "config": record["config"],
    "overrides": overrides,
    "compiled for": ", ".join(record["topologies"]),
    "rows per chip": str(record["rows_per_chip"]),
    "calibration": record["calibration"],
    "command": record["command"],
  }


def _line(point: Point) -> str:
  """A point as text for the console."""
  if not point.seconds:
    return point.reason or ""
  mark = "  (extrapolated)" if point.extrapolated else ""
  return f"{point.seconds:9.3f} s per step  {point.tokens_per_second_per_chip:9.0f} tokens/s per chip{mark}"


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
