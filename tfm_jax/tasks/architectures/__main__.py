"""Compares architectures on one corpus: python -m tfm_jax.tasks.architectures [--config=FILE.py] [--out=DIR].

Each is pre-trained twice, with one tokenizer: at the parameters, steps and rows of the first one, for which its width
is chosen; and, that wide, for as many steps as take the FLOPs of the first one. Each model is then fine-tuned on every
task. The page has losses, scores, speed, memory, and how the loss depends on the place in the text.

--config=FILE.py       its variant NAME pre-trains an architecture, NAME-TASK fine-tunes it; default:
                       configs/architectures.py
--architectures=A,B    variants of the file; default: encoder,decoder,encoder_decoder,lstm,gru
--tasks=A,B            default: sst2,conll2003
--seeds=N              fine-tunings of each model on each task, with the seeds 0 to N - 1; default: 3
--out=DIR              the folder, with a run directory per run, architectures.json and architectures.html; default:
                       runs/architectures. The same command goes on where it was interrupted
--config.KEY=VALUE     sets a key of the configuration in all runs; of data, train, eval and objective in the
                       pre-training alone
--help[=WORD]          this text; with a word, the keys of that section, or all about that word
"""

import sys
from pathlib import Path

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("config", "architectures", "tasks", "seeds", "out")
ARCHITECTURES = "encoder,decoder,encoder_decoder,lstm,gru"
TASKS = "sst2,conll2003"


def main(flags: Flags) -> None:
  """Trains what is missing, and writes the table."""
  # Imported late: a Python without the packages says so in one line.
  from tfm_jax.tasks.architectures.page import architectures_page, terminal_table, to_json
  from tfm_jax.tasks.architectures.plan import make_plan
  from tfm_jax.tasks.architectures.runs import run_plan
  from tfm_jax.tasks.sweeps.worker import replace

  names = {name: flags.values.get(name, usual) for name, usual in (("architectures", ARCHITECTURES), ("tasks", TASKS))}
  for name, text in names.items():
    values = text.split(",")
    if not all(values) or len(set(values)) < len(values):
      raise UserError(f"--{name}={text}: names, each once, separated by commas, are expected")
  seeds = flags.values.get("seeds", "3")
  if not seeds.isdecimal() or int(seeds) < 1:
    raise UserError(f"--seeds={seeds}: a whole number of at least 1 is expected")
  out = flags.values.get("out", "runs/architectures")
  if "://" in out:
    raise UserError(f"--out={out}: the folder must be on a file system of this host")
  path = flags.values.get("config", "configs/architectures.py")
  architectures, tasks = (text.split(",") for text in names.values())
  plan = make_plan(path, flags.overrides, architectures, tasks, int(seeds))
  folder = Path(out).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  results = run_plan(plan, folder)
  replace(folder / "architectures.json", to_json(plan, results))
  replace(folder / "architectures.html", architectures_page(plan, results))
  print(terminal_table(plan, results))
  print(f"\nwritten: {folder / 'architectures.html'}, architectures.json")


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
