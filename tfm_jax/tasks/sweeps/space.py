"""What a sweep tries: the points that `get_sweep()` of an experiment file describes.

A point is a dict, key of the configuration -> value. `get_sweep()` returns plain data in one of four forms:

  {"optimizer.learning_rate": [1e-4, 3e-4], "model.dropout": [0.0, 0.1]}      a grid: every combination
  [{"model.num_layers": 2}, {"model.num_layers": 4, "model.dropout": 0.1}]    these points
  {"random": 20, "optimizer.learning_rate": ("log", 1e-5, 1e-3), ...}         random points
  {"optuna": 20, "optimizer.learning_rate": ("log", 1e-5, 1e-3), ...}         points that depend on earlier results

In the last two a key has a list, of which one value is chosen, or a range: ("uniform", low, high), ("log", low, high),
uniform in the logarithm, or ("int", low, high), whole numbers of which `high` is one. `"seed": 1` draws other points.
"""

import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.training.config import check_value, type_of, typed

Values = dict[str, Any]
"""A point: key of the configuration -> value."""

RANGES = ("uniform", "log", "int")
SAMPLED = ("random", "optuna")
_DIGITS = 3  # significant ones of drawn numbers: they stand in names and on command lines
_TRIES = 100  # draws of one point until it differs from all before it
_LONGEST = 120  # characters of a name


@dataclasses.dataclass(frozen=True)
class Dimension:
  """What one key may be.

  Attributes:
    kind: "choice", or the kind of the range.
    values: the choices, or (low, high).
  """

  kind: str
  values: tuple[Any, ...]

  def at(self, share: float) -> Any:
    """The value at a share of the way, 0 to 1 (excluded)."""
    if self.kind == "choice":
      return self.values[int(share * len(self.values))]
    low, high = self.values
    if self.kind == "int":
      return low + int(share * (high - low + 1))
    if self.kind == "log":
      return self.rounded(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
    return self.rounded(low + share * (high - low))

  def rounded(self, value: float) -> float:
    """A number of the range in few digits."""
    low, high = self.values
    return min(max(float(f"{value:.{_DIGITS}g}"), low), high)


@dataclasses.dataclass(frozen=True)
class Space:
  """A sweep as it is written in an experiment file.

  Attributes:
    kind: grid, list, random or optuna.
    points: all points in order; none of an optuna sweep, whose points depend on results.
    dimensions: what each key may be; of a list, what it is anywhere.
    count: number of points.
    seed: of draws.
  """

  kind: str
  points: tuple[Values, ...]
  dimensions: Mapping[str, Dimension]
  count: int
  seed: int = 0


def space_of(sweep: Any, limit: int = 0) -> Space:
  """The space that `get_sweep()` returned.

  Args:
    sweep: plain data, see the module.
    limit: at most so many points; 0: all.

  Raises:
    UserError: another form, an unknown key, a value of the wrong type, an empty list, a point that is there twice.
  """
  if isinstance(sweep, Mapping):
    space = _sampled(sweep) if set(SAMPLED) & set(sweep) else _grid(sweep)
  elif isinstance(sweep, Sequence) and not isinstance(sweep, str) and all(isinstance(p, Mapping) for p in sweep):
    space = _list(sweep)
  else:
    raise UserError(f"get_sweep() must return a dict of lists or a list of dicts, not {_short(sweep)}")
  if not space.dimensions:
    raise UserError('get_sweep() is empty: it needs keys with values, such as {"model.dropout": [0.0, 0.1]}')
  count = min(space.count, limit) if limit else space.count
  return dataclasses.replace(space, points=space.points[:count], count=count)


def _grid(sweep: Mapping[str, Any]) -> Space:
  """Every combination; the last key changes fastest."""
  for key, values in sweep.items():
    if isinstance(values, tuple) and values[:1] and values[0] in RANGES:
      raise UserError(f'get_sweep(): the range of {key} needs "random": N or "optuna": N in the dict; a grid has lists')
  dimensions = {key: _dimension(key, values) for key, values in sweep.items()}
  combinations = itertools.product(*(dimension.values for dimension in dimensions.values()))
  points = tuple(dict(zip(dimensions, values, strict=True)) for values in combinations)
  return Space("grid", points, dimensions, len(points))


def _list(sweep: Sequence[Mapping[str, Any]]) -> Space:
  """Points that are written out."""
  points: list[Values] = []
  for number, point in enumerate(sweep, 1):
    values = {key: _value(key, value) for key, value in point.items()}
    if values in points:
      raise UserError(f"get_sweep(): points {points.index(values) + 1} and {number} are the same")
    points.append(values)
  keys = dict.fromkeys(key for point in points for key in point)
  every = {key: _distinct(point[key] for point in points if key in point) for key in keys}
  return Space("list", tuple(points), {key: Dimension("choice", values) for key, values in every.items()}, len(points))


def _sampled(sweep: Mapping[str, Any]) -> Space:
  """Random or adaptive points."""
  rest = dict(sweep)
  kinds = [kind for kind in SAMPLED if kind in rest]
  if len(kinds) > 1:
    raise UserError(f"get_sweep() has both {' and '.join(map(repr, kinds))}: choose one")
  kind, seed = kinds[0], 0
  count = rest.pop(kind)
  if not _is_whole(count) or count < 1:
    raise UserError(f"get_sweep(): {kind!r} is the number of points, a whole number of at least 1, not {count!r}")
  if _is_whole(rest.get("seed")):  # a list is the key of the configuration
    seed = rest.pop("seed")
  dimensions = {key: _dimension(key, values) for key, values in rest.items()}
  if kind == "optuna" or not dimensions:
    return Space(kind, (), dimensions, count, seed)
  points = _draws(dimensions, count, seed)
  return Space(kind, tuple(points), dimensions, len(points), seed)


def _draws(dimensions: Mapping[str, Dimension], count: int, seed: int) -> list[Values]:
  """Different points. A draw depends on seed, number and key: another count or another key leaves the others alone."""
  points: list[Values] = []
  for number in range(count):
    for attempt in range(_TRIES):
      point = {
        key: dimension.at(np.random.default_rng([seed % 2**32, number, attempt, zlib.crc32(key.encode())]).random())
        for key, dimension in dimensions.items()
      }
      if point not in points:
        points.append(point)
        break
    else:
      break  # there are hardly more points than these
  return points


def _dimension(key: str, values: Any) -> Dimension:
  """What a key may be. Raises UserError."""
  type_of(key)
  if isinstance(values, tuple) and values and values[0] in RANGES:
    return _range(key, values)
  if not isinstance(values, (list, tuple, np.ndarray, range)):
    raise UserError(f"get_sweep(): {key} needs a list of values, not {values!r}: write [{values!r}]")
  choices = [_value(key, value.item() if isinstance(value, np.generic) else value) for value in values]
  if not choices:
    raise UserError(f"get_sweep(): the list of {key} is empty")
  distinct = _distinct(choices)
  if len(distinct) < len(choices):
    twice = next(value for i, value in enumerate(choices) if value in choices[:i])
    raise UserError(f"get_sweep(): {key} has {twice!r} twice")
  return Dimension("choice", distinct)


def _range(key: str, values: tuple[Any, ...]) -> Dimension:
  """A range of numbers. Raises UserError."""
  kind, wanted = values[0], int if values[0] == "int" else float
  if type_of(key) is not wanted:
    other = 'a list, or ("int", low, high)' if type_of(key) is int else "a list"
    raise UserError(f"get_sweep(): {key} is of type {type_of(key).__name__}: it needs {other}, not {values!r}")
  ends = values[1:]
  if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in ends):
    raise UserError(f'get_sweep(): the range of {key} is ("{kind}", low, high), not {values!r}')
  low, high = (_value(key, end) for end in ends)
  if not low < high or (kind == "log" and low <= 0):
    need = "0 < low < high" if kind == "log" else "low < high"
    raise UserError(f"get_sweep(): the range of {key} needs {need}, not {values!r}")
  return Dimension(kind, (low, high))


