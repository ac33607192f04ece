"""Numbers, bytes and durations as short text for people."""

import math


def human_count(count: float) -> str:
  """A number in three significant digits: 950, 12.3k, 124M, 1.56B, 2.1T."""
  return _scaled(count, 1000.0, ("", "k", "M", "B", "T"))


def human_bytes(count: float) -> str:
  """A number of bytes in binary units: 512 B, 1.5 KiB, 3.07 MiB, 139 GiB."""
  return _scaled(count, 1024.0, (" B", " KiB", " MiB", " GiB", " TiB"))


def human_seconds(seconds: float) -> str:
  """A duration by its two largest units: 12s, 3m20s, 5h07m, 2d04h."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds}s"
  if seconds < 3600:
    return f"{seconds // 60}m{seconds % 60:02d}s"
  if seconds < 86400:
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
  return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
  """A number with the unit in which it is below the base, in three significant digits."""
  if not math.isfinite(value):
    return f"{value}{units[0]}"
  index = 0
  while index < len(units) - 1 and abs(value) >= base - 0.5:
    value, index = value / base, index + 1
  digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
  text = f"{value:.{digits}f}"
  return (text.rstrip("0").rstrip(".") if "." in text else text) + units[index]
