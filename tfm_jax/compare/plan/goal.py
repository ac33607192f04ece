"""What a plan is asked for: topologies, tokens, days and prices, read from the command line."""

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from tfm_jax.compare.forecast.topology import chip_count, parse_topology
from tfm_jax.errors import UserError

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
SECONDS_PER_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Goal:
  """What to plan for.

  Attributes:
    topologies: to choose from, as "v5e:4x4".
    steps: train steps of the whole run.
    days: in which the run shall end; None: as cheaply as possible.
    prices: chip -> price per chip-hour; empty: costs are chip-hours.
  """

  topologies: tuple[str, ...]
  steps: int
  days: float | None = None
  prices: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def days_of(self, step_seconds: float) -> float:
    """Days of the whole run with steps of so many seconds."""
    return self.steps * step_seconds / SECONDS_PER_DAY

  def chip_hours(self, topology: str, step_seconds: float) -> float:
    """Chip-hours of the whole run."""
    return self.steps * step_seconds * chip_count(topology) / 3600

  def cost(self, topology: str, step_seconds: float) -> float | None:
    """The price of the whole run; None without prices."""
    if not self.prices:
      return None
    return self.chip_hours(topology, step_seconds) * self.prices[parse_topology(topology)[0]]


def parse_count(flag: str, text: str) -> float:
  """The number of "20B": with a suffix K, M, B or T, or none. Raises UserError, which names the flag."""
  match = re.fullmatch(r"(\d+(?:\.\d*)?(?:[eE]\d+)?)([KMBT]?)", text.strip(), re.IGNORECASE)
  number = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
  if not number or not math.isfinite(number):
    raise UserError(f"--{flag}={text} must be a positive number, as 20B, 500M or 1.5T")
  return number


def parse_positive(flag: str, text: str, whole: bool = False) -> float:
  """A positive number. Raises UserError, which names the flag."""
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not (number > 0 and math.isfinite(number)) or (whole and number != int(number)):
    raise UserError(f"--{flag}={text} must be a positive {'whole ' if whole else ''}number")
  return number


def parse_topologies(text: str) -> tuple[str, ...]:
  """The topologies of a list. Raises UserError for an unknown one."""
  topologies = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
  for topology in topologies:
    try:
      chip_count(topology)
    except UserError as error:
      raise UserError(str(error).replace("--topology", "--topologies")) from None
  if not topologies:
    raise UserError("--topologies= is empty: name some, for instance v5e:4x4,v5p:4x4x4")
  return topologies


def read_prices(path: str, topologies: tuple[str, ...]) -> dict[str, float]:
  """Chip -> price per chip-hour, of a JSON object or of CSV lines "chip,price".

  Raises:
    UserError: the file cannot be read, a price is no positive number, or that of a topology's chip is missing.
  """
  try:
    text = Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"--prices={path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
  form = 'write {"v5e": 1.2} or lines "v5e,1.2"'
  try:
    values = json.loads(text) if text.lstrip().startswith("{") else _csv(text)
  except ValueError as error:
    raise UserError(f"--prices={path} is neither JSON nor CSV ({error}): {form}") from None
  prices: dict[str, float] = {}
  for chip, value in values.items():
    try:
      prices[chip] = float(value)
    except (TypeError, ValueError):
      prices[chip] = math.nan
    if not (prices[chip] > 0 and math.isfinite(prices[chip])):
      raise UserError(f"--prices={path}: the price of {chip} is {value!r}, not a positive number: {form}")
  for topology in topologies:
    chip = parse_topology(topology)[0]
    if chip not in prices:
      known = ", ".join(prices) or "none"
      raise UserError(f"--prices={path} has no price for {chip}, the chip of {topology} (it has {known}): add one")
  return prices


def _csv(text: str) -> dict[str, str]:
  """The pairs of CSV lines; a first line of titles is left out. Raises ValueError."""
  lines = [line for line in csv.reader(io.StringIO(text)) if line]
  if any(len(line) != 2 for line in lines):
    raise ValueError("a line has not two columns")
  return {chip.strip(): price.strip() for chip, price in lines if chip.strip().lower() != "chip"}
