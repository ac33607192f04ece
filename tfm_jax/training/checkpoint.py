"""Checkpoints: asynchronous, atomic, verified, and restorable under any sharding. The only file that imports Orbax.

A step is stored as `checkpoints/STEP/`, with one Orbax item per tree (`params`, `opt_state`, ...), whose leaves are
named by their paths ("blocks/attn/wq"). After the commit, `manifest.sha256` is written: a checksum of every file, in
the format of `sha256sum`. Orbax itself does not notice a flipped bit.

    python -m tfm_jax.training.checkpoint verify --workdir=DIR
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from tfm_jax.errors import UserError
from tfm_jax.runtime.run_directory import RunDirectory

log = logging.getLogger(__name__)
# Orbax's threads log their exceptions with tracebacks. `save` and `wait` raise them, in one line.
logging.getLogger("absl").addFilter(lambda record: "raised an exception" not in str(record.msg))

COMMIT = "commit_success.txt"  # Orbax writes this file last: a directory without it is not a complete checkpoint
MANIFEST = "manifest.sha256"


@dataclass(frozen=True)
class CheckpointConfig:
  """When checkpoints are saved, and which are kept."""

  every: int = 1000  # steps between checkpoints; 0: only the one at the end
  keep: int = 3  # how many of the latest are kept; 0: all
  keep_every: int = 0  # checkpoints of steps that this divides are kept for good; 0: none


class Checkpoints:
  """The checkpoints of one run: saves and restores named trees of arrays. A context manager, see `close`.

  All processes call the same methods in the same order.

  Args:
    directory: local or remote; it has one folder per step. The first `save` creates it.
    config: when to save and what to keep.

  Attributes:
    best: the step that is kept beside those of `config`, from the next save on; None: none is.
  """

  def __init__(self, directory: epath.PathLike, config: CheckpointConfig | None = None) -> None:
    self.directory = epath.Path(directory)
    self.config = config or CheckpointConfig()
    self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._pending: tuple[int, Future[None]] | None = None
    self._verified: set[int] = set()
    self.best: int | None = None

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  # What is stored.

  def steps(self) -> list[int]:
    """The steps of complete checkpoints, ascending."""
    return sorted(int(path.name) for path in self._folders() if path.name.isdigit() and (path / COMMIT).exists())

  def latest(self) -> int | None:
    """The last complete step, None if there is none; all processes get the answer of process 0."""
    step = max(self.steps(), default=-1)
    if jax.process_count() > 1:
      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return None if step < 0 else step

  def due(self, step: int) -> bool:
    """Whether the configuration asks for a checkpoint after this step."""
    return self.config.every > 0 and step > 0 and step % self.config.every == 0

  # Saving.

  def save(self, step: int, trees: Mapping[str, Any]) -> None:
    """Starts to save a step, and returns as soon as the arrays may be donated.

    Writing, the commit, the checksums and the removal of old checkpoints happen in the background. If the previous save
    failed, its error is raised here, but only after this save has started, so that the newer state is not lost.

    Args:
      step: must be larger than every complete step.
      trees: name -> pytree of arrays, such as {"params": ..., "opt_state": ...}. Each can be restored alone.

    Raises:
      UserError: the previous save failed, this one cannot start, or a later step is stored.
    """
    failure = self._finish()
    latest = max(self.steps(), default=-1)
    if step <= latest:
      raise UserError(
        f"cannot save step {step} after {self.directory / str(latest)}: to go back, delete that"
      ) from failure
    if jax.process_index() == 0:
      self._sweep()
    items = {name: stored for name, tree in trees.items() if (stored := _stored(tree))}
    try:
      with _context():
        response = ocp.save_checkpointables_async(self.directory / str(step), items)
    except Exception as error:
      raise self._unsaved(step, error) from error
    self._pending = step, self._worker.submit(self._after, step, response, self.best)
    if failure is not None:
      raise failure

  def wait(self) -> None:
    """Returns when the last save is committed and has its checksums. Raises UserError if it failed."""
    failure = self._finish()
    if failure is not None:
      raise failure

  def close(self) -> None:
    """Waits for the last save, then ends the background thread. Raises UserError if the save failed."""
    try:
      self.wait()
    finally:
      self._worker.shutdown()

  def _finish(self) -> UserError | None:
    """Waits for the pending save, and returns its error, if any."""
    pending, self._pending = self._pending, None
    if pending is None:
      return None
    step, future = pending
    error = future.exception()
    return None if error is None else self._unsaved(step, error)

  def _unsaved(self, step: int, error: BaseException) -> UserError:
    """The error of a failed save, in one line."""
    failure = UserError(f"checkpoint {step} was not saved in {self.directory}: {_reason(error)}")
    failure.__cause__ = error
    return failure

  def _after(self, step: int, response: Any, best: int | None) -> None:
    """Runs in the background: waits for the commit, writes the checksums, removes old checkpoints."""
    response.result()
    if jax.process_index() != 0:
      return
    _write_manifest(self.directory / str(step))
    steps = self.steps()
    kept = {*steps[-self.config.keep :], best}  # keep=0 keeps all: steps[-0:] is the whole list
    for old in steps:
      if old not in kept and not (self.config.keep_every and old % self.config.keep_every == 0):
        _remove(self.directory / str(old))
    log.info("checkpoint %d is complete", step)

  def _sweep(self) -> None:
    """Removes incomplete checkpoints: saves that failed or were killed."""
    for path in self._folders():
      if (path.name.isdigit() or ".orbax-checkpoint-tmp" in path.name) and not (path / COMMIT).exists():
        log.info("removing the incomplete checkpoint %s", path)
        _remove(path)

  def _folders(self) -> list[epath.Path]:
    """The folders in the directory; none if the directory does not exist."""
    return [path for path in self.directory.iterdir() if path.is_dir()] if self.directory.exists() else []

  # Restoring.

  def restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Restores trees of a step; each array is read directly into its sharding.

    Args:
      step: a complete step.
      abstract: name -> pytree of `jax.ShapeDtypeStruct` (or arrays) with the expected shapes and dtypes and the target
        shardings (none: the first local device). Trees that are not named are not read.

    Returns:
      The same names and pytrees, with arrays.

    Raises:
      UserError: the checkpoint is missing or damaged, or a path, shape or dtype differs; the message names it.
    """
    stored = self._open(step).metadata
    expected = {name: _stored(tree) for name, tree in abstract.items()}
    for name, leaves in expected.items():
      self.check(step, name, leaves, stored.get(name) or {})
    targets = {name: jax.tree.map(_target, leaves) for name, leaves in expected.items() if leaves}
    try:
      with _context():
        loaded = ocp.load_checkpointables(self.directory / str(step), targets) if targets else {}
    except Exception as error:
      raise UserError(f"checkpoint {step} of {self.directory} cannot be read: {_reason(error)}") from error
    return {
      name: jax.tree.unflatten(
        jax.tree.structure(tree),
        [loaded[name][path] if leaf.size else _empty(leaf) for path, leaf in _named(tree).items()],
      )
      for name, tree in abstract.items()
    }

  def shapes(self, step: int, name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape and dtype of the stored leaves of a tree. Raises UserError like `restore`."""
    stored = self._open(step).metadata.get(name) or {}
    return {path: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype) for path, leaf in stored.items()}

  def verify(self, step: int) -> bool:
    """Compares every file of a step with its checksum.

    Returns:
      Whether the step has checksums; it has none if the run was killed between the commit and the manifest.

    Raises:
      UserError: a file is damaged or missing; the message names it.
    """
    folder = self.directory / str(step)
    try:
      lines = (folder / MANIFEST).read_text().splitlines()
    except FileNotFoundError:
      return False
    except UnicodeDecodeError as error:
      raise _damage(folder, MANIFEST) from error
    expected = dict(line.split("  ", 1)[::-1] for line in lines if "  " in line)
    if len(expected) != len(lines):
      raise _damage(folder, MANIFEST)
    with ThreadPoolExecutor() as pool:
      for name, digest in zip(expected, pool.map(lambda name: _sha256(folder / name), expected), strict=True):
        if digest != expected[name]:
          raise _damage(folder, name)
    return True

  def _verify_once(self, step: int) -> None:
    """Verifies a step on process 0, once. If it is damaged, all processes raise, so that none waits for the others."""
    if step in self._verified:
      return
    failure = None
    if jax.process_index() == 0:
      try:
        if not self.verify(step):
          log.warning("checkpoint %d has no checksums: restored unverified", step)
      except UserError as error:
        failure = error
    damaged = failure is not None
    if jax.process_count() > 1:
      damaged = bool(multihost_utils.broadcast_one_to_all(np.bool_(damaged)))
    if damaged:
      raise failure or UserError(f"{self.directory / str(step)} is damaged: process 0 names the file")
    self._verified.add(step)

  def _open(self, step: int) -> Any:
    """Orbax's metadata of a complete, verified step. Raises UserError."""
    folder = self.directory / str(step)
    if not (folder / COMMIT).exists():
      steps = ", ".join(map(str, self.steps())) or "none"
      raise UserError(f"no checkpoint of step {step} in {self.directory} (complete ones: {steps})")
    self._verify_once(step)
    try:
      with _context():
        return ocp.checkpointables_metadata(folder)
    except Exception as error:
      raise UserError(f"{folder} cannot be read: {_reason(error)}; delete it to use the one before") from error

  def check(self, step: int, name: str, expected: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raises UserError for the first path, shape or dtype that differs: Orbax would silently cast to another dtype."""
    where = f"checkpoint {step} of {self.directory}, {name}"
    for path in sorted(expected.keys() - stored.keys()):
      raise UserError(f"{where} has no {path}: it was saved from another model or optimizer")
    for path in sorted(stored.keys() - expected.keys()):
      raise UserError(f"{where} has {path}, unlike this model or optimizer: it was saved from another")
    for path, leaf in expected.items():
      form, shape, dtype = _stored_form(leaf), tuple(stored[path].shape), stored[path].dtype
      if shape != form.shape:
        raise UserError(f"{where}: {path} has shape {shape}, but {form.shape} is wanted")
      if dtype != form.dtype:
        raise UserError(f"{where}: {path} has dtype {dtype}, but {form.dtype} is wanted")


def _context() -> Any:
  """The Orbax options of all calls."""
  context = ocp.Context()
  context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
  # If another thread creates the directory later, a save that cannot start hangs for minutes.
  context.asynchronous.create_directories_asynchronously = False
  # Compression makes float32 files 8 % smaller, and takes three to five times the processor time.
  context.array.saving.use_compression = False
  return context


def _named(tree: Any) -> dict[str, Any]:
  """The leaves of a pytree by path ("blocks/attn/wq"), in the order of the tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
  if len(named) != len(leaves):
    raise ValueError("two leaves of the tree have the same path")
  return named


def _stored(tree: Any) -> dict[str, Any]:
  """The leaves of a tree that are stored: Orbax refuses arrays without elements, which `restore` creates anew."""
  return {path: leaf for path, leaf in _named(tree).items() if leaf.size}


def _stored_form(leaf: Any) -> jax.ShapeDtypeStruct:
  """The shape and dtype in which a leaf is stored; a typed random key is stored as its bits."""
  abstract = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return jax.eval_shape(jax.random.key_data, abstract) if is_key else abstract


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
  """A leaf with a sharding: without one, Orbax would need the devices that saved it."""
  sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _empty(leaf: Any) -> jax.Array:
  """An array without elements."""
  return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), _target(leaf).sharding)


