"""Batches of the heads that learn from labels: their fields alone, as tasks and `compare` declare them."""

from tfm_jax.models.config import ModelConfig
from tfm_jax.objectives.objective import FLOAT, INT, ROWS, Field, Fields, along_row, token_fields

LABELLED = (
  "sequence_classification", "token_classification", "question_answering", "replaced_token_detection",
)  # fmt: skip


def labelled_fields(config: ModelConfig, seq_len: int, vocab_size: int) -> Fields:
  """The arrays of a batch, as `training.loss` takes them."""
  labels = config.head.num_labels
  of_rows = Field((), FLOAT, "weights", ("batch",))
  targets, weights = {
    "sequence_classification": (
      Field((), INT, "labels", ("batch",), labels) if labels > 1 else Field((), FLOAT, "numbers", ("batch",)),
      of_rows,
    ),
    "token_classification": (along_row(seq_len, "labels", labels), along_row(seq_len, "weights")),
    "question_answering": (Field((2,), INT, "labels", ("batch", None), seq_len), of_rows),
    "replaced_token_detection": (along_row(seq_len, "labels", 2), along_row(seq_len, "weights")),
  }[config.head.name]
  if config.image.patch:
    shape = (config.image.height, config.image.width, config.image.channels)
    fields = {"images": Field(shape, FLOAT, "pixels", ("batch", None, None, None))}
  else:
    fields = token_fields(seq_len, vocab_size)
  return {**fields, "targets": targets, "weights": weights, "rows": ROWS}
