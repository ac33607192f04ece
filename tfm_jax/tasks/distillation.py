"""What students keep of a teacher: python -m tfm_jax.tasks.distillation --teacher=RUN --students=RUN,RUN [--out=FILE]

Evaluates all of them on what the first student held out, side by side on one device, and prints a table: parameters,
time of a batch, and scores, each also as a share of the teacher's. Of what is better the lower it is, such as the loss,
the share is the teacher's value divided by the student's.

--teacher=RUN              the run of the teacher
--students=RUN,RUN         runs of students, or of any models that predict the same with the same tokenizer
--out=FILE                 the same as JSON: one object per run
"""

import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command

FLAGS = ("teacher", "students", "out")
_ROUNDS = 9  # timed batches of each model, whose median counts; the models take turns
_LOWER = ("loss", "perplexity", "bits_per_byte", "error", "faults")  # words of scores that are better when lower
_OF_DATA = ("unigram_entropy",)  # says nothing about the model


@dataclasses.dataclass(frozen=True)
class Measured:
  """What was measured of one run.

  Attributes:
    run: its directory.
    parameters: their number.
    seconds: median time of the evaluation of one batch.
    scores: by name, of the held-out data.
  """

  run: str
  parameters: int
  seconds: float
  scores: dict[str, float]

  @property
  def values(self) -> dict[str, float]:
    """All numbers by name."""
    return {"parameters": self.parameters, "seconds_per_batch": self.seconds, **self.scores}

  def shares(self, teacher: "Measured") -> dict[str, float]:
    """Name -> share of the teacher's number; those that have none are left out."""
    pairs = {name: (value, teacher.values[name]) for name, value in self.values.items() if name in teacher.values}
    pairs = {name: pair[::-1] if lower_is_better(name) else pair for name, pair in pairs.items()}
    return {name: value / whole for name, (value, whole) in pairs.items() if value >= 0 and whole > 0}


def lower_is_better(score: str) -> bool:
  """Whether a score is better the lower it is."""
  return any(word in score for word in _LOWER)


def measure(teacher: str, students: Sequence[str]) -> list[Measured]:
  """The teacher and the students, on the held-out data of the first student.

  Raises:
    UserError: a run cannot be loaded, it has another tokenizer or predicts something else, or nothing is held out.
  """
  import jax

  from tfm_jax.runtime.run_directory import RunDirectory
  from tfm_jax.tasks.table import find_task
  from tfm_jax.training.compiled.program import Program
  from tfm_jax.training.evaluation import evaluate_stream
  from tfm_jax.training.load import load_run
  from tfm_jax.training.optimization.lora import AdapterConfig
  from tfm_jax.training.task import Generates
  from tfm_jax.training.teacher import check_alike

  paths = [teacher, *students]
  runs = [load_run(path) for path in paths]
  student = runs[1]
  config = dataclasses.replace(student.config, adapter=AdapterConfig())  # loaded models have adapters merged
  task = find_task(config.task.name)(config, RunDirectory(students[0]).stored_tokenizer())
  prints = [run.tokenizer and run.tokenizer.fingerprint for run in runs]
  if other := next((path for path, fingerprint in zip(paths, prints, strict=True) if fingerprint != prints[1]), ""):
    raise UserError(f"{other} has another tokenizer than {students[0]}: both must read the same ids")
  for path, run in zip(paths, runs, strict=True):
    if path != students[0]:
      check_alike(path, run.model, student.model, task.fields)
  split, stream = next(iter(task.eval_streams.items()), ("", None))
  if stream is None:
    raise UserError(f"{students[0]} has no held-out data to evaluate on: set data.eval_path")
  steps, scores = [], []
  for run in runs:
    program = Program(config, run.model, task.fields, task.loss(run.model))
    eval_step = (program.prediction_step if task.predicts else program.eval_step)(1)
    found = evaluate_stream(program, eval_step, run.params, task, split, stream, None)
    if not found:
      raise UserError(f"{students[0]}: there is nothing to predict in its held-out data")
    if isinstance(task, Generates):
      found |= task.generated_scores(run.model, run.params)
    scores.append({name: value for name, value in found.items() if name not in _OF_DATA})
    steps.append(functools.partial(eval_step, run.params, program.put(next(stream(None)))))
  seconds: list[list[float]] = [[] for _ in runs]
  for _ in range(_ROUNDS):
    for step, times in zip(steps, seconds, strict=True):
      begin = time.perf_counter()
      jax.block_until_ready(step())
      times.append(time.perf_counter() - begin)
  return [
    Measured(path, run.model.parameter_count(), statistics.median(times), found)
    for path, run, times, found in zip(paths, runs, seconds, scores, strict=True)
  ]


def table(measured: Sequence[Measured]) -> str:
  """A Markdown table with a line per number and a column per run, the teacher first."""
  teacher, *students = measured
  shares = [student.shares(teacher) for student in students]
  rows = [["", *(one.run for one in measured)]]
  for name in teacher.values:
    cells = [_number(name, one.values[name]) if name in one.values else "" for one in measured]
    kept = ["", *(f" ({share[name]:.1%})" if name in share else "" for share in shares)]
    rows.append([name.replace("_", " "), *(cell + share for cell, share in zip(cells, kept, strict=True))])
  widths = [max(len(row[column]) for row in rows) for column in range(len(measured) + 1)]
  lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
  return "\n".join([lines[0], "| " + " | ".join("-" * max(width, 3) for width in widths) + " |", *lines[1:]])


def _number(name: str, value: float) -> str:
  return f"{value:,}" if name == "parameters" else f"{value:.4g}"


def main(flags: Flags) -> None:
  """Prints the table, and writes the file."""
  for key in flags.overrides:
    raise UserError(f"--config.{key} does not apply here: the configuration comes with the runs")
  teacher, students = flags.require("teacher"), [path for path in flags.require("students").split(",") if path]
  out = flags.values.get("out", "")
  if out and not Path(out).absolute().parent.is_dir():
    raise UserError(f"--out={out}: {Path(out).parent} is no folder")
  measured = measure(teacher, students)
  print(table(measured))
  if out:
    objects: list[dict[str, Any]] = [dataclasses.asdict(one) | {"shares": one.shares(measured[0])} for one in measured]
    temporary = Path(f"{out}.{os.getpid()}")
    temporary.write_text(json.dumps(objects, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, out)
    print(f"written: {out}")


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS))
