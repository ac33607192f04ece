"""The errors of forecasts against published training runs, as committed in calibration.csv."""

import csv
import statistics
from pathlib import Path

from tfm_jax.compare.forecast.topology import is_gpu

TABLE = Path(__file__).with_name("calibration.csv")


def read() -> list[dict[str, str]]:
  """The committed table, one entry per run: `published` and `forecast` seconds per step, the relative `error`, ..."""
  with TABLE.open(newline="") as file:
    return list(csv.DictReader(file))


def errors(gpus: bool = False) -> dict[str, float]:
  """Run -> relative error, of the runs that compile: those on TPUs, or on GPUs."""
  return {run["run"]: float(run["error"]) for run in read() if run["error"] and is_gpu(run["topology"]) == gpus}


def sentence(topology: str) -> str:
  """The note on accuracy that accompanies every forecast for such devices. Raises UserError."""
  gpus = is_gpu(topology)
  sizes = [abs(error) for error in errors(gpus).values()]
  if not sizes:
    return "Accuracy: no forecast for such devices has been held against a published run."
  years = sorted({run["year"] for run in read() if run["run"] in errors(gpus)})
  age = f" of {years[0]}" + (f" to {years[-1]}" if years[1:] else "") if gpus else ""
  return (
    f"Accuracy: forecasts of {len(sizes)} published runs{age} are off by {statistics.mean(sizes):.0%} on average and "
    f"{max(sizes):.0%} at most (tfm_jax/compare/forecast/calibration.csv). Yours may be off by more."
  )
