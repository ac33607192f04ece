"""From a run directory to a Hugging Face model directory."""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.hf.config import config_to, table_of_model
from tfm_jax.hf.table import Entry, Params
from tfm_jax.hf.tensors import NewTensor, check_new_folder, new_folder, write_tensors
from tfm_jax.hf.tokenizer import write_tokenizer
from tfm_jax.models.model import Model
from tfm_jax.objectives.table import OBJECTIVES
from tfm_jax.runtime.reporting.units import human_bytes
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.runtime.trees import flat, nested
from tfm_jax.training.load import Run, load_run

log = logging.getLogger(__name__)

# What the name of a model type does not say.
COMPUTES = {
  "esm": ", the transformers class that computes a pre-norm BERT with rotary positions (docs/hugging_face.md)",
  "gpt_neox": ", the transformers class that computes a GPT with rotary positions (docs/hugging_face.md)",
}
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
    UserError: no such run or checkpoint; a model without a counterpart in transformers; `out` is not empty.
  """
  begin = time.monotonic()
  if dtype not in DTYPES:
    raise UserError(f"--dtype={dtype} is not one of {', '.join(DTYPES)}")
  check_new_folder(out)  # before minutes of reading
  run = simplified(load_run(workdir, step))
  config = config_json(run, dtype, RunDirectory(workdir).origin())
  with new_folder(out) as directory:
    tensors = [*new_tensors(run.model, run.params, DTYPES[dtype]), *extra_tensors(run.model)]
    write_tensors(directory, tensors)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if run.tokenizer is not None:
      length = run.config.model.max_positions or run.config.data.seq_len
      write_tokenizer(run.tokenizer, epath.Path(directory), config["model_type"], length)
  size = sum(tensor.nbytes for tensor in tensors)
  seconds = time.monotonic() - begin
  (architecture,) = config["architectures"]
  what = COMPUTES.get(config["model_type"], "")
  log.info("step %d as %s%s: %s in %s, %.1f s", run.step, architecture, what, human_bytes(size), out, seconds)
  log.info('to load it: from transformers import %s; %s.from_pretrained("%s")', architecture, architecture, out)


def simplified(run: Run) -> Run:
  """The run with an equivalent model that the counterpart can express."""
  config = run.model.config
  simpler, params = table_of_model(run.model.family, config).simplify(config, flat(run.params))
  if simpler.token_types < config.token_types:
    log.info(
      "the class in transformers has no token types: the embedding of type 0 is added to that of each token, and the "
      "other types are left out"
    )
  return dataclasses.replace(run, model=dataclasses.replace(run.model, config=simpler), params=nested(params))


def config_json(run: Run, dtype: str, origin: Mapping[str, Any]) -> dict[str, Any]:
  """config.json of a run's model. `origin`: what its import recorded. Raises UserError."""
  theirs = config_to(run.model.config, run.config.family, origin.get("architecture", ""))
  if run.model.vocab_size:
    theirs = {**_special_ids(run), **theirs, "vocab_size": run.model.vocab_size}
  same_tokens = not run.config.tokenizer.path
  return {**theirs, **(origin.get("token_ids", {}) if same_tokens else {}), "dtype": dtype}


def _special_ids(run: Run) -> dict[str, Any]:
  """The ids of special tokens, None where the tokenizer has none, and the id with which a decoder starts."""
  names = {f"{name}_token_id": f"{name}_id" for name in ("pad", "bos", "eos")}
  ids = {key: getattr(run.tokenizer, name, -1) for key, name in names.items()}
  special: dict[str, Any] = {key: id if id >= 0 else None for key, id in ids.items()}
  if run.model.encoder_decoder:
    # As the objective starts targets; T5's padding is 0.
    start = special[f"{OBJECTIVES[run.config.objective.name].targets_begin}_token_id"]
    special["decoder_start_token_id"] = next((id for id in (start, special["pad_token_id"]) if id is not None), 0)
  return special


def new_tensors(model: Model, params: Any, dtype: np.dtype) -> Iterator[NewTensor]:
  """The tensors of the export under their names; the values of each are computed when it is written."""
  table = table_of_model(model.family, model.config)
  config, leaves = model.config, flat(params)
  shapes = {path: leaf.shape for path, leaf in leaves.items()}
  prefix = table.prefix if config.head.name in ("none", "pooled") else ""
  for entry in table.entries(config):
    if entry.ours[0] not in shapes:
      continue
    for layer in entry.layers(shapes):
      if not entry.exists(config, layer):
        continue
      name = entry.name(layer).removeprefix(prefix)
      shape = entry.shape(shapes, model.vocab_size, config.image.patch)
      yield NewTensor(name, shape, dtype, _maker(model, entry, layer, leaves, dtype))
      if not config.tied and entry.of_head:
        for other in (alias for alias, standard in table.aliases(config).items() if standard == name):
          yield NewTensor(other, shape, dtype, _maker(model, entry, layer, leaves, dtype))


def extra_tensors(model: Model) -> Iterator[NewTensor]:
  """Tensors that are no parameters here, without which transformers would warn; always float32."""
  table = table_of_model(model.family, model.config)
  prefix = table.prefix if model.config.head.name in ("none", "pooled") else ""
  for name, x in table.extras(model.config).items():
    yield NewTensor(name.removeprefix(prefix), x.shape, DTYPES["float32"], functools.partial(np.asarray, x))


def _maker(model: Model, entry: Entry, layer: int | None, leaves: Params, dtype: np.dtype) -> Callable[[], np.ndarray]:
  """The function that computes one tensor."""

  def compute() -> np.ndarray:
    parts = [np.asarray(leaves[path]) if layer is None else np.asarray(leaves[path])[layer] for path in entry.ours]
    return np.ascontiguousarray(entry.export(parts, model.vocab_size, model.config.image.patch), dtype)

  return compute


def tensors_of(model: Model, tree: Any) -> dict[str, np.ndarray]:
  """A tree like the model's parameters (or their gradients) under the names and in the forms of the export."""
  return {tensor.name: tensor.make() for tensor in new_tensors(model, tree, DTYPES["float32"])}
