"""How far a run had been trained at each of its records: tokens, FLOP and seconds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfm_jax.runtime.run_directory import RunDirectory

COUNTED = {"tokens": "tokens", "FLOP": "flop"}  # axis -> its name in the records of training steps


def logged_progress(run: RunDirectory) -> list[dict[str, Any]]:
  """The records of a run, see `with_progress`. Raises UserError if a file of it is damaged."""
  return with_progress(run.read_metrics(), _flop_per_token(run))


def progress_at(run: RunDirectory, step: int) -> tuple[float, float]:
  """(tokens, FLOP) of the training of a run up to a step, which need not have a record; 0 if unknown."""
  at = with_progress([*run.read_metrics(), {"step": step, "split": ""}], _flop_per_token(run))[-1]
  return at.get("tokens", 0.0), at.get("FLOP", 0.0)


def _flop_per_token(run: RunDirectory) -> float:
  """Operations of a step of the last training start, divided by the positions of its batch; 0: unknown."""
  known = [entry for entry in run.starts() if entry.get("step_flop") and entry.get("step_tokens")]
  return known[-1]["step_flop"] / known[-1]["step_tokens"] if known else 0.0


def with_progress(records: Sequence[Mapping[str, Any]], flop_per_token: float) -> list[dict[str, Any]]:
  """The records, each with the `tokens`, `FLOP` and `seconds` of training up to its step, as far as they are known.

  Only some steps have records: those between two stand for as much as the later one, unless that has counted them, as
  it has tokens and FLOP. Seconds are those of training steps alone: evaluations and checkpoints are no part of them.

  Args:
    records: by ascending step in each split.
    flop_per_token: operations of a training step, divided by the positions of its batch; 0: unknown.
  """
  measured = [r for r in records if r["split"] == "train" and r.get("tokens_per_second") and r.get("step_seconds")]
  if not measured:
    return [dict(record) for record in records]
  ends = np.array([0.0, *(r["step"] for r in measured)])
  seconds = np.array([r["step_seconds"] for r in measured])
  tokens = seconds * [r["tokens_per_second"] for r in measured]
  steps = np.array([record["step"] for record in records], np.float64)
  progress = {}
  for axis, rate in {"tokens": tokens, "FLOP": tokens * flop_per_token, "seconds": seconds}.items():
    counted = [r.get(COUNTED.get(axis, "")) for r in measured]
    total = np.concatenate([[0.0], np.cumsum(np.diff(ends) * rate)])
    total[1:] = [here if own is None else own for own, here in zip(counted, total[1:], strict=True)]
    if total[-1]:
      beyond = np.maximum(steps - ends[-1], 0.0) * (total[-1] - total[-2]) / (ends[-1] - ends[-2])
      progress[axis] = np.interp(steps, ends, total) + beyond
  return [
    {**record, **{axis: float(values[i]) for axis, values in progress.items()}} for i, record in enumerate(records)
  ]
