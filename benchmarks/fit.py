"""How a cost grows: the exponent of a power law, fitted on logarithms."""

import itertools
import math
from collections.abc import Sequence


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
  """p of cost = c * size^p, by least squares on the logarithms; NaN for fewer than two sizes."""
  points = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True) if size > 0 and cost > 0]
  if len({x for x, _ in points}) < 2:
    return math.nan
  x_mean, y_mean = (sum(values) / len(points) for values in zip(*points, strict=True))
  spread = sum((x - x_mean) ** 2 for x, _ in points)
  return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread


def local_exponents(sizes: Sequence[float], costs: Sequence[float]) -> list[float]:
  """The exponent between each size and the next: where it changes, another part of the cost has become the largest."""
  pairs = list(zip(sizes, costs, strict=True))
  return [exponent((a, b), (x, y)) for (a, x), (b, y) in itertools.pairwise(pairs)]
