"""Evaluates a run on a file, and shows its errors: python -m tfm_jax.tasks --workdir=RUN --data=FILE --out=DIR.

Writes predictions.jsonl (one object per example, in the file's order), scores.json (with 95 % bootstrap intervals) and
errors.html. A file without labels is predicted, and not scored.

--workdir=DIR                the run: trained on the task, or imported with its head
--data=FILE                  examples in the form of the training file (its ending tells: .tsv, .csv, .jsonl, .conll,
                             .json, also .gz); default: the run's data.eval_path
--out=DIR                    the folder for the results; default: evaluation in the run's directory
--task=NAME                  the task, for runs that were imported; language_modeling: perplexities of a text
--against=DIR                another evaluation of the same examples: comparison.html shows which each gets right
--step=N                     which checkpoint; default: the best by eval.metric, or else the last
--strategy=NAME              shard the parameters over all devices by this strategy; default: one device
--batch_size=N               rows per batch; default: as in training

python -m tfm_jax.tasks.sweep and python -m tfm_jax.tasks.attention have help of their own.
"""

import sys

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command

FLAGS = ("workdir", "data", "out", "task", "against", "step", "strategy", "batch_size")


def main(flags: Flags) -> None:
  """Evaluates the run that the flags name."""
  workdir = flags.require("workdir")
  for key in flags.overrides:
    raise UserError(f"--config.{key} does not apply here: the configuration comes with the run")
  step, batch_size = _count(flags, "step"), _count(flags, "batch_size")
  from tfm_jax.tasks.evaluate import evaluate_run

  values = {name: flags.values.get(name, "") for name in ("data", "task", "out", "against")}
  for line in evaluate_run(
    workdir, **values, step=step, strategy=flags.values.get("strategy"), batch_size=batch_size or 0
  ):
    print(line)


def _count(flags: Flags, name: str) -> int | None:
  value = flags.values.get(name)
  if value is not None and not value.isdecimal():
    raise UserError(f"--{name}={value}: a whole number is expected")
  return None if value is None else int(value)


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS))
