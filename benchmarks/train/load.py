"""How busy the machine is with other things than what is measured, from Linux's counters."""

import os
import time
from pathlib import Path
from typing import NamedTuple

LIMIT = 0.05  # share of the cores that others may use in a block that counts


class Snapshot(NamedTuple):
  """Seconds of CPU time, of all cores together, at one moment.

  Attributes:
    busy: what anything has used, and what the host took away (steal).
    total: busy and idle.
    own: what the measured process and its children have used.
  """

  busy: float
  total: float
  own: float


def snapshot(pid: int) -> Snapshot | None:
  """The counters now; None where the system has none. `pid`: the measured process."""
  try:
    first = Path("/proc/stat").read_text().splitlines()[0].split()
  except OSError:
    return None
  # user nice system idle iowait irq softirq steal; guests are part of user.
  values = [int(text) / os.sysconf("SC_CLK_TCK") for text in first[1:9]]
  total = sum(values)
  return Snapshot(total - values[3] - values[4], total, sum(map(_cpu_seconds, _family(pid))))


def others_share(before: Snapshot | None, after: Snapshot | None) -> float | None:
  """The share of all cores that other processes used between two moments; None if it is not known."""
  if before is None or after is None or after.total <= before.total:
    return None
  return max((after.busy - before.busy) - (after.own - before.own), 0.0) / (after.total - before.total)


def is_clean(share: float | None) -> bool:
  """Whether a block counts in which others used this share of the cores."""
  return share is None or share <= LIMIT


def wait_for_quiet(seconds: float) -> None:
  """Waits, at most `seconds`, until others than this process and its workers leave the cores alone for a second."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    before = snapshot(os.getpid())
    time.sleep(1)
    if is_clean(others_share(before, snapshot(os.getpid()))):
      return


def _family(pid: int) -> list[int]:
  """The process and its descendants."""
  parents: dict[int, list[int]] = {}
  for path in Path("/proc").glob("[0-9]*/stat"):
    fields = _stat(path)
    if fields:
      parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
  found = [pid]
  for one in found:
    found += parents.get(one, [])
  return found


def _stat(path: Path) -> list[str]:
  """The fields of a process after its name; empty if it has ended."""
  try:
    return path.read_text().rpartition(")")[2].split()
  except OSError:
    return []


def _cpu_seconds(pid: int) -> float:
  fields = _stat(Path(f"/proc/{pid}/stat"))
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0
