"""How a conversation is written for a model: by the chat template of its tokenizer's files, or else in a plain form."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, str]]
"""`role` ("system", "user", "assistant") and `content` of each."""

_ANSWER, _NEXT = "an answer that ends", "another question"  # read in a conversation that shows how turns end


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
  """How a tokenizer's conversations are written.

  With a template (of `transformers`, in Jinja) the text has all its special tokens. Without one it is

      You are brief.

      User: What is the capital of France?
      Assistant: Paris.
      User: And of Spain?
      Assistant:
  """

  tokenizer: Tokenizer

  @property
  def template(self) -> str:
    """The template; empty: the plain form."""
    return self.tokenizer.chat_template

  def text(self, messages: Messages, answer: bool = True) -> str:
    """The conversation as text.

    Args:
      messages: in order; a system message comes first.
      answer: an answer of the assistant follows.

    Raises:
      UserError: the template is damaged, or refuses these messages; Jinja is not installed.
    """
    if self.template:
      return rendered(self.template, messages, self._names(), answer)
    lines = [_LINES[message["role"]].format(message["content"]) for message in messages]
    return "\n".join([*lines, "Assistant:"] if answer else [*lines, ""])

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text of this form, int32 [n]: what a template writes has names of special tokens."""
    return self.tokenizer.encode(text, reads_names=True if self.template else None)

  @functools.cached_property
  def stop(self) -> tuple[str, ...]:
    """What ends an answer, other than the end symbol: a special token or a string; empty: nothing."""
    roles = (("user", "a question"), ("assistant", _ANSWER), ("user", _NEXT))
    whole = self.text([{"role": role, "content": content} for role, content in roles], answer=False)
    between = whole.partition(_ANSWER)[2].partition(_NEXT)[0]
    marks = set(self.tokenizer.special_ids.tolist()) - {self.tokenizer.unk_id} if self.template else set()
    special = [id for id in self.encode(between).tolist() if id in marks]
    if special:
      return (self.tokenizer.token(special[0]),)
    line = between.strip().partition("\n")[0].rstrip()
    return (between[: between.index(line)] + line,) if line else ()

  def _names(self) -> dict[str, str]:
    """The special tokens under the names that templates know."""
    ids = {f"{role}_token": getattr(self.tokenizer, f"{role}_id") for role in ("bos", "eos", "unk", "pad", "mask")}
    return {name: self.tokenizer.token(id) for name, id in ids.items() if id >= 0}


_LINES = {"system": "{}\n", "user": "User: {}", "assistant": "Assistant: {}"}


def rendered(template: str, messages: Messages, names: Mapping[str, str], answer: bool = True) -> str:
  """A conversation by a template, as `transformers` renders it, in Jinja's sandbox. See `Form.text`.

  Args:
    template: its source.
    messages: `role` and `content` of each.
    names: special tokens, such as `bos_token`.
    answer: the template's `add_generation_prompt`.
  """
  try:
    import jinja2
  except ImportError as error:
    raise UserError(
      "the tokenizer has a chat template, which needs the package Jinja2: pip install -e '.[chat]'"
    ) from error
  from tfm_jax.text.tokenizers.jinja import compiled

  plain: Any = [dict(message) for message in messages]
  try:
    return compiled(template).render(messages=plain, tools=None, documents=None, add_generation_prompt=answer, **names)
  except jinja2.TemplateError as error:
    raise UserError(f"the tokenizer's chat template refuses the conversation: {error}") from error
  except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
    raise UserError(f"the tokenizer's chat template is damaged: {type(error).__name__}: {error}") from error
