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
from tfm_jax.hf.matching import WeightMapping, map_checkpoint
from tfm_jax.hf.tensors import TensorFiles
from tfm_jax.hf.tokenizer import read_tokenizer
from tfm_jax.models.config import param_axes
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import Model
from tfm_jax.runtime.devices import all_devices, first_device
from tfm_jax.runtime.reporting.units import human_bytes
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.runtime.trees import flat, nested
from tfm_jax.sharding.strategy import ShardingConfig
from tfm_jax.text.tokenizers.table import Tokenizer, TokenizerConfig
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.config import Config, to_dict
from tfm_jax.training.load import fresh_params

log = logging.getLogger(__name__)

_ROW = 512  # data.seq_len of an imported run, or fewer if its positions end before


def import_checkpoint(
  source: epath.PathLike, workdir: epath.PathLike, strategy: str | None = None, architecture: str | None = None
) -> None:
  """Writes a run directory with the weights, configuration and tokenizer of a Hugging Face model.

  Tensors are read one at a time, each part straight to the device that holds it. Parameters of the head that the files
  lack are initialised; tensors of other heads are left out; both are logged.

  Args:
    source: a directory with config.json, *.safetensors and optionally tokenizer files.
    workdir: the run directory, which must not exist or be empty.
    strategy: shards the parameters over all devices; None: one device.
    architecture: what to read it as; None: what config.json says.

  Raises:
    UserError: files that are missing, damaged or not supported; tensors that are missing, unexpected or misshapen
      (all of them are listed). Nothing is left at `workdir` then.
  """
  begin = time.monotonic()
  run, directory = RunDirectory(workdir), epath.Path(source).expanduser()
  files = TensorFiles(source)
  theirs = _read_config(directory)
  mapping = map_checkpoint(files, theirs, architecture)
  tokenizer = read_tokenizer(directory)
  config = run_config(mapping, tokenizer, strategy)
  devices = all_devices() if strategy else [first_device()]
  model = build_model(config, tokenizer.vocab_size if tokenizer else 0, devices)
  with _all_or_nothing(run):
    params = read_params(model, mapping, files)
    with Checkpoints(run.checkpoints) as checkpoints:
      checkpoints.save(0, {"params": params})
    if run.writes and tokenizer is not None:
      tokenizer.save(run.tokenizer)
    # For the export of this run and of runs that start from it.
    ids = {key: value for key, value in theirs.items() if key.endswith("_token_id")}
    origin = {"architecture": mapping.architecture, "token_ids": ids}
    time_ = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    run.append_start({"time": time_, "step": 0, "imported": True, "origin": origin})
    run.write_config(to_dict(config))  # last: with it, it is a run
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  log.info(
    "%s: %s parameters, %s, imported to %s in %.1f s; %s",
    mapping.architecture,
    f"{model.parameter_count():,}",
    human_bytes(size),
    run.path,
    time.monotonic() - begin,
    "no tokenizer files" if tokenizer is None else f"a {tokenizer.kind} tokenizer",
  )


@contextlib.contextmanager
def _all_or_nothing(run: RunDirectory) -> Iterator[None]:
  """The work directory, locked. It must be new or empty; on an error everything written to it is removed."""
  existed = run.path.exists()
  if existed and (not run.path.is_dir() or any(run.path.iterdir())):
    raise UserError(f"{run.path} is not empty: choose another --workdir, or remove it")
  try:
    with run.locked():
      yield
  except BaseException:
    if run.writes and run.path.exists():
      for path in run.path.iterdir() if existed else [run.path]:
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
    raise UserError(f"{path} is not a configuration: it does not hold a JSON object")
  return content


def run_config(mapping: WeightMapping, tokenizer: Tokenizer | None, strategy: str | None) -> Config:
  """The configuration of the imported run: its model, and defaults that suit it."""
  base, model, family = Config(), mapping.config, mapping.table.family
  usable = (model.max_positions or _ROW) - model.position_offset
  length = min(_ROW, usable) if model.positions in ("learned", "rotary") and not model.image.patch else _ROW
  kind = TokenizerConfig()
  if tokenizer is not None:
    kind = TokenizerConfig(kind=tokenizer.kind, vocab_size=tokenizer.vocab_size)
  objective = next(iter(find_family(family).objectives), base.objective.name)
  return dataclasses.replace(
    base,
    family=family,
    model=model,
    tokenizer=kind,
    data=dataclasses.replace(base.data, seq_len=max(length, 2)),
    objective=dataclasses.replace(base.objective, name=objective),
    sharding=ShardingConfig(strategy=strategy or "dp"),
  )


def read_params(model: Model, mapping: WeightMapping, files: TensorFiles) -> Any:
  """The parameters in float32, each part read by the process and for the device that holds it."""
  shapes = {path: leaf.shape for path, leaf in flat(model.shapes()).items()}
  shardings = flat(model.shardings())

  def read_layer(path: str, tensor: str, index: tuple[slice, ...]) -> np.ndarray | float:
    if not tensor:  # a norm that the architecture does not have keeps its initial value
      return float(path.endswith("/scale"))
    read = lambda region: files.read(tensor, region)
    return mapping.sources[path].entry.read(path, index, shapes, model.vocab_size, read, model.config.image.patch)

  def read_parameter(path: str) -> jax.Array:
    shape, tensors = shapes[path], mapping.sources[path].tensors

    def part(index: Any) -> np.ndarray:
      values = _empty([len(range(*p.indices(n))) for p, n in zip(index, shape, strict=True)])
      if param_axes(path).layers:
        for i, layer in enumerate(range(*index[0].indices(shape[0]))):
          values[i] = read_layer(path, tensors[layer], index[1:])
      else:
        values[...] = read_layer(path, tensors[0], index)
      return values

    return jax.make_array_from_callback(shape, shardings[path], part)

  params = fresh_params(model, 0, mapping.fresh) | {path: read_parameter(path) for path in mapping.sources}
  return nested({path: params[path] for path in shapes})


def _empty(shape: Sequence[int]) -> np.ndarray:
  """A float32 array at an address that is a multiple of 64: JAX on CPU uses it in place and would copy others."""
  size = 4 * math.prod(shape)
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(np.float32).reshape(shape)
