"""Jinja as chat templates of `transformers` expect it. Import it late: Jinja2 is an extra."""

import datetime
import functools
import json
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
  """{% generation %} ... {% endgeneration %} marks answers for training, and changes no text."""

  tags = {"generation"}

  def parse(self, parser: Parser) -> nodes.Node:
    """The tag's body, with names of its own."""
    line = next(parser.stream).lineno
    return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> Template:
  """The template in a sandbox. Raises jinja2.TemplateError."""
  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
  )
  environment.filters["tojson"] = _json
  environment.globals.update(raise_exception=_refuse, strftime_now=_now)
  return environment.from_string(template)


def _refuse(message: str) -> None:
  raise TemplateError(message)


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)


def _json(
  x: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
  """Jinja's own filter writes JSON for HTML."""
  return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
