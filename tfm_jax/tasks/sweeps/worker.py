"""One run of a sweep, in a process of its own: python -m tfm_jax.tasks.sweeps.worker, with the flags of train.py.

It ends as on SIGTERM, with a checkpoint, when the process at the other end of its standard input ends.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("config", "workdir")
RESULT = "result.json"  # in the work directory, once the run is finished


def main(flags: Flags) -> None:
  """Trains, and writes the configuration and the metrics of the last evaluation into the work directory."""
  from tfm_jax.tasks.table import find_task
  from tfm_jax.training.config import load, to_dict
  from tfm_jax.training.loop import fit

  begin = time.time()
  threading.Thread(target=_end_with_parent, daemon=True).start()
  config, workdir = load(flags.require("config"), flags.overrides), Path(flags.require("workdir"))
  metrics = fit(config, workdir, find_task(config.task.name))
  result = {"config": to_dict(config), "metrics": metrics, "seconds": round(time.time() - begin, 3)}
  replace(workdir / RESULT, json.dumps(result, indent=2) + "\n")


def replace(path: Path, text: str) -> None:
  """Replaces the content of a file atomically."""
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  temporary.write_text(text, encoding="utf-8")
  os.replace(temporary, path)


def _end_with_parent() -> None:
  """Waits for the end of the input, which comes even if the sweep is killed."""
  while os.read(0, 4096):
    pass
  os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
  sys.exit(run_command(main, str(__doc__), FLAGS, keys=config_keys))
