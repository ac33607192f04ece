"""Question answering: where in a row the answer starts and ends (Rajpurkar et al. 2016)."""

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Arrays, Batch, Head, Outputs, Seen
from tfm_jax.models.heads.parts import classify
from tfm_jax.models.heads.terms import result, weighted_terms
from tfm_jax.objectives.objective import FLOAT, INT, Field, Fields
from tfm_jax.ops.losses import LossConfig, LossTerms
from tfm_jax.sharding.placement import Placement


def apply(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Logits of the answer starting and of it ending at each token."""
  return {"logits": classify(c, st, h_BTD, 2)}


def loss(c: ModelConfig, st: Placement, outputs: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """Mean of the cross-entropies of start and end, over all positions of a row including padding, as is usual."""
  log_p = jax.nn.log_softmax(result(st, outputs["logits"]), axis=1)  # [B, T, 2]
  hit = jnp.arange(log_p.shape[1])[None, :, None] == batch["targets"][:, None, :]
  nll = -jnp.where(hit, log_p, 0.0).sum(1).mean(1)
  return weighted_terms(nll, (log_p.argmax(1) == batch["targets"]).all(1), batch["weights"])


def fields(c: ModelConfig, length: int) -> Fields:
  """The positions of start and end."""
  targets = Field((2,), INT, "labels", ("batch", None), length)
  return {"targets": targets, "weights": Field((), FLOAT, "weights", ("batch",))}


def predict(c: ModelConfig, outputs: Arrays, batch: Batch) -> dict[str, Array]:
  """The most likely span outside padding with start <= end, its probability, and log-probabilities.

  `log_probabilities` [B, T, 2] are those of each token being the start and the end.
  """
  y = outputs["logits"]
  if "segment_ids" in batch:
    y = jnp.where(batch["segment_ids"][:, :, None] != 0, y, -1e30)
  log_p = jax.nn.log_softmax(y, axis=1)
  spans_BTT = log_p[:, :, None, 0] + log_p[:, None, :, 1]  # start, end
  T = y.shape[1]
  ordered = jnp.where(jnp.triu(jnp.ones((T, T), bool)), spans_BTT, -jnp.inf).reshape(-1, T * T)
  best = ordered.argmax(-1)
  span = {"start": best // T, "end": best % T, "probability": jnp.exp(ordered.max(-1))}
  return {**span, "log_probabilities": log_p}


QUESTION_ANSWERING = Head(apply, predict, loss, fields)
