"""Trains a model: python train.py --config=configs/FILE.py [--workdir=DIR] [--config.KEY=VALUE ...].

--config=FILE.py[:VARIANT]   the experiment file, such as configs/bert_base.py
--workdir=DIR                directory of the run, local or gs://; default: runs/<config name>. The same command resumes
                             an interrupted run
--config.KEY=VALUE           sets a key of the configuration, as --config.train.steps=100 --config.seed=1
--coordinator=HOST:PORT --processes=N --process=I
                             one of several processes: the address of process 0, the number of processes, and the
                             index of this one. TPU pods, Slurm, Open MPI and Kubernetes jobs need none of these
--help[=WORD]                this text; with a word, the keys of that section, or all about that word
"""

import sys
from pathlib import Path

from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("config", "workdir", "coordinator", "processes", "process")


def main(flags: Flags) -> None:
  """Loads the configuration and the task that the flags name, and trains."""
  # Imported late: errors in the flags need not wait for JAX.
  from tfm_jax.runtime.agreement import together
  from tfm_jax.runtime.processes import join
  from tfm_jax.tasks.table import find_task
  from tfm_jax.training.config import load
  from tfm_jax.training.loop import fit

  path = flags.require("config")
  variant = path.replace(".py", "").replace(":", "_")
  workdir = flags.values.get("workdir", str(Path("runs") / Path(variant).name))
  join(*(flags.values.get(name, "") for name in ("coordinator", "processes", "process")))
  with together():
    config = load(path, flags.overrides)
    task = find_task(config.task.name)
  fit(config, workdir, task)


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
