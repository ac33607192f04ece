"""Distillation: a frozen teacher reads the batches of a student, which learns what it predicts (Hinton et al. 2015).

With `distill.teacher`, the train step computes the teacher's last hidden states and output layer for each part of a
batch, and hands them to the loss as further labels. The loss of the head adds the cross-entropy with the teacher's
distributions in its tiles, so that the teacher's logits exist for one tile at a time, and DistilBERT's cosine loss
compares the last hidden states (Sanh et al. 2019). Nothing of this is part of an evaluation or of the trained model.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.ops.losses import LossTerms, SoftTargets

LESSON = "lesson"
"""The field of a batch with what the teacher says, which no data source declares."""


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  """A teacher, whose predictions a student learns beside its labels."""

  teacher: str = ""  # a run directory, whose model is the teacher; empty: none
  temperature: float = 2.0  # by which the logits of both are divided in the soft loss
  soft: float = 1.0  # factor of the soft loss: temperature^2 times the cross-entropy with the teacher's distributions
  hard: float = 1.0  # factor of the loss of the labels
  cosine: float = 0.0  # factor of 1 - cosine of the last hidden states of both, over all tokens; widths must be equal


class Lesson(NamedTuple):
  """What a teacher says about a batch.

  Attributes:
    soft: its distributions.
    hidden_BTD: its last hidden states; None without the cosine loss.
    cosine: factor of the cosine loss.
  """

  soft: SoftTargets
  hidden_BTD: Array | None
  cosine: float


def cosine_terms(hidden_BTD: Array, lesson: Lesson, batch: Mapping[str, Array]) -> LossTerms:
  """`lesson.cosine` times the mean of 1 - cosine of both last hidden states, over all tokens that are no padding."""
  assert lesson.hidden_BTD is not None
  x, y = hidden_BTD.astype(jnp.float32), lesson.hidden_BTD.astype(jnp.float32)
  squares = (jnp.square(x).sum(-1), jnp.square(y).sum(-1))
  cosine_BT = (x * y).sum(-1) * jax.lax.rsqrt(jnp.maximum(squares[0], 1e-12) * jnp.maximum(squares[1], 1e-12))
  segments_BT = batch.get("segment_ids", batch.get("decoder_segment_ids"))
  real_BT = jnp.ones(cosine_BT.shape) if segments_BT is None else (segments_BT != 0).astype(jnp.float32)
  distance, weight = (real_BT * (1 - cosine_BT)).sum(), real_BT.sum()
  return LossTerms({"cosine": (lesson.cosine * distance, weight)}, {}, {"cosine_distance": (distance, weight)})
