"""From a Hugging Face model directory to a run directory."""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.hf.matching import Plan, plan_import
from tfm_jax.hf.tensors import TensorFiles
from tfm_jax.hf.tokenizer import read_tokenizer
from tfm_jax.models.config import param_axes
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import Model
from tfm_jax.sharding.strategy import ShardingConfig
from tfm_jax.text.tokenizers import Tokenizer, TokenizerConfig
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.config import Config, to_dict
from tfm_jax.training.load import fresh_params
from tfm_jax.training.program import build_model
from tfm_jax.training.run_directory import RunDirectory
from tfm_jax.training.tracking import human_bytes
from tfm_jax.training.trees import flat, nested

log = logging.getLogger(__name__)

_ROW = 512  # tokens of a row in the imported run's configuration, where its positions reach so far


def import_checkpoint(
  source: epath.PathLike, workdir: epath.PathLike, strategy: str | None = None, architecture: str | None = None
) -> None:
  """Writes a run directory with the weights, configuration and tokenizer of a Hugging Face model.

  Tensors are read one at a time, straight to where the strategy puts their parts. What the architecture has and the
  files lack in its head starts afresh; what they have for another head is left out; both are logged.

  Args:
    source: a directory with config.json, *.safetensors and, where there are any, tokenizer files.
    workdir: the run directory, which must not exist or be empty.
    strategy: how to lay the parameters out over all devices; None: on one device.
    architecture: what to read it as, instead of what config.json says.

  Raises:
    UserError: files that are missing, damaged or not supported; tensors that are missing, unexpected or misshapen
      (all of them are listed). Nothing is left at `workdir` then.
  """
  begin = time.monotonic()
  run, directory = RunDirectory(workdir), epath.Path(source).expanduser()
  files = TensorFiles(source)
  theirs = _read_config(directory)
  plan = plan_import(files, theirs, architecture)
  tokenizer = read_tokenizer(directory)
  config = run_config(plan, tokenizer, strategy)
  devices = jax.devices() if strategy else jax.local_devices()[:1]
  model = build_model(config, tokenizer.vocab_size if tokenizer else 0, devices)
  with _all_or_nothing(run):
    params = read_params(model, plan, files)
    with Checkpoints(run.checkpoints) as checkpoints:
      checkpoints.save(0, {"params": params})
    if run.writes and tokenizer is not None:
      tokenizer.save(run.tokenizer)
    # What has no place in our configuration, and an export of this run or of those that start from it wants to know.
    ids = {key: value for key, value in theirs.items() if key.endswith("_token_id")}
    origin = {"architecture": plan.architecture, "token_ids": ids}
    time_ = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    run.append_start({"time": time_, "step": 0, "imported": True, "origin": origin})
    run.write_config(to_dict(config))  # last: with it, it is a run
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  log.info(
    "%s: %s parameters, %s, imported to %s in %.1f s; %s",
    plan.architecture, f"{model.parameter_count():,}", human_bytes(size), run.path, time.monotonic() - begin,
    "no tokenizer files were there" if tokenizer is None else f"a {tokenizer.kind} tokenizer",
  )  # fmt: skip


@contextlib.contextmanager
def _all_or_nothing(run: RunDirectory) -> Iterator[None]:
  """The work directory, locked, new or empty before; whatever goes wrong, nothing of ours stays in it."""
  there = run.path.exists()
  if there and (not run.path.is_dir() or any(run.path.iterdir())):
    raise UserError(f"{run.path} is not empty: choose another --workdir, or remove it")
  try:
    with run.locked():
      yield
  except BaseException:
    if run.writes and run.path.exists():
      for path in run.path.iterdir() if there else [run.path]:
        path.rmtree() if path.is_dir() else path.unlink()
    raise


def _read_config(directory: epath.Path) -> dict[str, Any]:
  """config.json. Raises UserError."""
  path = directory / "config.json"
  try:
    content = json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f"{directory} has no config.json: name the folder that holds the model") from None
  except (OSError, ValueError, RecursionError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path} cannot be read as JSON ({reason}); download it again") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} is not a configuration: it holds no JSON object")
  return content


def run_config(plan: Plan, tokenizer: Tokenizer | None, strategy: str | None) -> Config:
  """The configuration of the imported run: its model, and defaults for the rest that go with it."""
  base, model = Config(), plan.model
  usable = (model.max_positions or _ROW) - model.position_offset
  length = min(_ROW, usable) if model.positions in ("learned", "rotary") and not model.image.patch else _ROW
  kind = TokenizerConfig()
  if tokenizer is not None:
    kind = TokenizerConfig(kind=tokenizer.kind, vocab_size=tokenizer.vocab_size)
  objective = next(iter(find_family(plan.family).objectives), base.objective.name)
  return dataclasses.replace(
    base,
    family=plan.family,
    model=model,
    tokenizer=kind,
    data=dataclasses.replace(base.data, seq_len=max(length, 2)),
    objective=dataclasses.replace(base.objective, name=objective),
    sharding=ShardingConfig(strategy=strategy or "dp"),
  )


def read_params(model: Model, plan: Plan, files: TensorFiles) -> Any:
  """The parameters in float32, each part read by the process and for the device that holds it."""
  shapes = {path: leaf.shape for path, leaf in flat(model.shapes()).items()}
  shardings = flat(model.shardings())

  def one(path: str, tensor: str, index: tuple[slice, ...]) -> np.ndarray | float:
    if not tensor:  # a norm that does not exist: as it would be made
      return float(path.endswith("/scale"))
    read = lambda region: files.read(tensor, region)
    return plan.sources[path].row.read(path, index, shapes, model.vocab_size, read, model.config.image.patch)

  def make(path: str) -> jax.Array:
    shape, tensors = shapes[path], plan.sources[path].tensors

    def part(index: Any) -> np.ndarray:
      made = _empty([len(range(*p.indices(n))) for p, n in zip(index, shape, strict=True)])
      if param_axes(path).layers:
        for place, layer in enumerate(range(*index[0].indices(shape[0]))):
          made[place] = one(path, tensors[layer], index[1:])
      else:
        made[...] = one(path, tensors[0], index)
      return made

    return jax.make_array_from_callback(shape, shardings[path], part)

  made = fresh_params(model, 0, plan.fresh) | {path: make(path) for path in plan.sources}
  return nested({path: made[path] for path in shapes})


def _empty(shape: Sequence[int]) -> np.ndarray:
  """An array of float32 that JAX on a CPU takes over as it is: memory at other places than 64 n it would copy."""
  size = 4 * math.prod(shape)
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(np.float32).reshape(shape)
