"""Classification of rows, or regression."""

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Arrays, Batch, Head, Outputs, Seen
from tfm_jax.models.heads.parts import classify, pooled
from tfm_jax.models.heads.terms import class_terms, result
from tfm_jax.objectives.objective import FLOAT, INT, Field, Fields
from tfm_jax.ops.losses import LossConfig, LossTerms
from tfm_jax.sharding.placement import Placement


def apply(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Logits of the classes of each row; a number if `num_labels` is 1."""
  return {"logits": classify(c, st, pooled(c, st, h_BTD, seen), c.head.num_labels)}


def loss(c: ModelConfig, st: Placement, outputs: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """Cross-entropy of the classes, or the squared error of the number."""
  if c.head.num_labels > 1:
    return class_terms(st, "labels", outputs["logits"], batch["targets"], batch["weights"], extras)
  error = jnp.square(result(st, outputs["logits"])[:, 0] - batch["targets"].astype(jnp.float32))
  pairs = {"labels": ((batch["weights"] * error).sum(), batch["weights"].sum())}
  return LossTerms(pairs, pairs, {})


def fields(c: ModelConfig, length: int) -> Fields:
  """One class or number per row."""
  labels = c.head.num_labels
  targets = Field((), INT, "labels", ("batch",), labels) if labels > 1 else Field((), FLOAT, "numbers", ("batch",))
  return {"targets": targets, "weights": Field((), FLOAT, "weights", ("batch",))}


def predict(c: ModelConfig, outputs: Arrays, batch: Batch) -> dict[str, Array]:
  """The class and the probabilities of all classes [B, C]; or the number."""
  y = outputs["logits"]
  if c.head.num_labels == 1:
    return {"value": y[:, 0]}
  return {"class": y.argmax(-1), "probabilities": jax.nn.softmax(y)}


SEQUENCE_CLASSIFICATION = Head(apply, predict, loss, fields)
