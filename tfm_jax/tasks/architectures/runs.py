"""The runs of a comparison of architectures, and what is measured on each."""

import dataclasses
import functools
import json
import logging
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.models.heads.terms import result
from tfm_jax.models.model import Model
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.tasks.architectures.plan import Entry, Plan
from tfm_jax.tasks.evaluate import read_predictions
from tfm_jax.tasks.labelled.task import LabelledTask
from tfm_jax.tasks.scores import score
from tfm_jax.tasks.sweeps.worker import RESULT, replace
from tfm_jax.tasks.table import find_task
from tfm_jax.training.compiled.memory import peak_bytes
from tfm_jax.training.compiled.program import build_program
from tfm_jax.training.config import Config, from_stored, to_dict
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit
from tfm_jax.training.pretraining import Pretraining

log = logging.getLogger(__name__)

MEASURES = "measures.json"  # in the directory of a pre-training, once it is finished and measured


@dataclasses.dataclass(frozen=True)
class Measures:
  """What is measured on a pre-training.

  Attributes:
    metrics: of the last evaluation, or of the best one by `eval.metric`.
    curve: (step, loss) of every evaluation.
    tokens_per_second: median over the steps with a record; positions of all rows, padding included.
    step_seconds: the same of the time of a step.
    memory: peak bytes of the compiled train step on one device, 0 if its compiler does not say.
    places: (first place, last place, loss, targets): the held-out loss of targets by the number of tokens before them
      in their document and row.
  """

  metrics: Mapping[str, float]
  curve: list[tuple[int, float]]
  tokens_per_second: float
  step_seconds: float
  memory: float
  places: list[tuple[int, int, float, float]]


@dataclasses.dataclass(frozen=True)
class Result:
  """An entry of the plan, its measures, the scores of each task by seed, and the examples that a score covers."""

  entry: Entry
  measures: Measures
  scores: Mapping[str, list[float]]
  examples: Mapping[str, int]


def run_plan(plan: Plan, folder: Path) -> list[Result]:
  """Trains and measures whatever the folder does not have yet. Raises what `fit` raises."""
  results = []
  for entry in plan.entries:
    workdir = folder / entry.folder / "pretraining"
    log.info("%s at equal %s: %s", entry.name, entry.equal, workdir)
    measures = _pretrained(entry.config, workdir)
    scores: dict[str, list[float]] = {task: [] for task in entry.tuned}
    examples: dict[str, int] = {}
    for task, config in entry.tuned.items():
      for seed in range(plan.seeds):
        tuned = dataclasses.replace(config, seed=seed, init_from=str(workdir))
        content = scores_of(tuned, folder / entry.folder / f"{task}_{seed}")
        scores[task].append(float(content["metrics"][plan.metrics[task]]))
        examples[task] = content["examples"]
    results.append(Result(entry, measures, scores, examples))
  return results


def scores_of(config: Config, workdir: Path) -> dict[str, Any]:
  """The scores of a fine-tuning as `metrics`, and the number of `examples`; it runs unless it is finished.

  They are those of the predictions at its end, which cover all held-out examples. The evaluations of a task that
  generates cover some of them (`eval.generate_examples`), and other architectures' evaluations all.
  """
  stored = _read(workdir / RESULT, config)
  if stored is not None:
    return stored
  task = find_task(config.task.name)
  assert issubclass(task, LabelledTask)  # the plan has only such
  fit(config, workdir, task)
  jax.clear_caches()
  rows = [row for row in read_predictions(str(workdir)) if row["label"] is not None]
  content = {"metrics": score(task.form_of(config), rows, intervals=False), "examples": len(rows)}
  _write(workdir / RESULT, config, content)
  return content


def _pretrained(config: Config, workdir: Path) -> Measures:
  """The measures of a pre-training, which runs unless it is finished."""
  stored = _read(workdir / MEASURES, config)
  if stored is not None:
    return Measures(**stored)
  measures = measured(workdir, fit(config, workdir))
  jax.clear_caches()
  _write(workdir / MEASURES, config, dataclasses.asdict(measures))
  return measures


