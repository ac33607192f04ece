"""Language modelling: the tokens at all or some positions, and next-sentence prediction."""

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Arrays, Batch, Head, Outputs, Seen
from tfm_jax.models.heads.parts import Classifier, OutputLayer, pooled
from tfm_jax.models.heads.terms import class_terms
from tfm_jax.ops.losses import LossConfig, LossTerms
from tfm_jax.sharding.order import pick
from tfm_jax.sharding.placement import Placement


def apply_lm(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Tokens at all positions or the picked ones."""
  if seen.picked_BP is not None:
    h_BTD = pick(st, h_BTD, seen.picked_BP)
  return {"logits": OutputLayer(c, st, seen.vocab_size, name="head")(h_BTD, seen.table_VE)}


def loss_lm(c: ModelConfig, st: Placement, outputs: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """Cross-entropy of the tokens."""
  side = "" if "targets" in batch else "decoder_"
  return class_terms(st, "labels", outputs["logits"], batch[f"{side}targets"], batch[f"{side}weights"], extras)


def predict_lm(c: ModelConfig, outputs: Arrays, batch: Batch) -> dict[str, Array]:
  """The most likely token at each position, and its probability."""
  log_p = jax.nn.log_softmax(outputs["logits"])
  return {"tokens": log_p.argmax(-1), "probabilities": jnp.exp(log_p.max(-1))}


def apply_pretraining(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Tokens, and whether the second text of a row follows the first (0) or not (1) (Devlin et al. 2018)."""
  following = Classifier(c, st, 2, name="next_sentence")(pooled(c, st, h_BTD, seen))
  return apply_lm(c, st, h_BTD, seen) | {"next_sentence": following}


def loss_pretraining(c: ModelConfig, st: Placement, outputs: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """Cross-entropy of the tokens plus, if the batch has the field, that of the next sentence.

  Without it the parameters `pooler` and `next_sentence` are not trained.
  """
  tokens = loss_lm(c, st, outputs, batch, extras)
  if "next_sentence" not in batch:
    return tokens
  labels = batch["next_sentence"]
  # Rows of padding, which fill up a batch, do not count.
  real = (batch["segment_ids"] != 0).any(1) if "segment_ids" in batch else jnp.ones(labels.shape, bool)
  weights = real.astype(jnp.float32)
  name = "next_sentence"
  return tokens | class_terms(st, name, outputs[name], labels, weights, LossConfig(), accuracy=f"{name}_accuracy")


def predict_pretraining(c: ModelConfig, outputs: Arrays, batch: Batch) -> dict[str, Array]:
  """The most likely tokens, and the probability that the second text follows the first."""
  return predict_lm(c, outputs, batch) | {"follows": jax.nn.softmax(outputs["next_sentence"])[..., 0]}


LM = Head(apply_lm, predict_lm, loss_lm)
PRETRAINING = Head(apply_pretraining, predict_pretraining, loss_pretraining)
