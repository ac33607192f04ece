"""The program of a config without reading a corpus: shapes are declared by the objective, batches are random."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tfm_jax.data.prepare import objective_fields
from tfm_jax.errors import UserError
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import labelled_fields
from tfm_jax.objectives.objective import Field, Fields, Vocabulary
from tfm_jax.sharding.strategy import AXES, ShardingConfig, find_strategy
from tfm_jax.text.tokenizers.table import from_path, train_tokenizer
from tfm_jax.training.compiled import program
from tfm_jax.training.compiled.program import Program
from tfm_jax.training.config import Config, resolve

# A typical number of characters, since no text is read to count them; the model pads its vocabulary to 128 anyway.
_CHARACTERS = 100
# The objectives' fields depend only on whether the tokenizer has sentinels, not on their ids.
_SENTINELS = tuple(range(5, 10))


def build_program(config: Config, devices: Sequence[jax.Device] | None = None) -> Program:
  """The program of a config on these devices; None: all. Raises UserError if its mesh does not fit them."""
  config = resolve(config)
  return program.build_program(config, vocabulary_size(config), fields_of(config), devices)


def with_strategy(config: Config, strategy: str) -> Config:
  """The config with another strategy, written "NAME" or "NAME:AXIS=SIZE:..."; NAME can be a composition, as fsdp+tp.

  Mesh sizes in the config hold for the config's own strategy only. Other strategies have their preset, or the sizes
  after their name.

  Raises:
    UserError: there is no such strategy, or the text after the name is not a list of mesh axes and sizes.
  """
  name, *sizes = strategy.split(":")
  own = ShardingConfig(name)
  for size in sizes:
    axis, _, number = size.partition("=")
    if axis not in (*AXES, "pipeline", "rounds") or not number.isdigit():
      raise UserError(
        f"--strategies: {strategy!r} is not NAME or NAME:AXIS=SIZE, with axes {', '.join(AXES)}, or pipeline or "
        f"rounds, of its microbatches"
      )
    own = dataclasses.replace(own, **{axis: int(number)})  # type: ignore[arg-type]
  if not sizes and find_strategy(name) == find_strategy(config.sharding.strategy):
    own = config.sharding
  return dataclasses.replace(config, sharding=own)


def vocabulary_size(config: Config) -> int:
  """The number of ids that training would have; 0 for images.

  A tokenizer with a size of its own has that size, whatever `tokenizer.vocab_size` says: one from files
  (`tokenizer.path`), and bytes. Of characters, whose number depends on the text, a typical one is assumed.

  Raises:
    UserError: the config does not tell the size, or there is no tokenizer at `tokenizer.path`.
  """
  tokenizer = config.tokenizer
  if not find_family(config.family).module.sides:
    return 0
  if config.model.vocab_size:
    return config.model.vocab_size
  if tokenizer.path:
    return from_path(tokenizer).vocab_size
  if tokenizer.kind == "byte":
    return train_tokenizer(dataclasses.replace(tokenizer, vocab_size=0), ()).vocab_size
  if tokenizer.kind == "char":
    return _CHARACTERS + tokenizer.sentinels
  if tokenizer.vocab_size < 16:
    raise UserError(f"tokenizer.vocab_size={tokenizer.vocab_size}: compare reads no corpus, so this key must be set")
  return tokenizer.vocab_size


def fields_of(config: Config) -> Fields:
  """The arrays of a batch, as declared by the objective, or by the head if it learns from labels."""
  if HEADS[config.model.head.name].fields:
    return labelled_fields(config.family, config.model, config.data.seq_len, vocabulary_size(config))
  vocabulary = Vocabulary(vocabulary_size(config), sentinel_ids=_SENTINELS)
  return objective_fields(config.objective, config.data, vocabulary)


def random_batch(fields: Fields, rows: int, step: int = 0) -> dict[str, np.ndarray]:
  """A batch of the declared fields: random ids, labels and pixels; each row is one segment, and all weights are 1."""
  draw = np.random.default_rng(step)
  length = next((field.shape[-1] for field in fields.values() if field.kind == "ids"), 0)

  def sorted_positions(count: int) -> np.ndarray:
    return np.sort(draw.permuted(np.tile(np.arange(length), (rows, 1)), axis=1)[:, :count], axis=1)

  def array(field: Field) -> Any:
    shape = (rows, *field.shape)
    match field.kind:
      case "rows":
        return np.arange(step * rows, (step + 1) * rows)
      case "weights" | "segments":
        return np.ones(shape)
      case "types" | "prefix":
        return np.zeros(shape)
      case "positions":
        return np.broadcast_to(np.arange(field.shape[-1]), shape)
      case "places":
        return sorted_positions(field.shape[0])
      case "pixels" | "numbers":
        return draw.standard_normal(shape)
      case "ids" | "labels":
        return draw.integers(min(10, field.classes // 2) if field.kind == "ids" else 0, field.classes, shape)
    raise ValueError(f"cannot draw random values for a field of kind {field.kind!r}")

  return {name: array(field).astype(field.dtype) for name, field in fields.items()}
