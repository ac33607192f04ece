"""The command `python -m tfm_jax.tasks.lm_eval`: loads tasks of lm-eval, runs them and writes their results."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from tfm_jax.errors import UserError, nearest
from tfm_jax.tasks.evaluate import write_files
from tfm_jax.tasks.lm_eval.adapter import RunLM
from tfm_jax.training.load import Run, load_run

_RESAMPLES = 1000  # for standard errors that have no formula


def evaluate_run(
  workdir: str,
  names: Sequence[str],
  include_path: str,
  out: str,
  dtype: str,
  strategy: str,
  step: int | None,
  settings: Mapping[str, Any],
) -> list[str]:
  """The command: evaluates, writes, and returns the lines to print. `settings`: of `evaluate`."""
  if include_path and not Path(include_path).is_dir():
    raise UserError(f"--include_path={include_path} is no folder")
  tasks = load_tasks(names, TaskManager(include_path=include_path or None))
  results = evaluate(load_run(workdir, step, strategy or None, dtype or None), tasks, **settings)
  results["config"] |= {"run": workdir}
  return report(results, out or str(Path(workdir) / "lm_eval"))


def load_tasks(names: Sequence[str], manager: TaskManager) -> list[Any]:
  """The tasks and groups of these names, patterns or YAML files. Raises UserError."""
  tasks: list[Any] = []
  for name in names:
    files = [name] if Path(name).is_file() else []
    if not (matches := manager.match_tasks([name]) or files):
      similar = nearest(name, manager.all_tasks)
      hint = f"; did you mean {similar}?" if similar else "; lm-eval ls tasks lists those that come with it"
      raise UserError(f"--tasks={name}: there is no such task of lm-eval{hint}")
    for match in matches:
      try:
        found = manager.load(match)
      except Exception as error:  # a task is code and data of others
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--tasks={match} cannot be loaded: {type(error).__name__}: {reason}") from error
      groups = found["groups"]
      tasks += [groups[match]] if match in groups else found["tasks"].values()
  try:
    manager.load(tasks)
  except ValueError as error:  # a task that is named, and part of a group that is named too
    raise UserError(f"--tasks={','.join(names)}: {error}") from error
  return tasks


def evaluate(
  run: Run,
  tasks: Sequence[Any],
  *,
  batch_size: int = 16,
  num_fewshot: int | None = None,
  limit: float | None = None,
  chat: bool = False,
) -> dict[str, Any]:
  """The results of a run on tasks, as lm-eval gives them. All processes call it.

  Args:
    run: a decoder or an encoder-decoder that predicts tokens.
    tasks: from `load_tasks`.
    batch_size: most rows at once.
    num_fewshot: solved examples before each question; None: the task's.
    limit: the first examples of each task; below 1: a share of them; None: all.
    chat: questions are written by the chat template of the run's tokenizer.

  Raises:
    UserError: a model that generates no text, options that a task has and we do not.
  """
  os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval would fork to resample, which JAX's threads do not allow
  with contextlib.redirect_stdout(sys.stderr):  # its remarks
    results = simple_evaluate(
      model=RunLM(run, batch_size, chat),
      tasks=list(tasks),
      num_fewshot=num_fewshot,
      batch_size=batch_size,
      limit=limit,
      bootstrap_iters=_RESAMPLES,
      apply_chat_template=chat,
      torch_random_seed=None,  # nothing here uses torch
    )
  assert results is not None
  return dict(results)


def report(results: dict[str, Any], out: str) -> list[str]:
  """Writes results.json and samples_TASK.jsonl; returns the table and the paths. Raises UserError."""
  text = lambda value, **form: json.dumps(value, default=handle_non_serializable, ensure_ascii=False, **form) + "\n"
  samples = results.pop("samples", {})
  files = {"results.json": text(results, indent=2)}
  files |= {f"samples_{name}.jsonl": "".join(map(text, rows)) for name, rows in samples.items()}
  return [table(results), *(f"written: {path}" for path in write_files(out, files))]


def table(results: Mapping[str, Any]) -> str:
  """The scores of tasks and groups as text. lm-eval's own function forks, which JAX's threads do not allow."""
  rows = [("task", "version", "shots", "filter", "metric", "value", "standard error")]
  for name, scores in results["results"].items():
    of_task = (name, str(results["versions"].get(name, "")), str(results["n-shot"].get(name, "")))
    for key, value in scores.items():
      metric, comma, chosen = key.partition(",")
      if comma and not metric.endswith("_stderr"):
        error = scores.get(f"{metric}_stderr,{chosen}")
        numbers = (f"{x:.4f}" if isinstance(x, float) else "" for x in (value, error))
        rows.append((*of_task, chosen, metric, *numbers))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
