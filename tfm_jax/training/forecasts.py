"""Which train step a configuration stands for, and the forecast of it that somebody made before."""

import hashlib
import json
import logging

from tfm_jax.runtime import ledger
from tfm_jax.training.compiled.program import Program
from tfm_jax.training.config import MODEL_SECTIONS, Config, flat, to_dict

log = logging.getLogger(__name__)

# Keys that change the work of a step. The mesh and the number of microbatches are compared beside them; the strategy
# and remat belong to the work, as the same mesh serves several strategies.
_SECTIONS = (*MODEL_SECTIONS, "objective", "loss", "adapter")
_KEYS = (
  "family",
  "tokenizer.kind",
  "tokenizer.vocab_size",
  "data.seq_len",
  "data.target_len",
  "data.packing",
  "optimizer.name",
  "train.batch_size",
  "train.ema",
  "sharding.strategy",
)


def workload(config: Config) -> str:
  """A hash of the keys of a resolved configuration that change the work of a train step."""
  keys = {k: v for k, v in flat(to_dict(config)).items() if k in _KEYS or k.split(".")[0] in _SECTIONS}
  return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:16]


def forecast_seconds(program: Program, microbatches: int) -> float | None:
  """The step time that was forecast for this program, which the log then names; None if nobody made a forecast."""
  mesh = program.placement.mesh
  kind = mesh.devices.flat[0].device_kind
  entry = ledger.forecast_of(workload(program.config), dict(mesh.shape), kind, microbatches)
  if entry is None:
    return None
  seconds = float(entry["forecast_step_seconds"]["total"])
  log.info("forecast of %s: %.4g s per step (%s, %s)", entry["time"], seconds, entry["topology"], entry["strategy"])
  return seconds
