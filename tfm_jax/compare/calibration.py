"""Compares forecasts with published training runs. The error is printed with every forecast.

  python -m tfm_jax.compare.calibration     compiles all runs and writes calibration.csv anew (minutes per run)

--only=A,B   compiles these runs alone, and keeps the committed figures of the others

The runs on TPUs are MaxText's own tables and launch scripts (AI-Hypercomputer/maxtext; `configs/decoder.py` has their
shapes), those on GPUs NVIDIA's (NVIDIA/JAX-Toolbox; `configs/published_gpu.py`).
"""

import csv
import dataclasses
import os
import sys

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command

COLUMNS = ("run", "topology", "slices", "strategy", "year", "published", "forecast", "error", "note")
# The published runs on GPUs let JAX take nearly all of the memory.
ALLOCATED = "0.95"


@dataclasses.dataclass(frozen=True)
class PublishedRun:
  """A variant of a config, its topology, and one published figure.

  Attributes:
    variant: of the config.
    topology: as "v5e:16x16".
    mfu: with full attention.
    tokens: per second and chip.
    rows: per second, of all chips.
    seconds: of a step.
    config: the file.
    year: of publication.
    note: what differs.
  """

  variant: str
  topology: str
  mfu: float = 0.0
  tokens: float = 0.0
  rows: float = 0.0
  seconds: float = 0.0
  config: str = "decoder"
  year: int = 2024
  note: str = ""


_TE = "published with cuDNN attention by Transformer Engine"
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
  *(
    PublishedRun(name, topology, config="published_gpu", **figure)
    for name, topology, figure in (
      ("vit_b16_a100", "a100:8", {"rows": 7200.38, "year": 2023}),
      ("vit_b16_h100", "h100:8", {"rows": 11669.52, "year": 2023}),
      ("vit_g14_8", "a100:8", {"rows": 8 * 34.63, "year": 2023}),
      ("vit_g14_32", "4*a100:8", {"rows": 32 * 30.36, "year": 2023}),
      ("gpt_126m_a100", "8*a100:8", {"rows": 1877.0, "year": 2023}),
      ("gpt_126m_h100", "8*h100:8", {"rows": 4143.0, "year": 2023, "note": _TE}),
      ("gpt_5b_a100", "32*a100:8", {"rows": 465.45, "year": 2023}),
      ("gpt_175b_a100", "32*a100:8", {"rows": 18.29, "year": 2023}),
      ("gpt_175b_h100", "32*h100:8", {"rows": 44.01, "year": 2023, "note": _TE}),
      ("t5_small", "a100:8", {"rows": 5712.0, "year": 2023}),
      ("t5_large", "8*a100:8", {"rows": 4853.0, "year": 2023}),
      ("t5_xl", "18*a100:8", {"rows": 3021.0, "year": 2023}),
      ("llama2_7b", "h100:8", {"seconds": 0.721, "year": 2024, "note": "published with cuDNN attention"}),
    )
  ),
)


def calibrate(run: PublishedRun) -> dict[str, object]:
  """Forecasts one run. Returns its entry of calibration.csv."""
  from tfm_jax.compare.compare import compare
  from tfm_jax.compare.forecast.topology import ALLOCATED_VARIABLE, is_gpu, parse_topology
  from tfm_jax.runtime.chips import CHIPS
  from tfm_jax.training.config import load

  if is_gpu(run.topology):
    os.environ.setdefault(ALLOCATED_VARIABLE, ALLOCATED)
  config = load(f"configs/{run.config}.py:{run.variant}", {})
  result = compare(config, [config.sharding.strategy], topology=run.topology, name=run.variant).strategies[0]
  generation, _, slices = parse_topology(run.topology)
  entry: dict[str, object] = {
    "run": run.variant,
    "topology": run.topology,
    "slices": slices,
    "strategy": result.strategy,
    "year": run.year,
  }
  forecast = result.forecast_step_seconds
  if forecast is None or result.model_flops is None or result.tokens_per_second_per_device is None:
    return entry | {"published": "", "forecast": "", "error": "", "note": result.reason}
  if run.mfu:
    published = result.model_flops / (run.mfu * CHIPS[generation].peak)
  elif run.rows:
    published = config.train.batch_size / run.rows
  else:
    published = run.seconds or result.tokens_per_second_per_device * forecast.total / run.tokens
  error = forecast.total / published - 1
  figures = {"published": f"{published:.3f}", "forecast": f"{forecast.total:.3f}", "error": f"{error:+.3f}"}
  return entry | figures | {"note": run.note}


def main(flags: Flags) -> None:
  """Forecasts the runs and writes the table after each."""
  from tfm_jax.compare.forecast.calibration import TABLE, read

  wanted = flags.values.get("only", "").split(",") if flags.values.get("only") else [run.variant for run in RUNS]
  unknown = set(wanted) - {run.variant for run in RUNS}
  if unknown:
    raise UserError(f"--only={','.join(sorted(unknown))}: the runs are {', '.join(run.variant for run in RUNS)}")
  table: dict[str, dict[str, object]] = {entry["run"]: {**entry} for entry in read()}
  for run in RUNS:
    if run.variant in wanted:
      table[run.variant] = calibrate(run)
      print(table[run.variant])
      entries = [table[other.variant] for other in RUNS if other.variant in table]
      with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(entries)


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, flags=("only",)))
