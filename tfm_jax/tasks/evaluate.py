"""Evaluation of a trained model on a file of examples, or a split: predictions, scores and the page of errors."""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfm_jax.data.config import eval_key
from tfm_jax.errors import UserError
from tfm_jax.runtime.agreement import process_index
from tfm_jax.tasks.generation import Generation
from tfm_jax.tasks.glue import GLUE
from tfm_jax.tasks.held_out import evaluate_objective
from tfm_jax.tasks.images.task import ImageTask, without_thumbnail
from tfm_jax.tasks.labelled.task import LabelledTask, Prediction, score_lines
from tfm_jax.tasks.report.comparison import comparison_page
from tfm_jax.tasks.report.page import errors_page
from tfm_jax.tasks.report.terminal import errors_text
from tfm_jax.tasks.scores import signatures
from tfm_jax.tasks.table import CHOICE, LANGUAGE_MODELING, OBJECTIVE, TASKS, find_task
from tfm_jax.tasks.text_to_text import TextToText
from tfm_jax.training.load import Run, load_run

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What a model predicts for a file.

  Attributes:
    form: of the predictions, see `tasks.scores`; "": there is no right and wrong, and no page of errors.
    predictions: one per example, in the order of the file, as in predictions.jsonl.
    scores: by name, with NAME_low and NAME_high; empty if the file has no labels.
    facts: what was evaluated, for the page.
    pictures: PNG files by name.
  """

  form: str
  predictions: list[Prediction]
  scores: dict[str, float]
  facts: dict[str, str]
  pictures: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    if not self.form:
      return "\n".join(score_lines(self.scores))
    return errors_text(self.form, self.predictions, self.scores)

  def _repr_html_(self) -> str:
    return errors_page(self.form, self.predictions, self.scores, self.facts["run"], self.facts)


def evaluate(
  run: Run, data: str = "", task: str = "", batch_size: int = 0, targets: str = "", prefix: str | None = None,
  **options: Any,
) -> Evaluation:  # fmt: skip
  """Evaluates a run on a file of the form of its task. All processes call it.

  Args:
    run: a trained model with the head of the task, see `load_run`.
    data: the file, or a split of the data set in TFDS that the run was trained on; empty: what the run held out, by
      its `data.eval_path` or `data.eval_split`, of pictures also by its `data.eval_fraction`.
    task: name of the task; empty: the run's own. Imported models have none.
    batch_size: rows per batch; 0: as in training.
    targets: of a task that generates, the file with the other side of `data` line by line; empty: `data` is a table, or
      the run's `data.eval_target_path` belongs to its `data.eval_path`.
    prefix: of a task that generates, stands before each text; None: the run's `task.prefix`. A model that was
      pre-trained for several tasks needs one.
    options: of generation, by name: see `decode.options.Options`. The default is greedy.

  Raises:
    UserError: the run has no task or another head, a mistake in the file, or options for a task that does not generate.
  """
  name = task or run.config.task.name
  if not name:
    raise UserError(f"the run was trained on no task: say --task=NAME, one of {', '.join(filter(None, TASKS))}")
  kind = find_task(name)
  if issubclass(kind, ImageTask):
    if unused := next(filter(None, (*options, "targets" * bool(targets), "prefix" * bool(prefix))), ""):
      raise UserError(f"--{unused} is for tasks on text, and --task={name} reads pictures")
    return _of_images(run, kind, name, data, batch_size)
  if not issubclass(kind, LabelledTask):
    raise UserError(f"--task={name} has no examples to evaluate")
  if run.tokenizer is None:
    raise UserError("the run has no tokenizer, so it cannot read text")
  if targets and not data:
    raise UserError(f"--targets={targets} has the other side of which file? Say --data=FILE too")
  if kind is TextToText and not run.config.task.source_task:
    raise UserError(f"--task={name} is for runs that were trained on it: this one has no task.source_task")
  key = "--data" if data else "data.eval_path"
  targets = targets if data else run.config.data.eval_target_path
  data = data or run.config.data.eval_path or run.config.data.eval_split
  if not data:
    raise UserError(f"no file to evaluate: say --data=FILE (the run has no {eval_key(run.config.data)})")
  # A task finds the files to evaluate where it finds held-out ones.
  source = dataclasses.replace(run.config.data, eval_path=data, eval_target_path=targets)
  own = dataclasses.replace(run.config.task, name=name, prefix=run.config.task.prefix if prefix is None else prefix)
  config = dataclasses.replace(run.config, data=source, task=own)
  size, shards = batch_size or config.train.batch_size, run.model.placement.batch_shards
  if size % shards:
    raise UserError(f"{size} rows do not divide into the {shards} parts of the batch: say --batch_size=N")
  if batch_size:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch_size))
  _check_head(kind, config)
  evaluated = kind.of_run(config, run.tokenizer)
  if isinstance(evaluated, Generation):
    if prefix is None and _needs_prefix(run, evaluated):
      raise UserError(
        f"the run was trained on no task, and a model of objective span_corruption writes what a prefix asks for: say "
        f'--prefix="summarize: " or the like for --task={name}, or --prefix= for none'
      )
    evaluated.use(run.symbols, options)
  elif unused := next(iter(options), "targets" if targets else "prefix" if prefix else ""):
    raise UserError(f"--{unused} is for tasks that generate text, and --task={name} does not")
  counts: dict[str, int] = {}
  examples = kind.read(config, kind.named(config, data, targets, key), False, counts)
  for what, count in counts.items():
    if count:
      log.info("%s: %s", what, f"{count:,}")
  predictions = evaluated.predict(run.model, run.params, examples)
  scores = evaluated.scores(predictions)
  facts = {"task": name, "data": data, "examples": f"{len(predictions):,}", "step": f"{run.step:,}"}
  if name in GLUE and scores:
    facts["GLUE"] = ", ".join(f"{metric} {scores[metric]:.4f}" for metric in GLUE[name].metrics if metric in scores)
  facts |= signatures(evaluated.form, predictions)
  return Evaluation(evaluated.form, predictions, scores, {"run": "Errors", **facts})


def _of_images(run: Run, kind: type[ImageTask], name: str, data: str, batch_size: int) -> Evaluation:
  """`evaluate` of a task on pictures."""
  source = run.config.data
  path, key = (data, "--data") if data else (source.eval_path, "data.eval_path")
  held_out = not path  # by a share of data.path
  if held_out:
    path, key = source.path, "data.path"
  if not path:
    raise UserError("no pictures to evaluate: say --data=PATH (the run has no data.eval_path, and no data.path)")
  size = batch_size or run.config.train.batch_size
  train, own = (
    dataclasses.replace(run.config.train, batch_size=size),
    dataclasses.replace(run.config.task, name=name),
  )
  config = dataclasses.replace(run.config, train=train, task=own)
  kind.check_family(config)
  _check_head(kind, config)
  images = kind.opened(config, path, key)
  index = images.split(source.eval_fraction)[1] if held_out else np.arange(len(images))
  if not len(index):
    raise UserError(f"no pictures to evaluate: say --data=PATH (the run held out none of data.path={path})")
  task = kind.of_run(config, run.tokenizer)
  predictions = task.predict(run.model, run.params, images, index)
  scores = task.scores(predictions)
  facts = {"run": "Errors", "task": name, "data": path + " (held out)" * held_out, "step": f"{run.step:,}"}
  return Evaluation(kind.form, predictions, scores, facts, task.pictures(run.model, run.params, images, index))


def _needs_prefix(run: Run, task: LabelledTask) -> bool:
  """Whether a prefix says which task is wanted; tasks that are written as text have their own."""
  config = run.config
  pre_trained = config.objective.name == "span_corruption" and not config.task.name
  return pre_trained and not config.task.prefix and not isinstance(task, TextToText)


def _check_head(kind: type[LabelledTask] | type[ImageTask], config: Any) -> None:
  """Raises UserError if the model has another head than the task needs."""
  needed = kind.head_name
  head = config.model.head
  if head.name != needed:
    raise UserError(f"the run has head.name={head.name}, and task.name={config.task.name} needs {needed}")
  numbers = kind.form == "numbers"
  if needed == "sequence_classification" and numbers != (head.num_labels == 1):
    raise UserError(f"task.name={config.task.name}: the run's head predicts {'classes' if numbers else 'a number'}")
  if kind.form in ("classes", "tags") and not head.labels:
    raise UserError("the run's classes have no names: set head.labels in its config.json, separated by '|'")


def write(out: str, evaluation: Evaluation, against: str = "") -> list[str]:
  """Writes predictions.jsonl, scores.json and errors.html, and with `against` comparison.html; returns their paths.

  Args:
    out: a folder, which is created.
    evaluation: what to write.
    against: the folder or the predictions.jsonl of another evaluation of the same examples.

  Raises:
    UserError: the folder cannot be written, or the other predictions are not of the same examples.
  """
  e = evaluation
  lines = "".join(json.dumps(without_thumbnail(row), ensure_ascii=False) + "\n" for row in e.predictions)
  files: dict[str, str | bytes] = {
    "predictions.jsonl": lines,
    "scores.json": _json(e.scores),
    **e.pictures,
  }
  if e.form:
    files["errors.html"] = errors_page(e.form, e.predictions, e.scores, e.facts["run"], e.facts)
  if against:
    other, names = read_predictions(against), (e.facts["run"], against)
    try:
      files["comparison.html"] = comparison_page(e.form, e.predictions, other, names, e.facts)
    except UserError as error:
      raise UserError(f"--against={against}: {error}") from error
  return write_files(out, files)


def _json(scores: Mapping[str, float]) -> str:
  """The content of scores.json."""
  return json.dumps(scores, indent=2, allow_nan=False) + "\n"


def write_files(out: str, files: Mapping[str, str | bytes]) -> list[str]:
  """Writes files into a folder, each atomically; process 0 does. Raises UserError."""
  folder = Path(out)
  try:
    if process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      for name, text in files.items():
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        os.replace(temporary, folder / name)
  except OSError as error:
    raise UserError(f"cannot write to --out={out}: {error.strerror or error}") from error
  return [str(folder / name) for name in files]


def read_predictions(path: str) -> list[Prediction]:
  """The rows of a predictions.jsonl, or of the one in a folder. Raises UserError."""
  file = Path(path) / "predictions.jsonl" if Path(path).is_dir() else Path(path)
  try:
    # Not `splitlines`, which also splits at other line separators, within texts.
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
  except (OSError, ValueError) as error:
    raise UserError(f"{file} is no predictions.jsonl: {error}") from error


def evaluate_run(
  workdir: str, data: str, task: str, out: str, step: int | None, strategy: str | None, against: str, batch_size: int,
  targets: str = "", prefix: str | None = None, shots: int = 0, examples: str = "", **options: Any,
) -> list[str]:  # fmt: skip
  """The command: evaluates, writes, and returns the lines to print."""
  of_tasks = {"against": against, "targets": targets, "prefix": prefix, **options}
  of_choices = {"shots": shots, "examples": examples}
  given = {LANGUAGE_MODELING: {**of_tasks, **of_choices, "batch_size": batch_size}, CHOICE: of_tasks}
  given[OBJECTIVE] = {name: value for name, value in (of_tasks | of_choices).items() if name != "targets"}
  if unused := next((name for name, value in given.get(task, of_choices).items() if value), ""):
    raise UserError(f"--{unused} does not apply to {f'--task={task}' if task else 'the task of a run'}")
  folder = out or str(Path(workdir) / "evaluation")
  if task == OBJECTIVE:
    scores = evaluate_objective(workdir, data, targets, step, strategy, batch_size)
    return [*score_lines(scores), *(f"written: {path}" for path in write_files(folder, {"scores.json": _json(scores)}))]
  run = load_run(workdir, step=step, strategy=strategy)
  if task in given:
    return _by_likelihood(run, task, data, folder, {**of_choices, "batch_size": batch_size})
  evaluation = evaluate(run, data, task, batch_size, targets, prefix, **options)
  evaluation = dataclasses.replace(evaluation, facts={**evaluation.facts, "run": workdir})
  paths = write(folder, evaluation, against)
  written = [f"written: {path}" for path in paths]
  if not evaluation.scores:
    return [f"{evaluation.facts['data']} has no labels: nothing is scored", *written]
  said = [f"{name}: {text}" for name, text in signatures(evaluation.form, evaluation.predictions).items()]
  return [str(evaluation), *said, *written]


def _by_likelihood(run: Run, task: str, data: str, out: str, settings: Mapping[str, Any]) -> list[str]:
  """Perplexities of a text, or choices."""
  from tfm_jax.tasks.choice import evaluate_choices
  from tfm_jax.tasks.language import evaluate_text

  data = data or run.config.data.eval_path
  if not data:
    raise UserError("no file to evaluate: say --data=FILE (the run has no data.eval_path)")
  given = {name: value for name, value in settings.items() if value}
  scores, rows = evaluate_text(run, data) if task == LANGUAGE_MODELING else evaluate_choices(run, data, **given)
  scores = {name: value for name, value in scores.items() if math.isfinite(value)}
  files = {
    "scores.json": _json(scores),
    "predictions.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
  }
  return [*score_lines(scores), *(f"written: {path}" for path in write_files(out, files))]