def _value(key: str, value: Any) -> Any:
  """A value in the type of its key. Raises UserError."""
  value = typed(key, value)
  if value is not None:
    check_value(key, value)
  return value


def _distinct(values: Any) -> tuple[Any, ...]:
  """Each value once, in order."""
  out: list[Any] = []
  for value in values:
    if value not in out:
      out.append(value)
  return tuple(out)


def _is_whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
  """A value for an error."""
  text = repr(value)
  return text if len(text) < 60 else f"{text[:57]}..."


# How points are written.


def value_text(value: Any) -> str:
  """A value as on a command line; `training.config.parse_value` reads it."""
  return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def short_keys(keys: Sequence[str]) -> dict[str, str]:
  """Key -> its last part; the whole key where two share that part, or it is just "name"."""
  last = [key.rpartition(".")[2] for key in keys]
  return {key: name if last.count(name) == 1 and name != "name" else key for key, name in zip(keys, last, strict=True)}


def point_text(values: Values) -> str:
  """A point in words: learning_rate=0.0003 batch_size=32."""
  return " ".join(f"{name}={value_text(values[key])}" for key, name in short_keys(list(values)).items())


def point_name(values: Values) -> str:
  """A point as part of a folder's name: learning_rate=0.0003_batch_size=32. It depends on this point alone."""
  parts = []
  for key, name in short_keys(list(values)).items():
    text = value_text(values[key])
    plain = re.sub(r"[^\w.+-]+", "-", text)[:40]
    parts.append(f"{name}={plain}" if plain == text else f"{name}={plain}-{_hash(text)}")
  name = "_".join(parts)
  return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{_hash(name)}"


def _hash(text: str) -> str:
  return f"{zlib.crc32(text.encode()):08x}"
