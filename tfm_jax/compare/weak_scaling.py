"""Forecasts of weak scaling: step times of slices that are compiled for, and of larger ones by extrapolation."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfm_jax.compare.compare import compare
from tfm_jax.compare.forecast.topology import chip_count, parse_topology
from tfm_jax.errors import UserError
from tfm_jax.runtime.chips import CHIPS
from tfm_jax.training.config import Config


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
      tokens = None if per_device is None else per_device * CHIPS[generation].per_chip
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
