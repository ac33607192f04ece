"""Errors of the user in one line."""

from collections.abc import Callable
from typing import Any

import pytest

from tfm_jax.errors import UserError


def refusal(function: Callable[..., Any], *arguments: Any) -> str:
  """The one line with which a function refuses its arguments."""
  with pytest.raises(UserError) as error:
    function(*arguments)
  message = str(error.value)
  assert "\n" not in message
  return message
