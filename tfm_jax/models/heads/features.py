"""Heads that return the hidden states."""

from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Arrays, Batch, Head, Output, Outputs, Seen
from tfm_jax.models.heads.parts import pooled
from tfm_jax.sharding.placement import Placement


def apply_none(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """The hidden states."""
  return {"hidden": Output(h_BTD)}


def apply_pooled(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """The hidden states, and one vector per row."""
  return {"hidden": Output(h_BTD), "pooled": Output(pooled(c, st, h_BTD, seen))}


def predict(c: ModelConfig, outputs: Arrays, batch: Batch) -> dict[str, Array]:
  """The outputs unchanged."""
  return dict(outputs)


NONE = Head(apply_none, predict)
POOLED = Head(apply_pooled, predict)
