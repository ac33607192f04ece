"""One configuration measured in a process of its own, as the other commands need it."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.train.load import is_clean, others_share, snapshot
from benchmarks.train.worker import Worker

ATTEMPTS = 3  # most tries at a measurement that other processes disturb


def measure(
  config: str, overrides: dict[str, Any], seconds: float, logs: Path, batches: Path | None = None
) -> dict[str, Any]:
  """Compiles a step in a new process and times it.

  Args:
    config: the experiment file.
    overrides: keys that differ from it.
    seconds: how long to take steps, at least three of them.
    logs: a folder for the worker's log.
    batches: a file of batches; None: one random batch.

  Returns:
    What the worker says of itself, `step_seconds` (median, low, high), `steps`, `others` and `memory`.
  """
  logs.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=logs, suffix=".log", delete=False) as file:
    log = Path(file.name)
  with Worker("benchmarks.train.ours", log) as worker:
    facts = worker.ask("prepare", config=config, overrides=overrides, dtype="", batches=str(batches) if batches else "")
    first = worker.ask("run", steps=1)["seconds"][0]
    steps = max(3, round(seconds / first))
    for _ in range(ATTEMPTS):
      before = snapshot(worker.pid)
      taken = worker.ask("run", steps=steps)["seconds"]
      others = others_share(before, snapshot(worker.pid))
      if is_clean(others):
        break
    spread = {"median": statistics.median(taken), "low": min(taken), "high": max(taken)}
    memory = worker.ask("memory")
  log.unlink()
  return facts | {"step_seconds": spread, "steps": steps, "others": others, "memory": memory}


def peak(result: dict[str, Any]) -> int:
  """Peak bytes of the device if it has memory of its own, else of the process."""
  memory = result["memory"]
  return int(memory["device_peak_bytes"] or memory["peak_bytes"])
