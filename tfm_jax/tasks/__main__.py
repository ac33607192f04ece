"""Evaluates a run on a file, and shows its errors: python -m tfm_jax.tasks --workdir=RUN --data=FILE --out=DIR.

Writes predictions.jsonl (one object per example, in the file's order), scores.json (with 95 % bootstrap intervals) and
errors.html. A file without labels is predicted, and not scored.

--workdir=DIR                the run: trained on the task, or imported with its head
--data=FILE                  examples in the form of the training file (its ending tells: .tsv, .csv, .jsonl, .conll,
                             .json, also .gz), or pictures for a task on these; of a run on data.source=tfds also a
                             split; default: the run's data.eval_path or data.eval_split, or held-out pictures
--targets=FILE               tasks that generate: line n is the reference of line n of --data; without it, --data is a
                             table or JSON lines with both (or has no references)
--out=DIR                    the folder for the results; default: evaluation in the run's directory
--task=NAME                  the task, for runs that were imported or pre-trained (translation: a run of the objective
                             seq2seq on parallel text); language_modeling: perplexities of a text; choice: the likeliest
                             of several endings, or the last word (HellaSwag, PIQA, COPA, LAMBADA); objective: the loss
                             of pre-training, on all rows that the run held out or on those of --data
--shots=5 --examples=FILE    choice: solved examples before each prompt, from the training set
--prefix="summarize: "       tasks that generate: stands before each text; default: the run's task.prefix;
                             a model that was only pre-trained for several tasks, such as T5, needs one (or --prefix=)
--beams=4 --max_new_tokens=N --length_penalty=1 ...        tasks that generate: how, as for python -m tfm_jax.decode;
                             default: greedily, as many tokens as the run's targets may have
--against=DIR                another evaluation of the same examples: comparison.html shows which each gets right
--step=N                     which checkpoint; default: the best by eval.metric, or else the last
--strategy=NAME              shard the parameters over all devices by this strategy; default: one device
--batch_size=N               rows per batch; default: as in training

python -m tfm_jax.tasks.sweep, .attention, .distillation and .lm_eval (the tasks of lm-eval) have help of their own.
"""

import sys

from tfm_jax.decode.__main__ import OPTIONS as GENERATION
from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command

OPTIONS = tuple(name for name in GENERATION if name not in ("batch_size", "prefix", "samples"))
FLAGS = (
  *("workdir", "data", "targets", "out", "task", "prefix", "shots", "examples", "against", "step", "strategy"),
  "batch_size",
  *OPTIONS,
)


def main(flags: Flags) -> None:
  """Evaluates the run that the flags name."""
  workdir = flags.require("workdir")
  for key in flags.overrides:
    raise UserError(f"--config.{key} does not apply here: the configuration comes with the run")
  step, batch_size = _count(flags, "step"), _count(flags, "batch_size")
  from tfm_jax.decode.command import options_of
  from tfm_jax.tasks.evaluate import evaluate_run

  names = ("data", "targets", "task", "examples", "out", "against")
  values = {name: flags.values.get(name, "") for name in names}
  given = [name for name in OPTIONS if name in flags.values]
  parsed = options_of({name: flags.values[name] for name in given})
  options = {name: getattr(parsed, name) for name in given}
  for line in evaluate_run(
    workdir, **values, prefix=flags.values.get("prefix"), step=step, strategy=flags.values.get("strategy"),
    batch_size=batch_size or 0, shots=_count(flags, "shots") or 0, **options,
  ):  # fmt: skip
    print(line)


def _count(flags: Flags, name: str) -> int | None:
  value = flags.values.get(name)
  if value is not None and not value.isdecimal():
    raise UserError(f"--{name}={value}: a whole number is expected")
  return None if value is None else int(value)


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS))
