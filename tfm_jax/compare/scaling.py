"""Weak scaling, forecast: python -m tfm_jax.compare.scaling --config=F.py --strategies=A --topologies=T,U --out=DIR.

--config=FILE.py[:VARIANT]   the experiment
--strategies=fsdp,hsdp       names, as for compare
--topologies=v5p:2x2x4,...   slices of one TPU generation, or hosts of one GPU, from small to large; each is compiled
                             for
--rows=4                     rows of the batch per chip, the same for every slice
--to=4096                    extrapolate beyond the largest slice, up to this number of chips
--out=DIR                    where scaling.json and scaling.html are written
--config.KEY=VALUE           replaces a key of the config
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

if TYPE_CHECKING:
  from tfm_jax.compare.weak_scaling import Point

FLAGS = ("config", "strategies", "topologies", "rows", "to", "out")


def main(flags: Flags) -> None:
  """Runs the forecasts that the flags describe, writes them and prints them."""
  from tfm_jax.compare.forecast import calibration
  from tfm_jax.compare.report.curve import curve_page
  from tfm_jax.compare.weak_scaling import weak_scaling
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
    "calibration": calibration.sentence(topologies[0]),
  }
  text = json.dumps(record | {"points": [dataclasses.asdict(point) for point in points]}, indent=1)
  (out / "scaling.json").write_text(text + "\n")
  (out / "scaling.html").write_text(curve_page(f"Weak scaling of {path}", _facts(record), points))
  for point in sorted(points, key=lambda point: (point.strategy, point.chips)):
    print(f"{point.strategy:16} {point.chips:6} chips  {_line(point)}")
  print(f"{calibration.sentence(topologies[0])}\nwritten: {out / 'scaling.html'}, scaling.json")


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


def _line(point: "Point") -> str:
  """A point as text for the console."""
  if not point.seconds:
    return point.reason or ""
  mark = "  (extrapolated)" if point.extrapolated else ""
  return f"{point.seconds:9.3f} s per step  {point.tokens_per_second_per_chip:9.0f} tokens/s per chip{mark}"


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
