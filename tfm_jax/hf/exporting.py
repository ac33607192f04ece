"""From a run directory to a Hugging Face model directory."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.hf.families import FAMILIES, config_to
from tfm_jax.hf.table import Row
from tfm_jax.hf.tensors import NewTensor, half_made, write_tensors
from tfm_jax.hf.tokenizer import write_tokenizer
from tfm_jax.models.model import Model
from tfm_jax.training.load import Run, load_run
from tfm_jax.training.run_directory import RunDirectory
from tfm_jax.training.tracking import human_bytes
from tfm_jax.training.trees import flat

log = logging.getLogger(__name__)

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def export_checkpoint(
  workdir: epath.PathLike, out: epath.PathLike, step: int | None = None, dtype: str = "float32"
) -> None:
  """Writes a run's model as a directory that `transformers` loads: config.json, safetensors, tokenizer files.

  Args:
    workdir: the run directory.
    out: the new directory; it must not exist or be empty.
    step: which checkpoint; None: the last.
    dtype: of the weights in the files: float32, bfloat16 or float16.

  Raises:
    UserError: no such run or checkpoint; a model that transformers has no counterpart for; `out` is not empty.
  """
  begin = time.monotonic()
  if dtype not in DTYPES:
    raise UserError(f"--dtype={dtype} is not one of {', '.join(DTYPES)}")
  run = load_run(workdir, step)
  config = config_json(run, dtype, RunDirectory(workdir).origin())
  with half_made(out) as directory:
    tensors = list(new_tensors(run.model, run.params, DTYPES[dtype]))
    write_tensors(directory, tensors)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if run.tokenizer is not None:
      length = run.config.model.max_positions or run.config.data.seq_len
      write_tokenizer(run.tokenizer, epath.Path(directory), config["model_type"], length)
  size = sum(tensor.nbytes for tensor in tensors)
  seconds = time.monotonic() - begin
  log.info("%s of step %d: %s in %s, %.1f s", config["architectures"][0], run.step, human_bytes(size), out, seconds)


def config_json(run: Run, dtype: str, origin: Mapping[str, Any]) -> dict[str, Any]:
  """config.json of a run's model. `origin`: what its import noted. Raises UserError."""
  theirs = config_to(run.model.config, run.config.family, origin.get("architecture", ""))
  if run.model.vocab_size:
    theirs = {**_special_ids(run), **theirs, "vocab_size": run.model.vocab_size}
  same_tokens = not run.config.tokenizer.path
  return {**theirs, **(origin.get("token_ids", {}) if same_tokens else {}), "dtype": dtype}


def _special_ids(run: Run) -> dict[str, Any]:
  """The ids of special tokens, null where the tokenizer has none, and what a decoder starts with."""
  ids = {f"{name}_token_id": getattr(run.tokenizer, f"{name}_id", -1) for name in ("pad", "bos", "eos")}
  made: dict[str, Any] = {name: id if id >= 0 else None for name, id in ids.items()}
  if run.model.encoder_decoder:
    # As objectives.seq2seq and span_corruption start targets; T5's padding is 0.
    bos = made["bos_token_id"] if run.config.objective.name == "seq2seq" else None
    made["decoder_start_token_id"] = next((id for id in (bos, made["pad_token_id"]) if id is not None), 0)
  return made


def new_tensors(model: Model, params: Any, dtype: np.dtype) -> Iterator[NewTensor]:
  """The tensors under their names, each made when its turn comes."""
  config, family, leaves = model.config, FAMILIES[model.family], flat(params)
  shapes = {path: leaf.shape for path, leaf in leaves.items()}
  bare = config.head.name in ("none", "pooled")
  for row in family.rows(config):
    if row.ours[0] not in shapes:
      continue
    for layer in row.layers(shapes):
      if not row.exists(config, layer):
        continue
      name = row.name(layer)
      name = name.removeprefix(family.prefix) if bare else name
      shape = row.shape(shapes, model.vocab_size, config.image.patch)
      yield NewTensor(name, shape, dtype, _maker(model, row, layer, leaves, dtype))
      if not config.tied and row.of_head:
        for other in (alias for alias, standard in family.aliases(config).items() if standard == name):
          yield NewTensor(other, shape, dtype, _maker(model, row, layer, leaves, dtype))


def _maker(model: Model, row: Row, layer: int | None, leaves: dict[str, Any], dtype: np.dtype) -> Any:
  """What makes one tensor."""

  def make() -> np.ndarray:
    parts = [np.asarray(leaves[path]) if layer is None else np.asarray(leaves[path])[layer] for path in row.ours]
    made = row.export(parts, model.vocab_size, model.config.image.patch)
    return np.ascontiguousarray(made, dtype)

  return make


def tensors_of(model: Model, tree: Any) -> dict[str, np.ndarray]:
  """A tree like the model's parameters (or their gradients) under the names and in the forms of the export."""
  return {tensor.name: tensor.make() for tensor in new_tensors(model, tree, DTYPES["float32"])}
