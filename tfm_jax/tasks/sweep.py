"""Trains many variants of an experiment: python -m tfm_jax.tasks.sweep --config=configs/FILE.py [--out=DIR].

--config=FILE.py[:VARIANT]   the experiment file, which has a function get_sweep() beside get_config(). It returns
                             {"optimizer.learning_rate": [1e-4, 3e-4], "model.dropout": [0.0, 0.1]}    every combination
                             [{"model.num_layers": 2}, {"model.num_layers": 4}]                        these points
                             {"random": 20, "optimizer.learning_rate": ("log", 1e-5, 1e-3),
                              "model.dropout": ("uniform", 0.0, 0.3), "train.batch_size": [16, 32]}    random points
                             {"optuna": 20, ...}      the same, each point chosen by the results before it
--out=DIR                    folder of the sweep, with a run directory per run; default: runs/sweeps/<config name>.
                             The same command goes on where it was interrupted: finished runs are skipped
--jobs=N                     runs at a time, each a process of its own, which divide the GPUs of the host; default: 1.
                             On TPUs one at a time, as a process owns all chips
--seeds=N                    runs per point, with the seeds 0 to N - 1; default: one, with the seed of the configuration
--metric=NAME                what points are ranked by; default: of a task accuracy, pearson of numbers, f1 of tags and
                             answers, chrf of texts; otherwise loss
--evaluation=last            whose value counts: that of the last evaluation of a run, or of its best
--max=N                      at most so many points
--config.KEY=VALUE           sets a key of the configuration in all runs
--help[=WORD]                this text; with a word, the keys of that section, or all about that word
"""

import sys
from pathlib import Path

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("config", "out", "jobs", "seeds", "metric", "evaluation", "max")


def main(flags: Flags) -> None:
  """Runs the sweep that the flags name."""
  # Imported late: a Python without the packages says so in one line.
  from tfm_jax.runtime.devices import runs_on_tpus
  from tfm_jax.runtime.experiment_file import evaluate_sweep
  from tfm_jax.tasks.labelled.task import LabelledTask
  from tfm_jax.tasks.scores import MAIN
  from tfm_jax.tasks.sweeps import adaptive
  from tfm_jax.tasks.sweeps.processes import locked, run_all
  from tfm_jax.tasks.sweeps.runs import Folder, Metric
  from tfm_jax.tasks.sweeps.space import space_of
  from tfm_jax.tasks.sweeps.sweep import Sweep
  from tfm_jax.tasks.table import find_task
  from tfm_jax.training.config import load

  path = flags.require("config")
  space = space_of(evaluate_sweep(path), _whole(flags, "max", 0))
  if twice := [key for key in space.dimensions if key in flags.overrides]:
    raise UserError(f"--config.{twice[0]} is given, but get_sweep() varies it: remove one of them")
  seeds = _whole(flags, "seeds", 1)
  if seeds > 1 and ("seed" in space.dimensions or "seed" in flags.overrides):
    raise UserError(f"--seeds={seeds} sets the seed of every run, but the seed is set elsewhere as well: remove one")
  jobs, config = _whole(flags, "jobs", 1), load(path, flags.overrides)
  task = find_task(config.task.name)
  if jobs > 1 and runs_on_tpus():
    raise UserError(f"--jobs={jobs}: one process owns all TPU chips of a host, so a single run fits: leave --jobs out")
  usual = MAIN[task.form_of(config)] if issubclass(task, LabelledTask) else "loss"
  metric = Metric(flags.values.get("metric") or usual, _evaluation(flags))
  if space.kind == "optuna":
    adaptive.check_installed()
  variant = Path(path.replace(".py", "").replace(":", "_")).name
  out = flags.values.get("out") or str(Path("runs") / "sweeps" / variant)
  if "://" in out:
    raise UserError(f"--out={out}: the folder of a sweep must be on a file system of this host")
  with locked(Path(out).expanduser()) as lock:
    folder = Folder(Path(out).expanduser(), path, flags.overrides)
    sweep = Sweep(space, folder, metric, list(range(seeds)) if seeds > 1 else None, jobs)
    try:
      run_all(path, sweep.take, sweep.ended, jobs, lock)
    finally:
      sweep.write()
      print(sweep.summary())
  sweep.check()


def _whole(flags: Flags, name: str, default: int) -> int:
  """A flag that is a number of at least 1. Raises UserError."""
  text = flags.values.get(name)
  if text is None:
    return default
  if not text.isdecimal() or int(text) < 1:
    raise UserError(f"--{name}={text}: a whole number of at least 1 is expected")
  return int(text)


def _evaluation(flags: Flags) -> str:
  """The flag --evaluation. Raises UserError."""
  text = flags.values.get("evaluation", "last")
  if text not in ("last", "best"):
    raise UserError(f"--evaluation={text}: choose last or best")
  return text


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
