"""Batches of different lengths: rows that are shorter than the fields of a task declare them.

A task that sorts its rows by length, or begins with short ones, names the lengths that it makes (`Task.lengths`). A
short batch then costs what its own positions cost, and each length has a train step of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import Model
from tfm_jax.objectives.objective import Fields
from tfm_jax.sharding.order import context_size
from tfm_jax.training.config import Config


def at_length(fields: Fields, length: int, declared: int) -> Fields:
  """The fields of a batch whose rows have `length` tokens where `declared` is declared along the axis "seq".

  The axis "masks" becomes shorter in proportion.
  """
  shorter = dict(fields)
  for name, field in fields.items():
    shape = tuple(
      -(-n * length // declared) if axis == "masks" else n for axis, n in zip(field.axes[1:], field.shape, strict=True)
    )
    shorter[name] = field._replace(shape=shape)
  for name, place in _places(fields, declared).items():
    shape = shorter[name].shape
    shorter[name] = shorter[name]._replace(shape=(*shape[:place], length, *shape[place + 1 :]))
  return shorter


def check_context(config: Config, model: Model, fields: Fields) -> None:
  """Raises UserError unless the devices along `context` can share every sequence evenly."""
  context = context_size(model.placement)
  for name, field in fields.items() if context > 1 else ():
    if field.kind == "pixels":
      T = config.model.patches + 1
      if T % context:
        raise UserError(
          f"sharding.context={context} does not divide the {T} tokens of an image, its patches and the class vector: "
          f"choose another sharding.strategy, or sharding.context=1"
        )
    elif field.kind == "ids":
      family = find_family(model.family)
      decoder = name.startswith("decoder_")
      causal = decoder if family.encoder_decoder else family.causal
      parts, T = context * (2 if causal else 1), field.shape[-1]
      if T % parts:
        key = "target_len" if decoder else "seq_len"
        choices = [n for n in (T // parts * parts, -(-T // parts) * parts) if n]
        halves = ", two for each device where attention is causal" if causal else ""
        raise UserError(
          f"data.{key}={T} does not divide into the {parts} parts of sharding.context={context}{halves}: choose "
          f"{' or '.join(map(str, choices))}"
        )


def batch_length(batch: Mapping[str, Any], fields: Fields, lengths: Sequence[int], culprit: str) -> int:
  """The length of the rows of a batch, as its first array along "seq" has it; 0 for a task of one length.

  Raises:
    UserError: it is none of `lengths`; the message begins with `culprit`.
  """
  if not lengths:
    return 0
  name, place = next(iter(_places(fields, lengths[-1]).items()))
  shape = tuple(getattr(batch.get(name), "shape", ()))
  if len(shape) != len(fields[name].shape) + 1:
    return lengths[-1]  # `check_arrays` says what is wrong
  if shape[place + 1] not in lengths:
    known = ", ".join(map(str, lengths))
    raise UserError(f"{culprit}: {name} has rows of {shape[place + 1]} tokens, and `lengths` declares {known}")
  return int(shape[place + 1])


def check_lengths(lengths: Sequence[int], fields: Fields, culprit: str) -> None:
  """Raises UserError unless the lengths ascend to one that a field has along "seq"."""
  if not lengths:
    return
  if list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
    raise UserError(f"{culprit}: `lengths` is {tuple(lengths)}, but must ascend from at least 1")
  if not _places(fields, lengths[-1]):
    raise UserError(f'{culprit}: `lengths` ends with {lengths[-1]}, which no field declares along the axis "seq"')


def _places(fields: Fields, declared: int) -> dict[str, int]:
  """Field -> the axis of its rows that is "seq" and has the declared length, of the fields that have one."""
  places = {}
  for name, field in fields.items():
    for place, (axis, n) in enumerate(zip(field.axes[1:], field.shape, strict=True)):
      if axis == "seq" and n == declared:
        places[name] = place
  return places
