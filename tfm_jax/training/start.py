"""What happens around the loop at each start of a run: checks against earlier starts, and what is noted of this one."""

import contextlib
import importlib.metadata
import logging
import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Sharding

from tfm_jax.cache import cache_dir
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.training.agreement import differing, together
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.config import Config, changed_keys, from_stored, to_dict
from tfm_jax.training.run_directory import RunDirectory
from tfm_jax.training.task import Task
from tfm_jax.training.tracking import ParameterRow, parameter_table

log = logging.getLogger(__name__)


def use_compilation_cache() -> None:
  """Compiled programs are kept under `cache_dir()`, unless JAX was told of another place."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@contextlib.contextmanager
def leaving_nothing_half_made(run: RunDirectory) -> Iterator[None]:
  """A mistake that is found before the run exists leaves no new work directory behind."""
  new = run.writes and not run.path.exists()
  try:
    yield
  except UserError:
    if new and not run.exists and run.path.exists():
      run.path.rmtree()
    raise


@contextlib.contextmanager
def held(run: RunDirectory) -> Iterator[None]:
  """The run directory, made and locked by process 0, and seen by all of them. Raises UserError."""
  with leaving_nothing_half_made(run), contextlib.ExitStack() as stack:
    with together():
      stack.enter_context(run.locked())
    with together():
      run.check_shared()
    yield


def check_same_config(config: Config) -> None:
  """UserError if process 0 runs something else: another configuration, or other releases; called by all processes."""
  told = {"the version of jax": jax.__version__, "the version of tfm_jax": _version("tfm_jax")}
  for name, section in to_dict(config).items():
    told |= {f"{name}.{key}": value for key, value in section.items()} if isinstance(section, dict) else {name: section}
  other = differing(told)
  if other:
    raise UserError(f"not as on process 0: {', '.join(other)}; start all processes alike")


def check_same_data(task: Task) -> None:
  """UserError if process 0 has other data or another tokenizer; called by all processes."""
  other = differing(task.fingerprints)
  if other:
    raise UserError(
      f"not as on process 0: the {' and the '.join(other)}; all hosts need the same files at data.path and "
      f"tokenizer.path, and the same installed packages"
    )


def start_anew(run: RunDirectory) -> None:
  """Forgets a start that ended before its first checkpoint: there is nothing to go on with, and what was wrong with
  its settings or its data may have been corrected since."""
  if run.writes and run.exists and not imported(run):
    with Checkpoints(run.checkpoints) as checkpoints:
      if not checkpoints.steps():
        log.info("the run in %s ended before its first checkpoint: it starts anew", run.path)
        run.forget()


def imported(run: RunDirectory) -> bool:
  """Whether the directory holds imported parameters."""
  return any("imported" in entry for entry in run.starts())


def check_resumable(run: RunDirectory, config: Config) -> None:
  """UserError if the run that stands here was started with another configuration, naming what differs."""
  if run.exists:
    if imported(run):
      raise UserError(
        f"{run.path} holds imported parameters, which are no run to go on with: choose another --workdir, and start "
        f"from them by --config.init_from={run.path}"
      )
    # Keys that are newer than the run have the values that it was made with.
    stored, asked = to_dict(from_stored(run.read_config())), to_dict(config)
    changed = changed_keys(stored, asked)
    if changed:
      raise UserError(
        f"{run.path} holds a run with other settings of {', '.join(changed)}: set them back, or choose --workdir"
      )


def check_fingerprints(starts: list[dict[str, Any]], task: Task, run: RunDirectory) -> None:
  """UserError if the data or the tokenizer is not what the run was started with.

  A run that was started up to version 0.1 knows its files by path, size and time: `former_fingerprints` of the task.
  Each start that was let through has noted the fingerprint of its own time.
  """
  former = getattr(task, "former_fingerprints", {})
  for name, value in task.fingerprints.items():
    noted = {entry["fingerprints"].get(name) for entry in starts}
    if starts and noted.isdisjoint({value, former.get(name, value)}):
      remedy = ", its files' path and time of change too if an earlier release started it" if name == "data" else ""
      raise UserError(
        f"the {name} of the run in {run.path} has changed since it was started, so it cannot be resumed: "
        f"restore it{remedy}, or choose another --workdir"
      )


def stored_tokenizer(run: RunDirectory, config: Config) -> epath.Path | None:
  """The directory of the tokenizer that stands: the run's own, or that of the run it starts from; None: a new one."""
  if run.exists:
    return run.stored_tokenizer()
  if config.init_from and not config.tokenizer.path:
    source = RunDirectory(config.init_from)
    if not source.exists:
      raise UserError(f"init_from={config.init_from} is no run directory: it has no config.json")
    return source.stored_tokenizer()
  return None


def rows_here(sharding: Sharding, batch_size: int) -> np.ndarray | None:
  """The rows of the global batch that this process's devices hold, ascending; None: all."""
  if jax.process_count() == 1:
    return None
  indices = sharding.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices if index is not None]))


def parameter_lines(model: Model, params: Any) -> str:
  """The start-up table: parameter, shape, axes, shard, bytes; and the exact count."""

  def row(path: tuple, leaf: jax.ShapeDtypeStruct) -> ParameterRow:
    assert leaf.sharding is not None
    shard = leaf.sharding.shard_shape(leaf.shape)
    name = "/".join(key.key for key in path)
    return ParameterRow(name, leaf.shape, model.axes(path).names, shard, math.prod(shard) * leaf.dtype.itemsize)

  rows = [row(path, leaf) for path, leaf in jax.tree.leaves_with_path(params)]
  return f"{parameter_table(rows)}\n{model.parameter_count():,} parameters, the padding of the vocabulary not counted"


def start_entry(model: Model, task: Task, step: int, microbatches: int) -> dict[str, Any]:
  """One entry of run.json."""
  packages = ("tfm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  mesh = model.placement.mesh
  return {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "step": step,
    "versions": {name: _version(name) for name in packages},
    "devices": {"count": mesh.size, "kind": mesh.devices.flat[0].device_kind, "processes": jax.process_count()},
    "mesh": dict(mesh.shape),
    "parameters": model.parameter_count(),
    "microbatches": microbatches,
    "git": _git_revision(),
    "fingerprints": dict(task.fingerprints),
  }


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "unknown"


def _git_revision() -> str:
  """The revision of the code, with a mark if it was changed; "unknown" outside a checkout."""
  folder = Path(__file__).parent
  command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return "unknown"
