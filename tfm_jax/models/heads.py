"""Heads: what is predicted from the last hidden states. A head is a function here and a line in `HEADS`."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.models.config import ModelConfig, pad_vocab
from tfm_jax.models.layers import Dense, Layer, Norm
from tfm_jax.ops.losses import Unembedding
from tfm_jax.sharding.placement import Placement


class Output(NamedTuple):
  """One thing that a model predicts.

  Attributes:
    h: hidden states [B, T, D], or of whole rows [B, D], in the compute dtype.
    out: the last linear; None: the hidden states themselves are the result.
    classes: how many rows of `out` count: it may be padded.
  """

  h: Array
  out: Unembedding | None = None
  classes: int = 0


Outputs = dict[str, Output]


class Seen(NamedTuple):
  """What a head sees beside the hidden states."""

  vocab_size: int
  table_VE: Array | None = None  # the embedding table, where it is the output layer too
  segments_BT: Array | None = None
  picked_BP: Array | None = None  # the positions that go through the head; None: all


class Head(Layer):
  """The output layer of a language model: a table of its own, or the embedding table."""

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
  """A dense layer, its activation and a norm, as part of the compact module that calls it."""
  h = Dense(c, st, features, c.head.activation, use_bias=c.has_bias("transform"), name="dense")(h)
  return Norm(c, st, name="norm")(h)


class Transform(Layer):
  """`transformed` before a classifier, under the name that it has before an output layer."""

  @nn.compact
  def __call__(self, h: Array) -> Array:
    return transformed(self.cfg, self.st, h, self.cfg.embed_dim)


class Classifier(Layer):
  """A linear to a few classes, with a bias."""

  classes: int = 0

  @nn.compact
  def __call__(self, h: Array) -> Output:
    w_CD = self.matrix("w", (self.classes, h.shape[-1]))
    return Output(h, Unembedding(w_CD, self.bias("b", (self.classes,), True)), self.classes)


def pooled(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Array:
  """One vector a row, [B, D]: the first token's or the mean of all, through the pooler if there is one."""
  if c.head.pooling == "first":
    h_BD = h_BTD[:, 0]
  else:
    weights = jnp.ones(h_BTD.shape[:2]) if seen.segments_BT is None else (seen.segments_BT != 0).astype(jnp.float32)
    total = (h_BTD.astype(jnp.float32) * weights[:, :, None]).sum(1)
    h_BD = (total / jnp.maximum(weights.sum(1), 1)[:, None]).astype(h_BTD.dtype)
  if c.head.pooler == "none":
    return h_BD
  return Dense(c, st, c.embed_dim, c.head.pooler, name="pooler")(h_BD)


def classify(c: ModelConfig, st: Placement, h: Array, classes: int, name: str = "classifier") -> Output:
  """Classes of each vector of h; behind the transform in families whose heads all have it (ModernBERT)."""
  if c.head.classifier_transform:
    h = Transform(c, st, name="head")(h)
  return Classifier(c, st, classes, name=name)(h)


def lm(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Tokens, at all positions or the picked ones."""
  if seen.picked_BP is not None:
    h_BTD = pick(h_BTD, seen.picked_BP)
  return {"logits": Head(c, st, seen.vocab_size, name="head")(h_BTD, seen.table_VE)}


def pretraining(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Tokens, and whether the second text of a row follows the first (0) or not (1) (Devlin et al. 2018)."""
  following = Classifier(c, st, 2, name="next_sentence")(pooled(c, st, h_BTD, seen))
  return lm(c, st, h_BTD, seen) | {"next_sentence": following}


def none(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Nothing: the hidden states."""
  return {"hidden": Output(h_BTD)}


def pooled_only(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """The hidden states, and one vector a row."""
  return {"hidden": Output(h_BTD), "pooled": Output(pooled(c, st, h_BTD, seen))}


def sequence_classification(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """A class of each row (a number, if `num_labels` is 1)."""
  return {"logits": classify(c, st, pooled(c, st, h_BTD, seen), c.head.num_labels)}


def token_classification(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """A class of each token."""
  return {"logits": classify(c, st, h_BTD, c.head.num_labels)}


def question_answering(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Whether the answer starts, and whether it ends, at each token (Rajpurkar et al. 2016)."""
  return {"logits": classify(c, st, h_BTD, 2)}


def replaced_token_detection(c: ModelConfig, st: Placement, h_BTD: Array, seen: Seen) -> Outputs:
  """Whether each token was replaced (Clark et al. 2020)."""
  h_BTD = Dense(c, st, c.embed_dim, c.activation, name="dense")(h_BTD)
  return {"logits": Classifier(c, st, 1, name="classifier")(h_BTD)}


HEADS: dict[str, Callable[[ModelConfig, Placement, Array, Seen], Outputs]] = {
  "lm": lm,
  "pretraining": pretraining,
  "none": none,
  "pooled": pooled_only,
  "sequence_classification": sequence_classification,
  "token_classification": token_classification,
  "question_answering": question_answering,
  "replaced_token_detection": replaced_token_detection,
}


# First names of the parameters that belong to heads: a model that starts from another's parameters may lack them.
HEAD_PARAMETERS = ("head", "pooler", "classifier", "next_sentence", "dense")


def pick(h_BTD: Array, positions_BP: Array) -> Array:
  """h at some positions of each row: [B, P, D]."""
  return jnp.take_along_axis(h_BTD, positions_BP[:, :, None], axis=1, mode="promise_in_bounds")
