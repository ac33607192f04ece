"""The loss of a model: the function that the head of the model declares."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.errors import UserError
from tfm_jax.models.config import ExpertsConfig
from tfm_jax.models.heads.head import ROUTING, LossOfHead
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.heads.terms import result
from tfm_jax.models.model import Model
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossConfig, LossTerms
from tfm_jax.training.distill import LESSON, Lesson, cosine_terms

Batch = Mapping[str, Any]
_OTHER = np.uint32(0x9E3779B9)  # changes the seed of the second dropout masks
LossFunction = Callable[[Any, Batch, Noise | None], LossTerms]


def make_loss(model: Model, config: LossConfig, of_head: LossOfHead | None = None) -> LossFunction:
  """The function (params, batch, noise) -> `LossTerms`: named sums over the batch, and their weights.

  Args:
    model: the model; its head has the loss.
    config: label smoothing and z-loss. They apply in training only, that is if `noise` is not None.
    of_head: takes the place of the loss that the head declares (`models.heads.head.Head.loss`).

  Returns:
    A function whose batch has the fields that the model reads, and the labels: those of the objective, or those that
    the head declares. From the `Lesson` of a teacher in the batch it learns as well.

  Raises:
    ValueError: the head has no loss.
    UserError: `loss.r_drop` is set, and the head does not classify rows.
  """
  name = model.config.head.name
  loss_of_head = of_head or HEADS[name].loss
  if loss_of_head is None:
    raise ValueError(f"head.name={name} has no loss: it has no targets to learn from")

  if config.r_drop and (name != "sequence_classification" or model.config.head.num_labels < 2):
    raise UserError(f"loss.r_drop={config.r_drop:g} is for heads that classify rows: set it to 0")

  def loss(params: Any, batch: Batch, noise: Noise | None) -> LossTerms:
    extras = config if noise is not None else LossConfig()
    lesson: Lesson | None = batch.get(LESSON)
    compares = lesson is not None and lesson.hidden_BTD is not None
    outputs = model.apply(params, batch, noise, hidden=compares)
    if lesson is not None:
      outputs = outputs | {"logits": outputs["logits"]._replace(soft=lesson.soft)}
    terms = loss_of_head(model.config, model.placement, outputs, batch, extras)
    if lesson is not None:
      terms = terms | cosine_terms(outputs["hidden"].h, lesson, batch) if compares else terms
    elif noise is not None and config.r_drop:
      others = model.apply(params, batch, noise._replace(seed=noise.seed ^ _OTHER))
      other_terms = loss_of_head(model.config, model.placement, others, batch, extras)
      y, z = (result(model.placement, each["logits"]) for each in (outputs, others))
      terms = _r_drop(terms, other_terms, y, z, batch["weights"], config.r_drop)
    for name in (f"encoder_{ROUTING}", ROUTING):
      if name in outputs:
        terms = terms | routing_terms(
          model.config.experts, name.removesuffix(ROUTING), outputs[name].h, noise is not None
        )
    return terms

  return loss


def routing_terms(config: ExpertsConfig, side: str, routing: Array, training: bool) -> LossTerms:
  """The terms of experts: two losses, which are summed over layers, and reports, which are means over layers.

  `balance` of a layer is the mean, over the tokens of the batch, of E * sum over experts of f * P, where f and P are of
  the token's own row: see `ops.experts.balance_B`. The published loss multiplies means over all tokens that a device
  has at a time, and so depends on their number. This one is a sum over rows, like every other term, and so the same
  under any sharding and any number of microbatches. An even load gives 1.

  Args:
    config: the factors of the losses.
    side: beginning of the names of the terms: "encoder_" for that of an encoder-decoder.
    routing: sums [4, N]: see `heads.head.ROUTING`.
    training: add the losses, and report `dropped`, the share of the choices of an expert that found no place. Otherwise
      none is dropped.
  """
  balance_N, z_N, dropped_N, tokens_N = routing
  tokens, layers = jax.lax.stop_gradient(tokens_N[0]), len(tokens_N)
  names = (f"{side}balance", f"{side}router_z")
  sums = dict(zip(names, (balance_N.sum(), z_N.sum()), strict=True))
  metrics = {name: (value / layers, tokens) for name, value in sums.items()}
  if not training:
    return LossTerms({}, {}, metrics)
  metrics[f"{side}dropped"] = (dropped_N.sum() / (layers * config.top_k), tokens)
  factors = dict(zip(names, (config.balance, config.z_loss), strict=True))
  return LossTerms({name: (factors[name] * sums[name], tokens) for name in names if factors[name]}, {}, metrics)


def _r_drop(terms: LossTerms, other: LossTerms, y_BC: Array, z_BC: Array, weights_B: Array, factor: float) -> LossTerms:
  """R-Drop (Liang et al. 2021): the mean of two losses, and `factor` times the mean of both divergences of the classes.

  Reports are those of the first pass.
  """
  log_p, log_q = jax.nn.log_softmax(y_BC), jax.nn.log_softmax(z_BC)
  # KL(p, q) + KL(q, p)
  both = ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(-1)
  ((name, (one, weight)),) = terms.objective.items()
  objective = 0.5 * (one + other.objective[name][0]) + factor * 0.5 * (weights_B * both).sum()
  return terms._replace(objective={name: (objective, weight)})
