"""Images and texts that belong together, among all of the batch (CLIP, Radford et al. 2021)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig, replaced
from tfm_jax.models.heads.head import Arrays, Batch, Head, Output, Outputs, Seen
from tfm_jax.models.heads.parts import pooled
from tfm_jax.models.heads.terms import contrast, result
from tfm_jax.models.layers import Dense, Layer
from tfm_jax.objectives.objective import FLOAT, Field, Fields
from tfm_jax.ops.losses import LossConfig, LossTerms, one_term
from tfm_jax.sharding.placement import Placement

PAIRS = "pair_accuracy"
_TEMPERATURE = 0.07  # at first
_MOST = 100.0  # by which cosines are ever multiplied


class Temperature(Layer):
  """The learned factor of the cosines. At its bound it keeps its gradient, which leads it back."""

  @nn.compact
  def __call__(self) -> Array:
    start = nn.initializers.constant(-math.log(_TEMPERATURE))
    x = self.param("log_scale", start, ())
    return jnp.exp(x + jax.lax.stop_gradient(jnp.minimum(x, math.log(_MOST)) - x))


def apply(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """One vector per image (of the class vector, or the mean), one per text (of its last token), and the factor."""
  assert seen.images_BTD is not None
  project = lambda x, name: Output(Dense(c, st, c.embed_dim, use_bias=False, name=f"{name}_projection")(x))
  last = replaced(c, {"head.pooling": "last"})
  return {
    "image": project(pooled(c, st, seen.images_BTD, Seen(0)), "image"),
    "text": project(pooled(last, st, h_BTD, seen), "text"),
    "scale": Output(Temperature(c, st, name="temperature")()),
  }


def loss(c: ModelConfig, st: Placement, outputs: Outputs, batch: Batch, extras: LossConfig) -> LossTerms:
  """The mean of two cross-entropies: of each image's text among all texts, and of each text's image among all images.

  All are those of the global batch; rows of weight 0 are nobody's candidates.
  """
  images, texts = (_unit(result(st, outputs[name])) for name in ("image", "text"))
  scale, weights = result(st, outputs["scale"]), batch["weights"]
  real, y_BA = weights > 0, jnp.einsum("BD,AD->BA", images, texts, precision="highest") * scale
  (nll_i, right), (nll_t, _) = contrast(y_BA, real), contrast(y_BA.T, real)
  total = (weights * (nll_i + nll_t)).sum() / 2
  return one_term("labels", total, total, (weights * right.astype(jnp.float32)).sum(), weights.sum(), PAIRS)


def fields(c: ModelConfig, length: int) -> Fields:
  """Nothing but weights."""
  return {"weights": Field((), FLOAT, "weights", ("batch",))}


def predict(c: ModelConfig, outputs: Arrays, batch: Batch) -> dict[str, Array]:
  """The vectors of images and texts [B, D], of length 1, and the factor of their cosines [B]."""
  vectors = {f"{name}_vectors": _unit(outputs[name]) for name in ("image", "text")}
  return {**vectors, "scale": jnp.broadcast_to(outputs["scale"], batch["images"].shape[:1])}


def _unit(vectors: Array) -> Array:
  return vectors * jax.lax.rsqrt(jnp.square(vectors).sum(-1, keepdims=True) + 1e-12)


CONTRASTIVE = Head(apply, predict, loss, fields, two_towers=True)
