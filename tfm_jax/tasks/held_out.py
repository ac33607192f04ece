"""Evaluation of a run by its own objective: its loss on the rows that it holds out, or on those of another text."""

import dataclasses
import logging
import math
from typing import Any

from tfm_jax.data.config import FILTERS, SourceConfig, eval_key
from tfm_jax.errors import UserError
from tfm_jax.runtime.devices import all_devices, first_device
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.sharding.strategy import ShardingConfig
from tfm_jax.text.corpora.text_files import json_field
from tfm_jax.training.compiled.program import build_program
from tfm_jax.training.config import from_stored
from tfm_jax.training.distill import DistillConfig
from tfm_jax.training.evaluation import evaluate_stream
from tfm_jax.training.load import load_params
from tfm_jax.training.optimization.lora import AdapterConfig
from tfm_jax.training.pretraining import Pretraining
from tfm_jax.training.start import rows_here

log = logging.getLogger(__name__)


def evaluate_objective(
  workdir: str,
  data: str = "",
  targets: str = "",
  step: int | None = None,
  strategy: str | None = None,
  batch_size: int = 0,
) -> dict[str, float]:
  """The metrics that a run of pre-training logs, on all of its held-out rows or on those of another text.

  The rows are packed and masked as in the run, always alike: on the same rows the result is that of the run. All
  processes call it.

  Args:
    workdir: the run.
    data: files in the form of the run's `data.path`, all of which are evaluated, or a split of its data set (of
      TFDS, or saved by Hugging Face's datasets); empty: what the run held out.
    targets: the other side of `data`, of a run on parallel text.
    step: of the checkpoint; None: the best by `eval.metric`, or else the last.
    strategy: shard the parameters over all devices by this strategy; None: one device.
    batch_size: rows of a batch; 0: as in training.

  Returns:
    `step`; `loss`, `perplexity` and what else applies, `rows`, and `bytes` where each token is predicted once: of a
    mixture `eval_NAME/loss` and so on for each source.

  Raises:
    UserError: a run of another task, nothing held out, a mistake in the files, a batch that does not divide, or a loss
      that is not finite.
  """
  run = RunDirectory(workdir)
  config = from_stored(run.read_config())
  if config.task.name:
    raise UserError(
      f"--task=objective is for pre-training, and this run has task.name={config.task.name}: leave it out"
    )
  if targets and not data:
    raise UserError(f"--targets={targets} has the other side of which file? Say --data=FILE too")
  source = config.data
  if data and eval_key(source) == "data.eval_split":
    source = dataclasses.replace(source, eval_split=data)
  elif data:
    # As the text to train on as well, which nothing reads: what is held out of it is all of it, without the filters, by
    # which nothing would be left to train on.
    files: dict[str, Any] = {"path": data, "target_path": targets, "eval_path": data, "eval_target_path": targets}
    kind = "text" if source.mixture or source.source == "embedded" else source.source
    unfiltered = {key: getattr(SourceConfig, key) for key in FILTERS}
    field = json_field(data, source.field) if kind == "text" else source.field
    source = dataclasses.replace(source, source=kind, mixture=(), field=field, **files, **unfiltered)
  size = batch_size or config.train.batch_size
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(source, first_steps=0),
    eval=dataclasses.replace(config.eval, batches=0),
    train=dataclasses.replace(config.train, batch_size=size, ramp_from=0, ramp_steps=0),
    sharding=ShardingConfig(strategy=strategy or "dp"),
    # Checkpoints are read with their adapters merged into the weights, and nothing is learned from a teacher.
    adapter=AdapterConfig(),
    distill=DistillConfig(),
  )
  task = Pretraining(config, run.stored_tokenizer())
  streams = task.eval_streams
  if not streams:
    raise UserError(f"the run in {run.path} holds nothing out: say --data=FILE")
  devices = all_devices() if strategy else [first_device()]
  try:
    program = build_program(config, task.tokenizer.vocab_size, task.fields, devices, task.loss)
  except UserError as error:  # in the user's words: these rows were asked for by a flag
    raise UserError(str(error).replace("train.batch_size", "--batch_size") if batch_size else str(error)) from error
  step, params = load_params(run, program.model, step)
  rows = rows_here(program.placement.sharding(("batch",)), size)
  eval_step, result = program.eval_step(1), {"step": float(step)}
  for split, stream in streams.items():
    metrics = evaluate_stream(program, eval_step, params, task, split, stream, rows)
    if not metrics:
      raise UserError(f"{data or run.path}: there is nothing to predict")
    if not math.isfinite(metrics["loss"]):
      raise UserError(f"{run.path}: the loss of step {step} on {split} is {metrics['loss']}: choose another --step")
    covered = task.evaluated[split]
    metrics |= {"rows": covered.rows, "bytes": covered.text_bytes}
    prefix = "" if len(streams) == 1 else f"{split}/"
    known = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    result |= {f"{prefix}{name}": value for name, value in known.items() if name != "bytes" or value}
  return result
