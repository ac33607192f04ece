"""Compares forecasts with published training runs. The error is printed with every forecast.

  python -m tfm_jax.compare.calibration     compiles all runs and writes calibration.csv anew (minutes per run)

--only=VARIANT   compiles this run alone, and keeps the committed figures of the others

The runs are MaxText's own tables and launch scripts (AI-Hypercomputer/maxtext); `configs/decoder.py` has their shapes.
"""

import csv
import dataclasses
import sys

from tfm_jax.runtime.command import Flags, run_command


@dataclasses.dataclass(frozen=True)
class PublishedRun:
  """A variant of configs/decoder.py, its topology, and its published MFU (full attention) or tokens/s per chip."""

  variant: str
  topology: str
  mfu: float = 0.0
  tokens: float = 0.0


RUNS = (
  PublishedRun("v5e_16b", "v5e:16x16", mfu=0.611),
  PublishedRun("v5e_32b", "v5e:16x16", mfu=0.669),
  PublishedRun("v5e_16b_2_slices", "2*v5e:16x16", mfu=0.594),
  PublishedRun("v5e_16b_4_slices", "4*v5e:16x16", mfu=0.591),
  PublishedRun("v5p_32b", "v5p:4x4x4", mfu=0.715),
  PublishedRun("v5p_64b", "v5p:4x4x4", mfu=0.7031),
  PublishedRun("v5p_128b", "v5p:4x4x8", mfu=0.687),
  PublishedRun("v5p_512b", "v5p:8x8x8", mfu=0.640),
  PublishedRun("v5e_128b", "v5e:16x16", mfu=0.561),
  PublishedRun("v6e_8b", "v6e:16x16", tokens=7207.0),
  PublishedRun("v6e_70b", "v6e:16x16", tokens=900.0),
)


def calibrate(run: PublishedRun) -> dict[str, object]:
  """Forecasts one run. Returns its entry of calibration.csv."""
  from tfm_jax.compare.compare import compare
  from tfm_jax.compare.forecast.topology import parse_topology
  from tfm_jax.runtime.chips import CHIPS
  from tfm_jax.training.config import load

  config = load(f"configs/decoder.py:{run.variant}", {})
  result = compare(config, [config.sharding.strategy], topology=run.topology, name=run.variant).strategies[0]
  generation, _, slices = parse_topology(run.topology)
  entry: dict[str, object] = {
    "run": run.variant,
    "topology": run.topology,
    "slices": slices,
    "strategy": result.strategy,
  }
  forecast = result.forecast_step_seconds
  if forecast is None or result.model_flops is None or result.tokens_per_second_per_device is None:
    return entry | {"published": "", "forecast": "", "error": "", "note": result.reason}
  tokens = result.tokens_per_second_per_device * forecast.total
  published = result.model_flops / (run.mfu * CHIPS[generation].peak) if run.mfu else tokens / run.tokens
  error = forecast.total / published - 1
  figures = {"published": f"{published:.3f}", "forecast": f"{forecast.total:.3f}", "error": f"{error:+.3f}"}
  return entry | figures | {"note": ""}


def main(flags: Flags) -> None:
  """Forecasts the runs and writes the table."""
  from tfm_jax.compare.forecast.calibration import TABLE, read

  entries: list[dict[str, object]] = []
  for run in RUNS:
    if flags.values.get("only", run.variant) == run.variant:
      entries.append(calibrate(run))
    else:
      entries += [{**entry} for entry in read() if entry["run"] == run.variant]
    print(*entries[-1:])
  with TABLE.open("w", newline="") as file:
    writer = csv.DictWriter(file, ["run", "topology", "slices", "strategy", "published", "forecast", "error", "note"])
    writer.writeheader()
    writer.writerows(entries)


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, flags=("only",)))
