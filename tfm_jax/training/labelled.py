"""Batches of the heads that learn from labels: their fields alone, as tasks and `compare` declare them."""

import numpy as np

from tfm_jax.models.config import ModelConfig
from tfm_jax.objectives.objective import FLOAT, INT, Fields

LABELLED = (
  "sequence_classification", "token_classification", "question_answering", "replaced_token_detection",
)  # fmt: skip


def labelled_fields(config: ModelConfig, seq_len: int) -> Fields:
  """The arrays of a batch, name -> (shape of one row, dtype), as `training.loss` takes them."""
  images = ((config.image_height, config.image_width, config.image_channels), FLOAT)
  length = (seq_len,)
  fields: Fields = dict.fromkeys(("inputs", "segment_ids", "positions"), (length, INT))
  if config.patch_size:
    fields = {"images": images}
  shapes: dict[str, tuple[tuple[int, ...], np.dtype, tuple[int, ...]]] = {
    "sequence_classification": ((), INT if config.num_labels > 1 else FLOAT, ()),
    "token_classification": (length, INT, length),
    "question_answering": ((2,), INT, ()),
    "replaced_token_detection": (length, INT, length),
  }
  targets, dtype, weights = shapes[config.head]
  return {**fields, "targets": (targets, dtype), "weights": (weights, FLOAT), "rows": ((), INT)}


def label_count(config: ModelConfig, seq_len: int) -> int:
  """Classes of the targets; 0 where they are tokens."""
  counts = {"question_answering": seq_len, "replaced_token_detection": 2}
  return counts.get(config.head, config.num_labels) if config.head in LABELLED else 0