def _read(path: Path, config: Config) -> dict[str, Any] | None:
  """What was stored for this configuration; None: nothing, or that of another one, which `fit` then refuses by name."""
  content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
  return content if content and content.pop("config") == json.loads(json.dumps(to_dict(config))) else None


def _write(path: Path, config: Config, content: Mapping[str, Any]) -> None:
  replace(path, json.dumps({"config": to_dict(config), **content}, indent=2) + "\n")


def measured(workdir: Path, metrics: Mapping[str, float]) -> Measures:
  """The measures of a finished pre-training. `metrics`: what `fit` returned, of the parameters that are loaded."""
  directory = RunDirectory(workdir)
  records = directory.read_metrics()
  held_out = [record for record in records if record["split"] == "eval"]
  steps = [record for record in records if record["split"] == "train" and record["step"] > 1]
  steps = steps or [record for record in records if record["split"] == "train"]
  median = lambda name: statistics.median(record[name] for record in steps)
  run = load_run(workdir)
  config = from_stored(directory.read_config())
  task = Pretraining(config, directory.stored_tokenizer())
  program = build_program(config, task.tokenizer.vocab_size, task.fields)
  # The last start may have found the run finished; it has none then.
  microbatches = next((start["microbatches"] for start in reversed(directory.starts()) if start["microbatches"]), 1)
  return Measures(
    dict(metrics),
    [(record["step"], record["loss"]) for record in held_out],
    median("tokens_per_second"),
    median("step_seconds"),
    peak_bytes(program.compile(microbatches), program.placement.platform),
    loss_by_place(run.model, run.params, task),
  )


def loss_by_place(model: Model, params: Any, task: Pretraining) -> list[tuple[int, int, float, float]]:
  """The held-out loss by the number of tokens before the target's place in its document: see `Measures`.

  Bins are 0, 1, 2 to 3, 4 to 7, ...; those without targets are left out. In an encoder-decoder they are the decoder's.
  """
  total: Any = None
  for batch in task.eval_streams["eval"](None):
    sums = jax.device_get(_place_sums(model, params, batch))
    total = sums if total is None else jax.tree.map(np.add, total, sums)
  losses, weights = total
  bins = []
  first = 0
  while first < len(losses):
    last = min(max(2 * first - 1, first), len(losses) - 1)
    weight = float(weights[first : last + 1].sum(dtype=np.float64))
    if weight:
      bins.append((first, last, float(losses[first : last + 1].sum(dtype=np.float64)) / weight, weight))
    first = last + 1
  return bins


@functools.partial(jax.jit, static_argnums=0)
def _place_sums(model: Model, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
  """(sum of losses, sum of weights) of the targets at each place, [L + 1]."""
  side = "" if "targets" in batch else "decoder_"
  targets, weights = batch[f"{side}targets"], batch[f"{side}weights"]
  B, L = batch[f"{side}inputs"].shape
  places = jnp.broadcast_to(batch.get(f"{side}positions", jnp.arange(L)[None]), (B, L))
  if "mlm_positions" in batch:
    places = jnp.take_along_axis(places, batch["mlm_positions"], axis=1)
  elif not side:
    places = places + 1  # what is predicted follows the input; a decoder beside an encoder begins with no token of text
  output = model.apply(params, batch)["logits"]

  def row_nll(row: tuple[Array, Array]) -> Array:
    h_PD, targets_P = row
    log_p = jax.nn.log_softmax(result(model.placement, output._replace(h=h_PD[None]))[0])
    return -jnp.take_along_axis(log_p, targets_P[:, None], axis=-1)[:, 0]

  nll = jax.lax.map(row_nll, (output.h, targets))  # the logits of all rows together are large
  zeros = jnp.zeros(L + 1, jnp.float32)
  return zeros.at[places].add(nll * weights), zeros.at[places].add(weights)
