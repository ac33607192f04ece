"""The ledger of forecasts, `forecasts.jsonl`: what was said of a train step before it ran.

`compare --topology` and `compare.plan` append to it, in their own folder and in the user's cache folder; training reads
the latter, to show what was forecast beside what it measures.
"""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfm_jax.cache import cache_dir

log = logging.getLogger(__name__)

NAME = "forecasts.jsonl"
Entry = dict[str, Any]


def append(entries: list[Entry], folder: Path) -> None:
  """Appends entries to the ledger of a folder and to that of the cache folder. Failing only logs a warning."""
  text = "".join(json.dumps(entry) + "\n" for entry in entries)
  for place in dict.fromkeys((Path(folder), cache_dir())):
    try:
      place.mkdir(parents=True, exist_ok=True)
      with (place / NAME).open("a", encoding="utf-8") as file:
        file.write(text)  # one write of whole lines: other processes may append too
    except OSError as error:
      log.warning("cannot write the ledger %s: %s", place / NAME, error.strerror)


def read(folder: Path | None = None) -> list[Entry]:
  """The entries of a folder's ledger, oldest first, without damaged lines; None: that of the cache folder."""
  try:
    lines = ((folder or cache_dir()) / NAME).read_text(encoding="utf-8").splitlines()
  except OSError:
    return []
  entries = []
  for line in lines:
    with contextlib.suppress(ValueError):
      entry = json.loads(line)
      if isinstance(entry, dict):
        entries.append(entry)
  return entries


def forecast_of(workload: str, mesh: Mapping[str, int], kind: str, microbatches: int) -> Entry | None:
  """The latest forecast of a train step in the cache folder's ledger; None if there is none.

  Args:
    workload: what the step computes: see `training.forecasts.workload`.
    mesh: mesh axis -> size; axes of size 1 do not matter.
    kind: of the devices, as JAX names it.
    microbatches: number of parts of the batch.
  """
  split = lambda sizes: {axis: n for axis, n in sizes.items() if n > 1}
  for entry in reversed(read()):
    same = entry.get("workload") == workload and split(entry.get("mesh") or {}) == split(mesh)
    same = same and kind in entry.get("device_kinds", ()) and entry.get("microbatches") == microbatches
    if same and entry.get("forecast_step_seconds"):
      return entry
  return None
