"""Heads over several sequences per row: the candidates of a choice, or two texts whose vectors are compared.

Batches have `inputs` [B, C, T], and so on; the model reads B x C sequences.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Arrays, Batch, Head, Output, Outputs, Seen
from tfm_jax.models.heads.parts import classify, pooled
from tfm_jax.models.heads.terms import contrast, result, weighted_terms
from tfm_jax.objectives.objective import FLOAT, INT, Field, Fields
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossConfig, LossTerms
from tfm_jax.sharding.placement import Placement

TEMPERATURE = 0.05
"""Of the contrastive loss (Gao et al. 2021)."""


def flatten(batch: Any, noise: Noise | None) -> tuple[dict[str, Array], Noise | None]:
  """The sequences of all rows as rows of their own, which have dropout of their own."""
  members = batch["inputs"].shape[1]
  flat = {
    name: jnp.reshape(batch[name], (-1, batch[name].shape[-1]))
    for name in ("inputs", "segment_ids", "positions", "token_types")
    if name in batch
  }
  if noise is not None:
    noise = noise._replace(rows_B=(noise.rows_B[:, None] * members + jnp.arange(members)[None]).reshape(-1))
  return flat, noise


def grouped(field: Field, members: int) -> Field:
  """The field of the sequences, for rows of several."""
  return field._replace(shape=(members, *field.shape), axes=(field.axes[0], None, *field.axes[1:]))


def apply_choice(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """One score per sequence."""
  return {"logits": classify(c, st, pooled(c, st, h_BTD, seen), 1)._replace(squeezed=True)}


def loss_choice(c: ModelConfig, st: Placement, outputs: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """Cross-entropy of the right candidate among those of its row."""
  log_p = jax.nn.log_softmax(result(st, outputs["logits"]).reshape(batch["inputs"].shape[:2]))
  nll = -jnp.take_along_axis(log_p, batch["targets"][:, None], 1)[:, 0]
  return weighted_terms(nll, log_p.argmax(1) == batch["targets"], batch["weights"])


def fields_choice(c: ModelConfig, length: int) -> Fields:
  """The number of the right candidate, from 0."""
  return {
    "targets": Field((), INT, "labels", ("batch",), c.head.num_labels),
    "weights": Field((), FLOAT, "weights", ("batch",)),
  }


def predict_choice(c: ModelConfig, outputs: Arrays, batch: Batch) -> dict[str, Array]:
  """The likeliest candidate of each row, and the probabilities of all [B, C]."""
  y = outputs["logits"].reshape(batch["inputs"].shape[:2])
  return {"class": y.argmax(-1), "probabilities": jax.nn.softmax(y)}


def apply_vectors(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """One vector per sequence."""
  return {"vectors": Output(pooled(c, st, h_BTD, seen))}


def loss_vectors(c: ModelConfig, st: Placement, outputs: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """Squared error of the cosine, where `num_labels` is 1; otherwise the contrastive loss.

  The contrastive loss is the cross-entropy of the second text of each row among those of all rows (van den Oord et al.
  2018): of the batch, or of its part if it is computed in parts.
  """
  vectors = _unit(result(st, outputs["vectors"]), batch)
  weights = batch["weights"]
  if c.head.num_labels == 1:
    error = jnp.square((vectors[:, 0] * vectors[:, 1]).sum(-1) - batch["targets"])
    pairs = {"labels": ((weights * error).sum(), weights.sum())}
    return LossTerms(pairs, pairs, {})
  real = (batch["segment_ids"] != 0).any((1, 2)) if "segment_ids" in batch else jnp.ones(len(weights), bool)
  y_BA = jnp.einsum("BD,AD->BA", vectors[:, 0], vectors[:, 1], precision="highest") / TEMPERATURE
  nll, right = contrast(y_BA, real)
  return weighted_terms(nll, right, weights)


def fields_vectors(c: ModelConfig, length: int) -> Fields:
  """How similar the two texts are; of the contrastive loss, nothing."""
  return {"targets": Field((), FLOAT, "numbers", ("batch",)), "weights": Field((), FLOAT, "weights", ("batch",))}


def predict_vectors(c: ModelConfig, outputs: Arrays, batch: Batch) -> dict[str, Array]:
  """The cosine of the two vectors, and both [B, 2, D], of length 1."""
  vectors = _unit(outputs["vectors"], batch)
  return {"value": (vectors[:, 0] * vectors[:, 1]).sum(-1), "vectors": vectors}


def _unit(vectors: Array, batch: Batch) -> Array:
  """float32 [B, C, D], of length 1."""
  vectors = vectors.reshape(*batch["inputs"].shape[:2], -1)
  return vectors * jax.lax.rsqrt(jnp.square(vectors).sum(-1, keepdims=True) + 1e-12)


MULTIPLE_CHOICE = Head(apply_choice, predict_choice, loss_choice, fields_choice, grouped=True)
SIMILARITY = Head(apply_vectors, predict_vectors, loss_vectors, fields_vectors, grouped=True)
