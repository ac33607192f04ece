"""The keys of the configuration, as `--help` lists them."""

import ast
import dataclasses
import inspect
import io
import json
import re
import shlex
import textwrap
import tokenize
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from tfm_jax.runtime.help import Key, Section


def config_keys(path: str = "", overrides: Mapping[str, str] | None = None) -> list[Section]:
  """All sections of the configuration, each key with its value in an experiment file, or else its default.

  Raises:
    UserError: an error in the file, or a wrong override.
  """
  from tfm_jax.training import config  # late: a command imports this module before it needs JAX

  values = config.load(path, overrides) if path else config.Config()
  current, default = (config.flat(config.to_dict(c)) for c in (values, config.from_dict({"family": values.family})))

  def entry(key: str, comment: str) -> Key:
    return Key(
      key,
      _text(current[key]),
      comment,
      _kind(config.type_of(key), config.choices(key), comment),
      current[key] != default[key],
    )

  result = []
  for name, kind in config.sections().items():
    keys = {f"{name}.{field}" if name else field: comment for field, comment in comments(kind).items()}
    result.append(Section(name or "top", _summary(kind), [entry(key, c) for key, c in keys.items() if key in current]))
  return result


def _kind(kind: type, names: Sequence[str], comment: str) -> str:
  """What a key takes: its type, or the names that it can have; empty if the comment already has them."""
  if typing.get_origin(kind):
    return ""
  if not names:
    return kind.__name__
  return "" if set(names) <= set(re.findall(r"\w+", comment)) else f"one of {', '.join(names)}"


def _summary(kind: type) -> str:
  """The first sentence of a dataclass's docstring; empty if it has only the generated one."""
  doc = inspect.getdoc(kind) or ""
  return "" if doc.startswith(f"{kind.__name__}(") else re.split(r"\.\s+(?=[A-Z])", doc)[0].rstrip(".")


def comments(kind: type) -> dict[str, str]:
  """Field of a dataclass, inherited ones first -> the comment beside it in the source, or else the lines above it."""
  inherited = {
    name: text for base in kind.__bases__ if dataclasses.is_dataclass(base) for name, text in comments(base).items()
  }
  source = textwrap.dedent(inspect.getsource(kind))
  code = source.splitlines()
  beside: dict[int, str] = {}  # line -> comment
  above: dict[int, str] = {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      line, column = token.start
      (beside if code[line - 1][:column].strip() else above)[line] = token.string.removeprefix("#").strip()
  result = dict(inherited)
  definition: Any = ast.parse(source).body[0]
  for node in definition.body:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      first = node.lineno
      while first - 1 in above:
        first -= 1
      block = " ".join(above[line] for line in range(first, node.lineno))
      result[node.target.id] = beside.get(node.end_lineno or node.lineno, block)
  return result


def _text(value: Any) -> str:
  """A value as it is written on a command line."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, (list, tuple)):
    value = json.dumps(value) if value else ""
  text = str(value)
  return shlex.quote(text) if text else ""
