"""The start of a run: checks against earlier starts and the other processes, and the record of this start."""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import logging
import math
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Sharding

from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.objectives.objective import check_arrays
from tfm_jax.runtime.agreement import differing, together
from tfm_jax.runtime.interruption import Interrupted, ended_at_once
from tfm_jax.runtime.reporting.parameter_table import ParameterRow, parameter_table
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.runtime.trees import flat as flat_tree
from tfm_jax.text.tokenizers.table import load_tokenizer
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.compiled.lengths import at_length, batch_length, check_lengths
from tfm_jax.training.compiled.program import Program
from tfm_jax.training.config import Config, changed_keys, flat, from_stored, to_dict
from tfm_jax.training.optimization.lora import axes_of
from tfm_jax.training.optimization.optimizer import schedule
from tfm_jax.training.task import Task, TextTask

log = logging.getLogger(__name__)

Rows = np.ndarray | None


@contextlib.contextmanager
def cleanup_on_error(run: RunDirectory) -> Iterator[None]:
  """Removes a new work directory if a UserError or a signal ends the block before it holds a run."""
  new = run.writes and not run.path.exists()
  try:
    yield
  except (UserError, Interrupted):
    if new and not run.exists and run.path.exists():
      run.path.rmtree()
    raise


@contextlib.contextmanager
def held(run: RunDirectory) -> Iterator[None]:
  """The run directory, created and locked by process 0, and checked to be visible to all. Raises UserError.

  Until training begins, a signal ends the block at once: see `ended_at_once`.
  """
  with cleanup_on_error(run), contextlib.ExitStack() as stack:
    with together():
      stack.enter_context(run.locked())
    with together():
      run.check_shared()
    with ended_at_once(lambda: last_checkpoint(run)):
      yield


def last_checkpoint(run: RunDirectory) -> int | None:
  """The step of the last complete checkpoint; None if there is none."""
  if not run.checkpoints.exists():
    return None
  with Checkpoints(run.checkpoints) as checkpoints:
    return checkpoints.latest()


def check_same_config(config: Config) -> None:
  """UserError if process 0 has another configuration or other versions. All processes must call it."""
  versions = {"the version of jax": jax.__version__, "the version of tfm_jax": _version("tfm_jax")}
  names = differing(versions | flat(to_dict(config)))
  if names:
    raise UserError(f"not as on process 0: {', '.join(names)}; start all processes with the same command")


def check_same_data(task: Task) -> None:
  """UserError if process 0 has other data or another tokenizer. All processes must call it."""
  names = differing(task.fingerprints)
  if names:
    raise UserError(
      f"not as on process 0: the {' and the '.join(names)}; all hosts need the same files at data.path and "
      f"tokenizer.path, and the same installed packages"
    )


def start_anew(run: RunDirectory) -> None:
  """Removes a run that ended before its first checkpoint: there is nothing to resume, and its settings or its data may
  have been corrected since."""
  if run.writes and run.exists and not imported(run):
    with Checkpoints(run.checkpoints) as checkpoints:
      if not checkpoints.steps():
        log.info("the run in %s ended before its first checkpoint: it starts anew", run.path)
        run.forget()


def imported(run: RunDirectory) -> bool:
  """Whether the directory holds imported parameters."""
  return any("imported" in entry for entry in run.starts())


def check_resumable(run: RunDirectory, config: Config) -> Config:
  """The configuration to resume with. Raises UserError, which names the keys, if the stored one differs."""
  if run.exists:
    if imported(run):
      raise UserError(
        f"{run.path} holds imported parameters, not a run to resume: choose another --workdir, and start from them "
        f"with --config.init_from={run.path}"
      )
    # Keys newer than the run have their defaults.
    former = from_stored(run.read_config())
    if config.optimizer.warmup_fraction and not config.optimizer.warmup_steps:
      # The warm-up stays as it was resolved at the start of the run, however long the run becomes.
      warmup = dataclasses.replace(config.optimizer, warmup_steps=former.optimizer.warmup_steps)
      config = dataclasses.replace(config, optimizer=warmup)
    stored, requested = to_dict(former), to_dict(config)
    changed = changed_keys(stored, requested)
    if bool(former.distill.teacher) != bool(config.distill.teacher):
      changed = sorted([*changed, "distill.teacher"])
    if changed == ["data.source"] and stored["data"]["source"] == "embedded" and config.data.path:
      # Earlier releases did not read data.path with data.source=embedded.
      log.warning("this run was started on the embedded corpus and resumes on it: data.path is ignored")
      return dataclasses.replace(config, data=dataclasses.replace(config.data, source="embedded"))
    if changed:
      raise UserError(
        f"{run.path} holds a run with other settings of {', '.join(changed)}: set them back, or choose --workdir"
      )
  return config


