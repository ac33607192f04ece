"""Forecasts held against published training runs, and the error that this leaves: it is printed with every forecast.

  python -m tfm_jax.compare.calibration     compiles all runs and writes the table anew (minutes a run)

The runs are MaxText's own tables and launch scripts (AI-Hypercomputer/maxtext); `configs/decoder.py` has their shapes.
"""

import csv
import dataclasses
import statistics
import sys
from pathlib import Path

from tfm_jax.compare.topology import parse_topology
from tfm_jax.training.chips import TPUS
from tfm_jax.training.command import Flags, run_command

TABLE = Path(__file__).with_name("calibration.csv")


@dataclasses.dataclass(frozen=True)
class Published:
  """A run: variant of configs/decoder.py, where it ran, and its MFU (attention not halved) or tokens/s a chip."""

  variant: str
  topology: str
  mfu: float = 0.0
  tokens: float = 0.0


RUNS = (
  Published("v5e_16b", "v5e:16x16", mfu=0.611),
  Published("v5e_32b", "v5e:16x16", mfu=0.669),
  Published("v5e_16b_2_slices", "2*v5e:16x16", mfu=0.594),
  Published("v5e_16b_4_slices", "4*v5e:16x16", mfu=0.591),
  Published("v5p_32b", "v5p:4x4x4", mfu=0.715),
  Published("v5p_64b", "v5p:4x4x4", mfu=0.7031),
  Published("v5p_128b", "v5p:4x4x8", mfu=0.687),
  Published("v5p_512b", "v5p:8x8x8", mfu=0.640),
  Published("v6e_70b", "v6e:16x16", tokens=900.0),
)


def read() -> list[dict[str, str]]:
  """The committed table: a row a run with `published` and `forecast` seconds a step and the relative `error`."""
  with TABLE.open(newline="") as file:
    return list(csv.DictReader(file))


def errors() -> list[float]:
  """Relative errors of the runs that compile."""
  return [float(row["error"]) for row in read() if row["error"]]


def sentence() -> str:
  """The error that stands beside every forecast."""
  found = [abs(error) for error in errors()]
  return (
    f"Against {len(found)} published runs these forecasts are off by {statistics.mean(found):.0%} in the mean and "
    f"{max(found):.0%} at most (tfm_jax/compare/calibration.csv); another run may lie further off."
  )


def main(flags: Flags) -> None:
  """Forecasts every run and writes the table."""
  from tfm_jax.compare.compare import compare
  from tfm_jax.training.config import load

  rows: list[dict[str, object]] = []
  for run in RUNS:
    if flags.values.get("only", run.variant) != run.variant:
      rows += [{**row} for row in read() if row["run"] == run.variant]
      continue
    config = load(f"configs/decoder.py:{run.variant}", {})
    row = compare(config, [config.sharding.strategy], topology=run.topology, name=run.variant).strategies[0]
    chip, slices = TPUS[parse_topology(run.topology)[0]], parse_topology(run.topology)[2]
    made: dict[str, object] = {"run": run.variant, "topology": run.topology, "slices": slices, "strategy": row.strategy}
    forecast = row.forecast_step_seconds
    if forecast is None or row.model_flops is None or row.tokens_per_second_per_device is None:
      rows.append(made | {"published": "", "forecast": "", "error": "", "note": row.reason})
    else:
      tokens = row.tokens_per_second_per_device * forecast.total
      published = row.model_flops / (run.mfu * chip.peak) if run.mfu else tokens / run.tokens
      error = forecast.total / published - 1
      rows.append(made | {
        "published": f"{published:.3f}", "forecast": f"{forecast.total:.3f}", "error": f"{error:+.3f}", "note": "",
      })  # fmt: skip
    print(rows[-1])
  with TABLE.open("w", newline="") as file:
    writer = csv.DictWriter(file, ["run", "topology", "slices", "strategy", "published", "forecast", "error", "note"])
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, flags=("only",)))
