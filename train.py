"""Trains a model: python train.py --config=configs/FILE.py [--workdir=DIR] [--config.KEY=VALUE ...].

--config=FILE.py[:VARIANT]   the experiment; those that come along are in configs/
--workdir=DIR                where the run is kept, local or gs://; default: runs/<config name>. The same command goes
                             on where an earlier one ended
--config.KEY=VALUE           replaces a key of the experiment, e.g. --config.train.steps=100 --config.seed=1
--help                       this text, and all keys with their defaults
"""

import sys
from pathlib import Path

from tfm_jax.training.command import Flags, run_command


def main(flags: Flags) -> None:
  """Looks up what the flags say and hands it to `fit`."""
  # Late, so that --help and mistakes in the flags need not wait for JAX.
  from tfm_jax.training.config import load
  from tfm_jax.training.loop import fit

  path = flags.require("config")
  variant = path.replace(".py", "").replace(":", "_")
  workdir = flags.values.get("workdir", str(Path("runs") / Path(variant).name))
  fit(load(path, flags.overrides), workdir)


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, flags=("config", "workdir")))
