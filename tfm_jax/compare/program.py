"""The program of a config without a corpus: its fields are declared, its vocabulary has the size that is asked for."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tfm_jax.data.prepare import objective_fields
from tfm_jax.errors import UserError
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import labelled_fields
from tfm_jax.objectives.objective import Field, Fields, Vocabulary
from tfm_jax.training import program
from tfm_jax.training.config import Config, resolve
from tfm_jax.training.program import Program

# Tokenizers whose size is that of their text, or fixed, rather than a key of the config.
_VOCAB_SIZES = {"char": 100, "byte": 261}


def build_program(config: Config, devices: Sequence[jax.Device] | None = None) -> Program:
  """The program of a configuration on these devices. Raises UserError where they cannot be divided so."""
  config = resolve(config)
  return program.build_program(config, vocabulary_size(config), fields_of(config), devices)


def vocabulary_size(config: Config) -> int:
  """The size that the config asks for, or that its kind of tokenizer has; 0 for images. Raises UserError."""
  if config.model.image.patch:
    return 0
  size = config.model.vocab_size or config.tokenizer.vocab_size or _VOCAB_SIZES.get(config.tokenizer.kind, 0)
  if size < 16:
    raise UserError(f"tokenizer.vocab_size={size}: compare reads no corpus, so it needs the size of a vocabulary")
  return size


def fields_of(config: Config) -> Fields:
  """The arrays of a batch, as the objective declares them, or as the head that learns from labels wants them."""
  if HEADS[config.model.head.name].fields:
    return labelled_fields(config.family, config.model, config.data.seq_len, vocabulary_size(config))
  vocabulary = Vocabulary(vocabulary_size(config), sentinel_ids=_SENTINELS)
  return objective_fields(config.objective, config.data, vocabulary)


_SENTINELS = tuple(range(5, 10))  # only that there are some: no row is made by the objective here


def random_batch(fields: Fields, rows: int, step: int = 0) -> dict[str, np.ndarray]:
  """Arrays of the declared fields with a leading axis of rows: random ids and labels, one segment, weights 1."""
  draw = np.random.default_rng(step)
  length = next((field.shape[0] for field in fields.values() if field.kind == "ids"), 0)

  def sorted_places(count: int) -> np.ndarray:
    return np.sort(draw.permuted(np.tile(np.arange(length), (rows, 1)), axis=1)[:, :count], axis=1)

  def array(field: Field) -> Any:
    shape = (rows, *field.shape)
    match field.kind:
      case "rows":
        return np.arange(step * rows, (step + 1) * rows)
      case "weights" | "segments":
        return np.ones(shape)
      case "types":
        return np.zeros(shape)
      case "positions":
        return np.tile(np.arange(field.shape[0]), (rows, 1))
      case "places":
        return sorted_places(field.shape[0])
      case "pixels" | "numbers":
        return draw.standard_normal(shape)
      case "ids" | "labels":
        return draw.integers(min(10, field.classes // 2) if field.kind == "ids" else 0, field.classes, shape)
    raise ValueError(f"no random values for a field of kind {field.kind!r}")

  return {name: array(field).astype(field.dtype) for name, field in fields.items()}
