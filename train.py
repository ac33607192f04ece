"""Trains a model: python train.py --config=configs/FILE.py [--workdir=DIR] [--config.KEY=VALUE ...].

--config=FILE.py[:VARIANT]   the experiment; those that come along are in configs/
--workdir=DIR                where the run is kept, local or gs://; default: runs/<config name>. The same command goes
                             on where an earlier one ended
--config.KEY=VALUE           replaces a key of the experiment, e.g. --config.train.steps=100 --config.seed=1
--coordinator=HOST:PORT --processes=N --process=I
                             one of several processes: where process 0 is reached, how many there are, which this one
                             is. Not needed on TPU pods, under Slurm and Open MPI, and in Kubernetes jobs
--help                       this text, and all keys with their defaults
"""

import sys
from pathlib import Path

from tfm_jax.training.command import Flags, run_command

FLAGS = ("config", "workdir", "coordinator", "processes", "process")


def main(flags: Flags) -> None:
  """Looks up what the flags say and hands it to `fit`."""
  # Late, so that --help and mistakes in the flags need not wait for JAX.
  from tfm_jax.tasks.table import find_task
  from tfm_jax.training.agreement import together
  from tfm_jax.training.config import load
  from tfm_jax.training.loop import fit
  from tfm_jax.training.processes import join

  path = flags.require("config")
  variant = path.replace(".py", "").replace(":", "_")
  workdir = flags.values.get("workdir", str(Path("runs") / Path(variant).name))
  join(*(flags.values.get(name, "") for name in ("coordinator", "processes", "process")))
  with together():
    config = load(path, flags.overrides)
    task = find_task(config.task.name)
  fit(config, workdir, task)


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS))
