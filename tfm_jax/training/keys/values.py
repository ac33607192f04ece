"""Values of the configuration in the types that their keys declare."""

import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from tfm_jax.errors import UserError, nearest

TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def of_sections(kind: type) -> bool:
  """Whether a key of this type holds a list of sections, as `data.mixture` does."""
  return typing.get_origin(kind) is tuple


def converted(name: str, value: Any, kind: type, example: Any) -> Any:
  """A value in a declared type. Only whole numbers are converted, between int and float, and dictionaries to sections.

  Args:
    name: what the value belongs to, for errors.
    value: as an experiment file or JSON gives it.
    kind: bool, int, float, str, or a tuple of dataclasses, which stands for a list of sections.
    example: a value of the right type; "" for none.

  Raises:
    UserError: a value of another type, or a section with an unknown key.
  """
  if of_sections(kind):
    if not isinstance(value, (list, tuple)):
      raise UserError(f"{name}={value!r} is of type {type(value).__name__}, but a list of sections is expected")
    inner = typing.get_args(kind)[0]
    return tuple(_section(f"{name}[{number}]", each, inner) for number, each in enumerate(value))
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind is int and isinstance(value, float) and value.is_integer():
    return int(value)
  if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
    return value
  such = f", such as {example!r}" if example != "" else ""
  raise UserError(f"{name}={value!r} is of type {type(value).__name__}, but {TYPE_NAMES[kind]} is expected{such}")


def _section(name: str, value: Any, kind: type) -> Any:
  """One section of a list as its dataclass. Raises UserError."""
  if isinstance(value, kind):
    return value
  if not isinstance(value, (Mapping, config_dict.ConfigDict)):
    raise UserError(f"{name}={value!r} is not a section: write a dictionary of its keys")
  hints = typing.get_type_hints(kind)
  for key in value:
    if key not in hints:
      similar = nearest(str(key), hints)
      raise UserError(f"{name} has no key {key}{f'; did you mean {similar}?' if similar else ''}")
  return kind(**{key: converted(f"{name}.{key}", v, hints[key], getattr(kind, key)) for key, v in value.items()})
