"""Checks of a batch: fields that are missing, have the wrong shape or dtype, or hold values out of range."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.models.config import ModelConfig

# For each axis its allowed lengths, or None for any.
Shape = tuple[tuple[int, ...] | None, ...]


def check_batch(c: ModelConfig, vocab_size: int, sides: tuple[str, ...], batch: Any) -> None:
  """Raises UserError for a batch on which the model would fail or compute nonsense.

  Shapes and dtypes are also checked while tracing; values only where they are known (outside `jax.jit`).

  Args:
    c: the resolved configuration.
    vocab_size: ids lie below it.
    sides: prefixes of the fields of tokens: ("",) or ("encoder_", "decoder_"); (): the model reads none.
    batch: name -> array.
  """
  if not isinstance(batch, Mapping):
    example = f"{sides[0]}inputs" if sides else "images"
    raise UserError(f"a batch is a dictionary of arrays, such as {example}, not a {type(batch).__name__}")
  if c.image.patch:
    _check_shape(batch, "images", (None, (c.image.height,), (c.image.width,), (c.image.channels,)))
  table = c.max_positions - c.position_offset if c.positions == "learned" else 0
  rows: tuple[int, ...] | None = None
  for side in sides:
    inputs = f"{side}inputs"
    shape = _check_ids(batch, inputs, (rows, None), vocab_size)
    rows = (shape[0],)
    if table and shape[1] > table and f"{side}positions" not in batch:
      raise UserError(
        f"batch[{inputs!r}] has rows of {shape[1]} tokens, but the model has {table} learned positions: cut the rows, "
        f"or set model.max_positions"
      )
    for name, limit in (("segment_ids", 0), ("positions", table), ("token_types", c.token_types), ("prefix", 2)):
      if side + name in batch and (limit or name != "token_types"):
        _check_ids(batch, side + name, ((shape[0], 1), (shape[1],)), limit)
    if "mlm_positions" in batch:
      _check_ids(batch, "mlm_positions", (rows, None), shape[1])


def _check_ids(batch: Mapping[str, Any], name: str, expected: Shape, limit: int | None) -> tuple[int, ...]:
  """The shape of a field of integers, checked to lie in [0, limit) if there is a limit."""
  shape, x = _check_shape(batch, name, expected), batch[name]
  if not jnp.issubdtype(x.dtype, jnp.integer):
    raise UserError(f"batch[{name!r}] has dtype {x.dtype}, but must hold integers, such as int32")
  known = not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)
  if limit and x.size and known:
    low, high = int(np.min(x)), int(np.max(x))
    if low < 0 or high >= limit:
      raise UserError(f"batch[{name!r}] holds {low if low < 0 else high}, but must lie between 0 and {limit - 1}")
  return shape


def _check_shape(batch: Mapping[str, Any], name: str, expected: Shape) -> tuple[int, ...]:
  """The shape of a field, checked."""
  if name not in batch:
    raise UserError(f"the batch has no {name!r}, which this model reads; it has {', '.join(batch) or 'nothing'}")
  x = batch[name]
  if not hasattr(x, "shape"):
    raise UserError(f"batch[{name!r}] is a {type(x).__name__}, not an array: numpy.asarray makes it one")
  shape = tuple(x.shape)
  if len(shape) != len(expected) or any(n not in (lengths or (n,)) for n, lengths in zip(shape, expected, strict=True)):
    axes = ("rows", "height", "width", "channels") if len(expected) == 4 else ("rows", "tokens")
    sizes = ", ".join(
      axis if lengths is None else str(lengths[0]) for lengths, axis in zip(expected, axes, strict=True)
    )
    hint = "; for a single row, pass x[None]" if len(shape) == len(expected) - 1 else ""
    raise UserError(f"batch[{name!r}] has shape {list(shape)}, but must have [{sizes}]{hint}")
  return shape
