"""Language models: the tokens at all positions or some, and whether the second text of a row follows the first."""

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Arrays, Batch, Head, Outputs, Seen
from tfm_jax.models.heads.parts import Classifier, OutputLayer, pick, pooled
from tfm_jax.models.heads.terms import class_terms
from tfm_jax.ops.losses import LossConfig, LossTerms
from tfm_jax.sharding.placement import Placement


def apply_lm(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Tokens, at all positions or the picked ones."""
  if seen.picked_BP is not None:
    h_BTD = pick(h_BTD, seen.picked_BP)
  return {"logits": OutputLayer(c, st, seen.vocab_size, name="head")(h_BTD, seen.table_VE)}


def loss_lm(c: ModelConfig, st: Placement, made: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """Cross-entropy of the tokens."""
  side = "" if "targets" in batch else "decoder_"
  return class_terms(st, "labels", made["logits"], batch[f"{side}targets"], batch[f"{side}weights"], extras)


def predict_lm(c: ModelConfig, made: Arrays, batch: Batch) -> dict[str, Array]:
  """The likeliest token at each position, and how likely it is."""
  log_p = jax.nn.log_softmax(made["logits"])
  return {"tokens": log_p.argmax(-1), "probabilities": jnp.exp(log_p.max(-1))}


def apply_pretraining(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Tokens, and whether the second text of a row follows the first (0) or not (1) (Devlin et al. 2018)."""
  following = Classifier(c, st, 2, name="next_sentence")(pooled(c, st, h_BTD, seen))
  return apply_lm(c, st, h_BTD, seen) | {"next_sentence": following}


def loss_pretraining(c: ModelConfig, st: Placement, made: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """Cross-entropy of the tokens, and of the next sentence if the batch has the field: their means are added.

  Without it the parameters `pooler` and `next_sentence` are not trained.
  """
  tokens = loss_lm(c, st, made, batch, extras)
  if "next_sentence" not in batch:
    return tokens
  labels = batch["next_sentence"]
  # Rows that only fill up a batch count nothing.
  real = (batch["segment_ids"] != 0).any(1) if "segment_ids" in batch else jnp.ones(labels.shape, bool)
  weights = real.astype(jnp.float32)
  name = "next_sentence"
  return tokens | class_terms(st, name, made[name], labels, weights, LossConfig(), accuracy=f"{name}_accuracy")


def predict_pretraining(c: ModelConfig, made: Arrays, batch: Batch) -> dict[str, Array]:
  """The likeliest tokens, and how likely the second text follows the first."""
  return predict_lm(c, made, batch) | {"follows": jax.nn.softmax(made["next_sentence"])[..., 0]}


LM = Head(apply_lm, predict_lm, loss_lm)
PRETRAINING = Head(apply_pretraining, predict_pretraining, loss_pretraining)
