"""`Head`: what a model predicts from its last hidden states, with loss, labels and readable predictions."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.objectives.objective import Fields
from tfm_jax.ops.losses import LossConfig, LossTerms, SoftTargets, Unembedding
from tfm_jax.sharding.placement import Placement

Batch = Mapping[str, Array]
Arrays = Mapping[str, Array]


class Output(NamedTuple):
  """One output of a head, before its last linear.

  Attributes:
    h: hidden states of tokens [B, T, D] or of rows [B, D], in the compute dtype.
    out: the last linear; None: the hidden states are the result.
    classes: number of classes, without the padding of `out`.
    squeezed: there is a single class, and the result has no axis of classes.
    soft: a teacher's distributions of the classes, for the loss.
  """

  h: Array
  out: Unembedding | None = None
  classes: int = 0
  squeezed: bool = False
  soft: SoftTargets | None = None


Outputs = dict[str, Output]
LossOfHead = Callable[[ModelConfig, Placement, Outputs, Batch, LossConfig], LossTerms]

# End of the name of the output that tells what the experts of a stack did. Its `h` is [4, N]: the sums of the fields of
# `layers.Routing` over the rows of a batch, and the number of tokens.
ROUTING = "routing"


class Seen(NamedTuple):
  """What a head reads in addition to the hidden states."""

  vocab_size: int
  table_VE: Array | None = None  # the embedding table, if it is also the output layer
  segments_BT: Array | None = None
  picked_BP: Array | None = None  # positions at which a language model's head is applied; None: all
  images_BTD: Array | None = None  # hidden states of the image, in models of image and text


class Head(NamedTuple):
  """One head: an entry of `models.heads.table.HEADS`.

  Attributes:
    apply: (config, placement, last hidden states, further inputs) -> outputs by name. It is called in a compact module,
      to which its parameters belong.
    predict: (config, outputs of `Model.outputs`, batch) -> readable predictions for each row.
    loss: (config, placement, outputs, batch, extras) -> the terms of the loss; None: the head is not trained.
    fields: (config, tokens per row) -> the labels in a batch; None: the objective declares them.
    grouped: whether a row has several sequences, [B, C, T]: see `heads.groups`.
    two_towers: whether it compares images with texts: only families that name it have it.
    generates: whether a generator writes tokens in place of the masks before the model reads them (ELECTRA).
  """

  apply: Callable[[ModelConfig, Placement, Array, Seen], Outputs]
  predict: Callable[[ModelConfig, Arrays, Batch], dict[str, Array]]
  loss: LossOfHead | None = None
  fields: Callable[[ModelConfig, int], Fields] | None = None
  grouped: bool = False
  two_towers: bool = False
  generates: bool = False

  @property
  def learns_from_objective(self) -> bool:
    """Whether an objective provides the labels, from unlabelled text."""
    return self.loss is not None and self.fields is None


# First part of the paths of all parameters that do not belong to a head.
BODY = ("embed", "blocks", "final_norm", "relative", "encoder", "decoder", "image", "text")


def of_head(path: str) -> bool:
  """Whether a parameter belongs to the head. A run that starts from another run's parameters may initialise it."""
  return path.split("/")[0] not in BODY
