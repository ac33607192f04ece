"""The errors of forecasts against published training runs, as committed in calibration.csv."""

import csv
import statistics
from pathlib import Path

TABLE = Path(__file__).with_name("calibration.csv")


def read() -> list[dict[str, str]]:
  """The committed table, one entry per run: `published` and `forecast` seconds per step, the relative `error`, ..."""
  with TABLE.open(newline="") as file:
    return list(csv.DictReader(file))


def errors() -> list[float]:
  """Relative errors of the runs that compile."""
  return [float(run["error"]) for run in read() if run["error"]]


def sentence() -> str:
  """The note on accuracy that accompanies every forecast."""
  sizes = [abs(error) for error in errors()]
  return (
    f"Accuracy: forecasts of {len(sizes)} published runs are off by {statistics.mean(sizes):.0%} on average and "
    f"{max(sizes):.0%} at most (tfm_jax/compare/forecast/calibration.csv). Yours may be off by more."
  )
