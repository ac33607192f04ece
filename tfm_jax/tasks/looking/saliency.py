"""Which tokens a prediction depends on: gradient times input (Shrikumar et al. 2016; Denil et al. 2014)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.models.model import Model
from tfm_jax.tasks.looking.example import Example
from tfm_jax.tasks.looking.prediction import Prediction, log_probs

FORMULA = "s(t) = Σ x(t, d) · ∂f / ∂x(t, d) over the entries d"
EACH = 16  # targets that are explained one by one


@dataclasses.dataclass(frozen=True)
class Saliency:
  """The saliency of each token, signed: positive where the token makes the prediction more probable.

  Of token t with the embedding x(t, :): the sum over d of x(t, d) times the derivative of the log-probability with
  respect to x(t, d). The embedding is what the first block reads, with position and norm. The row of the token table
  would not do: where only a norm follows it, as in ModernBERT, its length has no effect and the product is zero.

  Attributes:
    total: side -> float32 [T], of the sum of the log-probabilities of all targets.
    each: side -> float32 [J, T], of the first `EACH` targets one by one.
  """

  total: dict[str, np.ndarray]
  each: dict[str, np.ndarray]


def saliency(example: Example, prediction: Prediction) -> Saliency:
  """The saliency of the tokens of an example for its predicted choices."""
  places, choices = (np.array([t[i] for t in prediction.targets], np.int32) for i in (0, 1))
  size = example.tokenizer.vocab_size
  rows = _gradients_times_inputs(example.model, size, example.params, example.batch, places, choices)
  sides = {side: np.asarray(rows[side]) for side in example.ids}
  return Saliency({side: x[0] for side, x in sides.items()}, {side: x[1:] for side, x in sides.items()})


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradients_times_inputs(
  model: Model, size: int, params: Any, batch: dict[str, Array], places: Array, choices: Array
) -> dict[str, Array]:
  """Side -> [1 + J, T]: of the sum over the targets, then of the first ones."""
  prefixes = {"encoder": "encoder_", "decoder": "decoder_"} if model.encoder_decoder else {"": ""}
  x = {side: model.hidden_states(params, batch, side)[0] for side in prefixes}

  def values(shifts: dict[str, Array]) -> Array:
    shifted = {f"{prefixes[side]}embedding_shifts": shift for side, shift in shifts.items()}
    return log_probs(model, size, params, batch | shifted)[places, choices]

  value, pull = jax.vjp(values, jax.tree.map(jnp.zeros_like, x))
  each = jnp.eye(len(value))[:EACH]
  weights = jnp.concatenate([jnp.ones((1, len(value))), each])
  products = lambda weight: jax.tree.map(lambda g, x: (g[0] * x[0]).sum(-1), pull(weight)[0], x)
  return jax.tree.map(lambda s: model.placement.constrain(s, (None, None)), jax.lax.map(products, weights))
