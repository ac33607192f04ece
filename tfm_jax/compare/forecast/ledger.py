"""What the ledger of forecasts (`runtime.ledger`) keeps of each forecast."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import time
from typing import Any

from tfm_jax.compare.forecast.topology import chip_of
from tfm_jax.compare.program import with_strategy
from tfm_jax.compare.results import StrategyResult
from tfm_jax.training.config import Config, resolve
from tfm_jax.training.forecasts import workload

_FIGURES = ("microbatches", "status", "reason", "fits", "mfu", "bound_by", "memory_limit", "program_hash")


@functools.cache
def versions() -> dict[str, str]:
  """Package -> version, of the packages that decide a forecast and are installed."""
  found = {}
  for package in ("tfm_jax", "jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cudnn-cu13"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


def entry(config: Config, name: str, topology: str, result: StrategyResult) -> dict[str, Any]:
  """The entry of one forecast.

  Args:
    config: of the run; `result.strategy` replaces its strategy.
    name: of the config, as requested.
    topology: that it was compiled for.
    result: the forecast.
  """
  chip = chip_of(topology)
  ran = resolve(with_strategy(config, result.strategy))
  return {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "config": name,
    "workload": workload(ran),
    "topology": topology,
    "device_kinds": list(chip.kinds),
    "strategy": result.strategy,
    "mesh": result.mesh,
    "remat": ran.model.remat,
    "scan": ran.model.scan,
    **{figure: getattr(result, figure) for figure in _FIGURES},
    "forecast_step_seconds": result.forecast_step_seconds and dataclasses.asdict(result.forecast_step_seconds),
    "memory_bytes": result.memory_bytes and dataclasses.asdict(result.memory_bytes),
    "chip": dataclasses.asdict(chip),
    "versions": versions(),
  }
