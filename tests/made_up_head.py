"""A head in one file, as anybody may add it: several classes per row, each of which holds or does not."""

import jax
import jax.numpy as jnp

from tfm_jax.models.heads.head import Head
from tfm_jax.models.heads.parts import Classifier, pooled
from tfm_jax.models.heads.terms import result, weighted_terms
from tfm_jax.objectives.objective import FLOAT, INT, Field


def apply(c, st, h_BTD, seen):
  return {"logits": Classifier(c, st, c.head.num_labels, name="classifier")(pooled(c, st, h_BTD, seen))}


def loss(c, st, made, batch, extras):
  y_BC, target_BC = result(st, made["logits"]), batch["targets"] > 0
  nll = jnp.logaddexp(0.0, jnp.where(target_BC, -y_BC, y_BC)).mean(1)
  return weighted_terms(nll, ((y_BC > 0) == target_BC).all(1), batch["weights"])


def fields(c, length):
  targets = Field((c.head.num_labels,), INT, "labels", ("batch", None), 2)
  return {"targets": targets, "weights": Field((), FLOAT, "weights", ("batch",))}


def predict(c, made, batch):
  return {"holds": made["logits"] > 0, "probabilities": jax.nn.sigmoid(made["logits"])}


MULTI_LABEL = Head(apply, predict, loss, fields)
