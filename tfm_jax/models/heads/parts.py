"""Parts shared by heads: the output layer of language models, poolers, classifiers."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.models.config import ModelConfig, pad_vocab
from tfm_jax.models.heads.head import Output, Seen
from tfm_jax.models.layers import Dense, Layer, Norm
from tfm_jax.ops.losses import Unembedding
from tfm_jax.sharding.order import context_size, pick
from tfm_jax.sharding.placement import Placement


class OutputLayer(Layer):
  """The output layer of a language model, with a table of its own or with the embedding table."""

  vocab_size: int = 0

  @nn.compact
  def __call__(self, h: Array, tied_VE: Array | None) -> Output:
    c, st = self.cfg, self.st
    V = pad_vocab(self.vocab_size)
    if c.head.transform:
      h = transformed(c, st, h, c.embed_features)
    if c.scale_output == "always":
      h = h * np.asarray(c.embed_dim**-0.5, h.dtype)
    w_VD = self.matrix("w", (V, h.shape[-1]), kind="head") if tied_VE is None else tied_VE
    bias_V = self.bias("bias", (V,), c.head.bias)
    return Output(h, Unembedding(w_VD, bias_V), self.vocab_size)


def transformed(c: ModelConfig, st: Placement, h: Array, features: int) -> Array:
  """A dense layer, an activation and a norm, in the compact module that calls it."""
  h = Dense(c, st, features, c.head.activation, use_bias=c.has_bias("transform"), name="dense")(h)
  return Norm(c, st, name="norm")(h)


class Transform(Layer):
  """`transformed` as a module: the transform before a classifier."""

  @nn.compact
  def __call__(self, h: Array) -> Array:
    return transformed(self.cfg, self.st, h, self.cfg.embed_dim)


class Classifier(Layer):
  """A linear to classes, with a bias."""

  classes: int = 0

  @nn.compact
  def __call__(self, h: Array) -> Output:
    w_CD = self.matrix("w", (self.classes, h.shape[-1]))
    return Output(h, Unembedding(w_CD, self.bias("b", (self.classes,), True)), self.classes)


def pooled(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Array:
  """One vector per row, [B, D]: the first or last token's, or the mean of all, then the pooler if there is one."""
  if c.head.pooling == "first":
    h_BD = pick(st, h_BTD, jnp.zeros((len(h_BTD), 1), jnp.int32))[:, 0] if context_size(st) > 1 else h_BTD[:, 0]
  elif c.head.pooling == "last":
    real_BT = jnp.ones(h_BTD.shape[:2], jnp.int32) if seen.segments_BT is None else (seen.segments_BT != 0)
    last_B = (real_BT * jnp.arange(h_BTD.shape[1], dtype=jnp.int32)[None]).argmax(1)
    h_BD = pick(st, h_BTD, last_B[:, None])[:, 0]
  else:
    weights = jnp.ones(h_BTD.shape[:2]) if seen.segments_BT is None else (seen.segments_BT != 0).astype(jnp.float32)
    total = (h_BTD.astype(jnp.float32) * weights[:, :, None]).sum(1)
    h_BD = (total / jnp.maximum(weights.sum(1), 1)[:, None]).astype(h_BTD.dtype)
  if c.head.pooler == "none":
    return h_BD
  return Dense(c, st, c.embed_dim, c.head.pooler, name="pooler")(h_BD)


def classify(c: ModelConfig, st: Placement, h: Array, classes: int, name: str = "classifier") -> Output:
  """Classes of each vector of h, after the transform in families whose classifiers have it (ModernBERT)."""
  if c.head.classifier_transform:
    h = Transform(c, st, name="head")(h)
  return Classifier(c, st, classes, name=name)(h)
