"""Evaluates a run on tasks of lm-eval: python -m tfm_jax.tasks.lm_eval --workdir=RUN --tasks=hellaswag,piqa

The model answers in this process, on its devices, without torch. Needs the extra lm-eval: pip install -e '.[lm-eval]'.
Writes results.json and samples_TASK.jsonl in the form of lm-eval, and prints the scores.

--workdir=DIR                the run: a decoder or an encoder-decoder that predicts tokens, trained here or imported
--tasks=NAME,NAME            tasks, groups, tags or patterns of lm-eval, and YAML files; most download their data
--include_path=DIR           a folder with tasks of your own
--num_fewshot=N              solved examples before each question; default: the task's
--limit=N                    the first N examples of each task; below 1: this share of them
--apply_chat_template        questions are written by the chat template of the run's tokenizer
--out=DIR                    the folder for the results; default: lm_eval in the run's directory
--batch_size=16              most rows at once
--dtype=float32              the compute dtype; default: the run's
--step=N                     which checkpoint; default: the best by eval.metric, or else the last
--strategy=NAME              shard the parameters over all devices by this strategy; default: one device
"""

import importlib.util
import sys

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command

FLAGS = (
  *("workdir", "tasks", "include_path", "num_fewshot", "limit", "out", "batch_size"),
  *("dtype", "step", "strategy"),
)
SWITCHES = ("apply_chat_template",)


def main(flags: Flags) -> None:
  """Evaluates the run that the flags name."""
  workdir, tasks = flags.require("workdir"), flags.require("tasks")
  for key in flags.overrides:
    raise UserError(f"--config.{key} does not apply here: the configuration comes with the run")
  batch_size, num_fewshot, step = (_whole(flags, name) for name in ("batch_size", "num_fewshot", "step"))
  limit = _limit(flags)
  if importlib.util.find_spec("lm_eval") is None:
    raise UserError("the package lm-eval is not installed: pip install -e '.[lm-eval]'")
  from tfm_jax.tasks.lm_eval.command import evaluate_run

  texts = {name: flags.values.get(name, "") for name in ("include_path", "out", "dtype", "strategy")}
  settings = {"batch_size": 16 if batch_size is None else batch_size, "num_fewshot": num_fewshot, "limit": limit}
  settings["chat"] = "apply_chat_template" in flags.values
  for line in evaluate_run(workdir, tasks.split(","), **texts, step=step, settings=settings):
    print(line)


def _whole(flags: Flags, name: str) -> int | None:
  text = flags.values.get(name)
  if text is not None and (not text.isdecimal() or (name == "batch_size" and not int(text))):
    raise UserError(f"--{name}={text}: a whole number is expected")
  return None if text is None else int(text)


def _limit(flags: Flags) -> float | None:
  text = flags.values.get("limit")
  try:
    value = None if text is None else float(text)
  except ValueError:
    value = 0.0
  if value is not None and not 0 < value < float("inf"):
    raise UserError(f"--limit={text}: a number of examples or a share below 1 is expected")
  return value


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, switches=SWITCHES))