def check_teacher_reads(config: Config, task: Task) -> None:
  """Raises UserError if the teacher has another tokenizer than the task."""
  folder = RunDirectory(config.distill.teacher).stored_tokenizer() if config.distill.teacher else None
  if folder and task.tokenizer and load_tokenizer(folder).fingerprint != task.tokenizer.fingerprint:
    raise UserError(
      f"distill.teacher={config.distill.teacher} has another tokenizer than the student, so it would read other text: "
      f"set tokenizer.path={config.distill.teacher}/tokenizer"
    )


def check_fingerprints(starts: list[dict[str, Any]], task: Task, run: RunDirectory) -> None:
  """Raises UserError if the data or the tokenizer has changed since the run was started.

  Up to version 0.1, runs identified their files by path, size and time: the task's `former_fingerprints`. Each start
  has stored the fingerprint as it was computed at the time.
  """
  former = getattr(task, "former_fingerprints", {})
  for name, value in task.fingerprints.items():
    stored = {entry["fingerprints"].get(name) for entry in starts}
    if starts and stored.isdisjoint({value, former.get(name, value)}):
      raise UserError(
        f"the {name} of the run in {run.path} has changed since it was started, so it cannot be resumed: "
        f"restore it, or choose another --workdir"
      )


def resolve_steps(config: Config, task: Task) -> Config:
  """The configuration with the numbers that follow from the rows of the task: `train.steps` and the warm-up.

  Raises:
    UserError: `train.epochs` is set, and the task does not say how many rows an epoch has.
  """
  train, optimizer = config.train, config.optimizer
  if train.epochs:
    if not task.num_rows:
      raise UserError(
        f"train.epochs={train.epochs:g} has no meaning for {type(task).__name__}, which has no epochs: set train.steps"
      )
    train = dataclasses.replace(train, steps=math.ceil(train.epochs * task.num_rows / train.batch_size))
    log.info(
      "train.epochs=%g of %s rows, in batches of %d: train.steps=%d",
      train.epochs,
      f"{task.num_rows:,}",
      train.batch_size,
      train.steps,
    )
  if optimizer.warmup_fraction and not optimizer.warmup_steps:
    optimizer = dataclasses.replace(optimizer, warmup_steps=round(optimizer.warmup_fraction * train.steps))
    log.info(
      "optimizer.warmup_fraction=%g: optimizer.warmup_steps=%d", optimizer.warmup_fraction, optimizer.warmup_steps
    )
  return dataclasses.replace(config, train=train, optimizer=optimizer)


def stored_tokenizer(run: RunDirectory, config: Config) -> epath.Path | None:
  """The directory of the tokenizer to use: the run's own, or that of the run it starts from, or of its teacher; None:
  train a new one."""
  if run.exists:
    return run.stored_tokenizer()
  sources = {
    "branch_from": config.branch_from,
    "init_from": config.init_from,
    "distill.teacher": config.distill.teacher,
  }
  key, path = next((entry for entry in sources.items() if entry[1]), ("", ""))
  if path and (config.branch_from or not config.tokenizer.path):
    source = RunDirectory(path)
    if not source.exists:
      raise UserError(f"{key}={path} is not a run directory: it has no config.json")
    return source.stored_tokenizer()
  return None


def branch_point(config: Config) -> tuple[RunDirectory, int]:
  """The run and the step of `branch_from` that a new run goes on from. Logs a jump of the learning rate. Raises
  UserError if there is no such checkpoint, or nothing to train after it."""
  source = RunDirectory(config.branch_from)
  if not source.exists:
    raise UserError(f"branch_from={config.branch_from} is not a run directory: it has no config.json")
  with Checkpoints(source.checkpoints) as checkpoints:
    step = config.branch_at or checkpoints.latest()
    if step is None or step not in checkpoints.steps():
      stored = ", ".join(map(str, checkpoints.steps())) or "none"
      raise UserError(f"branch_from={config.branch_from} has no checkpoint of branch_at={step} (it has {stored})")
  if step >= config.train.steps:
    raise UserError(f"train.steps={config.train.steps} counts from the start of branch_from: set more than {step}")
  former = from_stored(source.read_config())
  had, has = (float(schedule(c.optimizer, c.train.steps)(jnp.int32(step - 1))) for c in (former, config))
  # Of a run that was made longer since it was started, its records know the rate.
  had = next((r["learning_rate"] for r in source.read_metrics() if r["step"] == step and r.get("learning_rate")), had)
  if abs(has - had) > 0.01 * max(has, had):
    decay, left = config.optimizer.decay_steps, config.train.steps - step
    why = f": optimizer.decay_steps={decay} is more than the {left} steps left" if decay > left else ""
    log.warning("the learning rate jumps at step %d, from %.3g to %.3g%s", step, had, has, why)
  return source, step


