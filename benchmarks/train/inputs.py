"""What both sides read: batches of real text, the initial weights as transformers loads them, and the optimizer.

It is a worker of its own, so that the process that orders the blocks stays small.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.train.serve import serve

Batch = dict[str, np.ndarray]


def write_batches(
  config: str, overrides: dict[str, Any], count: int, folder: str, joined: bool = True
) -> dict[str, Any]:
  """Writes `count` batches of the config's text to `folder`/batches.npz, and describes them.

  Args:
    config: the experiment file.
    overrides: keys that differ from it.
    count: the number of batches.
    folder: an existing folder.
    joined: whether the documents of a row become one segment, as peers that have no packed rows train.
  """
  from tfm_jax.data.prepare import prepare
  from tfm_jax.training.config import load, resolve

  resolved = resolve(load(config, overrides))
  prepared = prepare(resolved.data, resolved.tokenizer, resolved.objective, resolved.seed)
  dataset = prepared.train(resolved.train.batch_size)
  join = _join if joined else lambda batch: batch
  batches = [join(dataset.batch(step)) for step in range(count)]
  arrays = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
  np.savez(Path(folder) / "batches.npz", **arrays)
  segments = list(_segments(arrays))
  return {
    "rows": resolved.train.batch_size,
    "row_tokens": sum(x.shape[-1] for x in segments),
    "useful_tokens_per_step": sum(int((x > 0).sum()) for x in segments) / count,
    "source": resolved.data.path or resolved.data.source,
    "tokenizer_ids": prepared.vocabulary.size,
  }


def write_model(config: str, overrides: dict[str, Any], steps: int, folder: str) -> dict[str, Any]:
  """Writes the initial weights, float32, to `folder`/model, and the optimizer of the first `steps` to training.json."""
  import jax.numpy as jnp

  from tfm_jax.compare.program import build_program
  from tfm_jax.hf.exporting import DTYPES, config_json, extra_tensors, new_tensors, simplified
  from tfm_jax.hf.tensors import write_tensors
  from tfm_jax.training.config import load
  from tfm_jax.training.load import Run
  from tfm_jax.training.optimization.optimizer import schedule

  program = build_program(load(config, overrides | {"model.dtype": "float32"}))
  run = simplified(Run(program.config, program.model, program.init().params, None, 0))
  model = Path(folder) / "model"
  model.mkdir()
  write_tensors(model, [*new_tensors(run.model, run.params, DTYPES["float32"]), *extra_tensors(run.model)])
  (model / "config.json").write_text(json.dumps(config_json(run, "float32", {})))
  rate = schedule(program.config.optimizer, program.config.train.steps)
  settings = {
    "family": program.config.family,
    "optimizer": dataclasses.asdict(program.config.optimizer),
    "rates": [float(rate(jnp.int32(step))) for step in range(max(steps, program.config.optimizer.warmup_steps) + 1)],
  }
  (Path(folder) / "training.json").write_text(json.dumps(settings))
  return {"parameters": program.model.parameter_count()}


def _join(batch: Batch) -> Batch:
  """The batch with all documents of a row as one segment.

  A decoder then predicts the first token of a document from the one before. It does not predict the token after the
  end of the row, which transformers' loss leaves out.
  """
  batch = dict(batch)
  if "segment_ids" not in batch:  # span corruption joins the documents of a row by itself
    return batch
  width = batch["segment_ids"].shape[1]
  real = batch["segment_ids"] > 0
  batch["segment_ids"] = real.astype(np.int32)
  batch["positions"] = np.where(real, np.arange(width, dtype=np.int32), 0).astype(np.int32)
  if "mlm_positions" not in batch:
    batch["weights"] = np.zeros_like(batch["weights"])
    batch["weights"][:, :-1] = real[:, 1:]
  return batch


def _segments(arrays: Batch) -> Iterator[np.ndarray]:
  """The segment ids of each side."""
  return (x for name, x in arrays.items() if name.endswith("segment_ids"))


if __name__ == "__main__":
  serve({"write_batches": write_batches, "write_model": write_model})