def _reason(error: BaseException) -> str:
  """The root cause of an exception, in one line."""
  while error.__cause__ is not None:
    error = error.__cause__
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


def _damage(folder: epath.Path, name: str) -> UserError:
  """The error for a file that differs from what was saved."""
  return UserError(f"{folder / name} is damaged or missing; delete {folder} to use the checkpoint before it")


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  """The relative paths of all files below a folder."""
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _files(path, f"{prefix}{path.name}/")
    else:
      yield prefix + path.name


def _sha256(path: epath.Path) -> str:
  """The checksum of a file, read in chunks; empty if it cannot be read."""
  digest = hashlib.sha256()
  try:
    with path.open("rb") as file:
      while chunk := file.read(1 << 22):
        digest.update(chunk)
  except OSError:
    return ""
  return digest.hexdigest()


def _write_manifest(folder: epath.Path) -> None:
  """Writes the checksums of a committed step, atomically."""
  text = "".join(f"{_sha256(folder / name)}  {name}\n" for name in _files(folder))
  temporary = folder / f"{MANIFEST}.tmp"
  temporary.write_text(text)
  temporary.replace(folder / MANIFEST)


def _remove(folder: epath.Path) -> None:
  """Removes a checkpoint. The commit file goes first, so that a half-removed checkpoint does not look complete."""
  (folder / COMMIT).unlink(missing_ok=True)
  folder.rmtree()


def main(argv: list[str] | None = None) -> int:
  """The command `verify`: returns 0 if all files are as saved, 1 if one is damaged, 2 for a mistake of the user."""
  parser = argparse.ArgumentParser(prog="python -m tfm_jax.training.checkpoint")
  commands = parser.add_subparsers(dest="command", required=True)
  verify = commands.add_parser("verify", help="compare every file with its checksum")
  verify.add_argument("--workdir", required=True, help="a run directory")
  checkpoints = Checkpoints(RunDirectory(parser.parse_args(argv).workdir).checkpoints)
  steps = checkpoints.steps()
  if not steps:
    print(f"no checkpoint in {checkpoints.directory}; check --workdir", file=sys.stderr)
    return 2
  status = 0
  for step in steps:
    try:
      result = "all right" if checkpoints.verify(step) else f"has no {MANIFEST}: not verified"
      print(f"checkpoint {step}: {result}")
    except UserError as error:
      print(f"checkpoint {step}: {error}", file=sys.stderr)
      status = 1
  return status


if __name__ == "__main__":
  sys.exit(main())