def starts_to_repeat(source: RunDirectory, config: Config) -> list[dict[str, Any]]:
  """The starts of the source of a branch, whose number of microbatches it keeps; none if its steps may need other
  memory."""
  stored = from_stored(source.read_config())
  needs = lambda c: (c.train.batch_size, c.model, c.data.seq_len, c.data.target_len, c.sharding)
  return source.starts() if needs(stored) == needs(config) else []


def rows_here(sharding: Sharding, batch_size: int) -> np.ndarray | None:
  """The indices of the rows of the global batch that the devices of this process hold, ascending; None: all."""
  if jax.process_count() == 1:
    return None
  indices = sharding.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices if index is not None]))


def culprit_of(config: Config, task: Task) -> str:
  """What made the batches, for messages."""
  if not config.task.name and not isinstance(task, TextTask):
    return type(task).__name__  # `fit` was called from Python
  return f"task.name={config.task.name}" if config.task.name else f"objective.name={config.objective.name}"


def check_batches(config: Config, task: Task, step: int, size: int, rows: Rows, eval_rows: Rows) -> None:
  """Raises UserError if the next batch, or the first of a held-out stream, is not as the task declares it.

  Args:
    config: the resolved configuration.
    task: what makes the batches.
    step: that of the next batch.
    size: rows of that batch.
    rows, eval_rows: those of it, and of a held-out batch, that this process has; None: all.
  """
  culprit = culprit_of(config, task)
  count = size if rows is None else len(rows)
  check_lengths(task.lengths, task.fields, culprit)

  def check(batch: Any, count: int | None, culprit: str) -> None:
    fields = task.fields
    if isinstance(batch, Mapping) and task.lengths:
      fields = at_length(fields, batch_length(batch, fields, task.lengths, culprit), task.lengths[-1])
    check_arrays(batch, fields, count, culprit)

  _, batch = next(task.train_batches(step, step + 1, rows))
  check(batch, count, culprit)
  for split, stream in task.eval_streams.items():
    for batch in itertools.islice(stream(eval_rows), 1):
      check(batch, None, f"{culprit}, {split}")


def parameter_lines(model: Model, params: Any) -> str:
  """The table of parameters that a run logs when it starts, and their exact number."""

  def row(path: tuple, leaf: jax.ShapeDtypeStruct) -> ParameterRow:
    assert leaf.sharding is not None
    shard = leaf.sharding.shard_shape(leaf.shape)
    name = "/".join(key.key for key in path)
    return ParameterRow(name, leaf.shape, axes_of(name).names, shard, math.prod(shard) * leaf.dtype.itemsize)

  rows = [row(path, leaf) for path, leaf in jax.tree.leaves_with_path(params)]
  active = f", of which a token uses {model.parameter_count(active=True):,}" if model.config.experts.count else ""
  count = f"{model.parameter_count():,} parameters{active}, without the padding of the vocabulary"
  return f"{parameter_table(rows)}\n{count}"


def trained_line(program: Program) -> str:
  """How many of the parameters are trained, and the size of the optimizer state."""
  sizes = {path: math.prod(leaf.shape) for path, leaf in flat_tree(program.shapes).items()}
  trained = sum(size for path, size in sizes.items() if path not in program.frozen)
  moments = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.state.opt_state))
  share = f"{trained:,} of {sum(sizes.values()):,} parameters ({trained / sum(sizes.values()):.2%})"
  return f"trained: {share}; the optimizer state has {moments:,} numbers"


def start_entry(program: Program, task: Task, step: int, microbatches: int) -> dict[str, Any]:
  """The entry of run.json that describes this start, which trains if `microbatches` is not 0."""
  model = program.model
  packages = ("tfm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  mesh = model.placement.mesh
  tokens = program.config.train.batch_size * program.row_tokens
  work = {"step_tokens": tokens, "step_flop": program.flops.full} if microbatches else {}
  return {
    "id": uuid.uuid4().hex,
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "step": step,
    "versions": {name: _version(name) for name in packages},
    "devices": {"count": mesh.size, "kind": mesh.devices.flat[0].device_kind, "processes": jax.process_count()},
    "mesh": dict(mesh.shape),
    "parameters": model.parameter_count(),
    **({"active_parameters": model.parameter_count(active=True)} if model.config.experts.count else {}),
    "microbatches": microbatches,
    **work,
    "git": _git_revision(),
    "fingerprints": dict(task.fingerprints),
  }


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "unknown"


def _git_revision() -> str:
  """The git revision of the code, "-dirty" if it has changes; "unknown" outside a checkout."""
  folder = Path(__file__).parent
  command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return "unknown"
