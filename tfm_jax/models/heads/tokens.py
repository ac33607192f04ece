"""Classification of tokens, and replaced-token detection."""

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Arrays, Batch, Head, Outputs, Seen
from tfm_jax.models.heads.parts import Classifier, classify
from tfm_jax.models.heads.terms import class_terms, result, weighted_terms
from tfm_jax.models.layers import Dense
from tfm_jax.objectives.objective import Fields, along_row
from tfm_jax.ops.losses import LossConfig, LossTerms
from tfm_jax.sharding.placement import Placement


def apply_classes(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Classes of each token."""
  return {"logits": classify(c, st, h_BTD, c.head.num_labels)}


def loss_classes(c: ModelConfig, st: Placement, outputs: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """Cross-entropy of the classes."""
  return class_terms(st, "labels", outputs["logits"], batch["targets"], batch["weights"], extras)


def fields_classes(c: ModelConfig, length: int) -> Fields:
  """One class per token."""
  return {"targets": along_row(length, "labels", c.head.num_labels), "weights": along_row(length, "weights")}


def predict_classes(c: ModelConfig, outputs: Arrays, batch: Batch) -> dict[str, Array]:
  """Each token's class [B, T], and the probabilities of all classes [B, T, C]."""
  return {"classes": outputs["logits"].argmax(-1), "probabilities": jax.nn.softmax(outputs["logits"])}


def apply_replaced(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Whether each token was replaced (Clark et al. 2020)."""
  h_BTD = Dense(c, st, c.embed_dim, c.activation, name="dense")(h_BTD)
  return {"logits": Classifier(c, st, 1, name="classifier")(h_BTD)._replace(squeezed=True)}


def loss_replaced(c: ModelConfig, st: Placement, outputs: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """Binary cross-entropy of each token."""
  y, target = result(st, outputs["logits"]), batch["targets"] > 0
  return weighted_terms(jnp.logaddexp(0.0, jnp.where(target, -y, y)), (y > 0) == target, batch["weights"])


def fields_replaced(c: ModelConfig, length: int) -> Fields:
  """1 for each token that was replaced."""
  return {"targets": along_row(length, "labels", 2), "weights": along_row(length, "weights")}


def predict_replaced(c: ModelConfig, outputs: Arrays, batch: Batch) -> dict[str, Array]:
  """Whether each token was replaced [B, T], and how probably."""
  return {"replaced": outputs["logits"] > 0, "probabilities": jax.nn.sigmoid(outputs["logits"])}


def loss_electra(c: ModelConfig, st: Placement, outputs: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """The generator's cross-entropy of masked tokens, and `loss.replaced` times the model's of all tokens, which it reads
  as the generator left them.

  Among the metrics, `original` is the share of tokens that are those of the text: the accuracy of a model that never
  finds any replaced. `replaced_recall` is the share of the replaced ones that are found.
  """
  generator = class_terms(st, "labels", outputs["generator"], batch["targets"], batch["weights"], extras)
  y, replaced = result(st, outputs["logits"]), result(st, outputs["replaced"])
  real = (batch["segment_ids"] != 0).astype(jnp.float32) if "segment_ids" in batch else jnp.ones_like(y)
  nll = jnp.logaddexp(0.0, jnp.where(replaced > 0, -y, y))
  total, count, found = (real * nll).sum(), real.sum(), (y > 0).astype(jnp.float32)
  metrics = {
    "replaced_accuracy": ((real * (found == replaced)).sum(), count),
    "replaced_recall": ((real * replaced * found).sum(), (real * replaced).sum()),
    "original": ((real * (1 - replaced)).sum(), count),
  }
  return generator | LossTerms({"replaced": (extras.replaced * total, count)}, {"replaced": (total, count)}, metrics)


TOKEN_CLASSIFICATION = Head(apply_classes, predict_classes, loss_classes, fields_classes)
REPLACED_TOKEN_DETECTION = Head(apply_replaced, predict_replaced, loss_replaced, fields_replaced)
ELECTRA = Head(apply_replaced, predict_replaced, loss_electra, generates=True)
