"""The tree of keys that experiment files fill in, as a ConfigDict that checks each assignment."""

from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from tfm_jax.errors import UserError
from tfm_jax.training.config import all_keys, default, optional, sections, typed, unknown_key


class CheckedDict(config_dict.ConfigDict):
  """A section of the tree that experiment files fill in: an assignment to an unknown key, or of a wrong type, raises
  UserError at once, so that the error names the line of the file. Copies are not checked until `from_dict`."""

  _section: str | None = None

  def __setitem__(self, key: str, value: Any) -> None:
    if self._section is not None and not isinstance(value, config_dict.FieldReference):
      value = self._checked(key, value)
    super().__setitem__(key, value)

  def __getattr__(self, key: str) -> Any:
    try:
      return self[key]
    except KeyError as error:
      message = str(error) if self._section is None else unknown_key(f"{self._section}.{key}".strip("."))
      raise AttributeError(message) from None

  def _checked(self, key: str, value: Any) -> Any:
    """The value in the type of its key. Raises UserError."""
    if self._section or key not in sections():
      return typed(f"{self._section}.{key}".strip("."), value)
    if not isinstance(value, (Mapping, config_dict.ConfigDict)):
      raise UserError(f"config.{key} is a section, not {value!r}: set its keys, as in config.{key}.KEY = VALUE")
    return value


def defaults() -> config_dict.ConfigDict:
  """All keys with their defaults as a ConfigDict, for experiment files; `configs/base.py` exports it.

  Keys in the sections of the model are None, which stands for the family's value.
  """
  tree = CheckedDict()
  for name in sections():
    section = CheckedDict() if name else tree
    for key, hint in all_keys().items():
      if key.rpartition(".")[0] == name:
        section[key.rpartition(".")[2]] = config_dict.placeholder(hint) if optional(key) else default(key)
    if name:
      tree[name] = section
    object.__setattr__(section, "_section", name)
  return tree
