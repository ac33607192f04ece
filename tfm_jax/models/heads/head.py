"""`Head`: what a model predicts, from the hidden states to what a person reads, in one row."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.objectives.objective import Fields
from tfm_jax.ops.losses import LossConfig, LossTerms, Unembedding
from tfm_jax.sharding.placement import Placement

Batch = Mapping[str, Array]
Arrays = Mapping[str, Array]


class Output(NamedTuple):
  """One thing that a model predicts.

  Attributes:
    h: hidden states [B, T, D], or of whole rows [B, D], in the compute dtype.
    out: the last linear; None: the hidden states themselves are the result.
    classes: how many rows of `out` count: it may be padded.
    squeezed: the result has no axis of classes, of which there is one.
  """

  h: Array
  out: Unembedding | None = None
  classes: int = 0
  squeezed: bool = False


Outputs = dict[str, Output]


class Seen(NamedTuple):
  """What a head sees beside the hidden states."""

  vocab_size: int
  table_VE: Array | None = None  # the embedding table, where it is the output layer too
  segments_BT: Array | None = None
  picked_BP: Array | None = None  # the positions that go through the head; None: all


class Head(NamedTuple):
  """One head: a row of `models.heads.table.HEADS`.

  Attributes:
    apply: (config, placement, last hidden states, what else it sees) -> what it predicts, by name. It is part of the
      compact module that calls it: its parameters belong to that module.
    predict: (config, outputs as `Model.outputs` has them, batch) -> what a person wants to know of each row.
    loss: (config, placement, outputs, batch, extras) -> the terms of the loss; None: there is nothing to learn.
    fields: (config, tokens of a row) -> the labels in a batch; None: they are those of the objective.
  """

  apply: Callable[[ModelConfig, Placement, Array, Seen], Outputs]
  predict: Callable[[ModelConfig, Arrays, Batch], dict[str, Array]]
  loss: Callable[[ModelConfig, Placement, Outputs, Batch, LossConfig], LossTerms] | None = None
  fields: Callable[[ModelConfig, int], Fields] | None = None

  @property
  def learns_from_objective(self) -> bool:
    """Whether the labels are those of an objective, made from unlabelled text."""
    return self.loss is not None and self.fields is None


# First names of the parameters that are not a head's: a model that starts from another's parameters must find these.
BODY = ("embed", "blocks", "final_norm", "relative", "encoder", "decoder")


def of_head(path: str) -> bool:
  """Whether the parameter at a path belongs to a head: a run that starts from another may lack it."""
  return path.split("/")[0] not in BODY
