"""`python -m tfm_jax.decode --chat`: a conversation with a model, line by line, that stays within its window."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tfm_jax.decode.generate import check_streams, streamed
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import Prompt, check_generates, prompt_of
from tfm_jax.decode.start import prepared
from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.chat import Form

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 512
"""Most tokens of an answer, unless the command says otherwise."""


class Turn(NamedTuple):
  """A question and its answer."""

  question: str
  answer: str


class Conversation:
  """What was said so far, as far as it fits into the window of a run's model.

  Attributes:
    turns: the oldest first; whole ones are dropped once they do not fit.
  """

  def __init__(self, run: Any, options: Options, system: str = ""):
    """A new conversation. `system`: what the assistant is told before it. Raises UserError for impossible options."""
    tokenizer = run.its_tokenizer()
    check_generates(run.model)
    check_streams(tokenizer, options)
    self.turns: list[Turn] = []
    self._run, self._system, self._form = run, system, Form(tokenizer)
    self._params = prepared(run.model, run.params)
    self._options = dataclasses.replace(options, stop=(*options.stop, *self._form.stop))
    self._form.text(self._messages([], "?"))  # a template may refuse a system message

  def answer(self, question: str) -> Iterator[str]:
    """The answer to a question, piece by piece; what is there of it when the caller stops becomes part of the turns.

    Raises:
      UserError: the question does not fit into the window; it is not part of the conversation then.
    """
    prompt, room = self._prompt(question)
    options = dataclasses.replace(self._options, max_new_tokens=min(self._options.max_new_tokens, room))
    answer = ""
    try:
      for piece in streamed(self._run.model, self._params, self._form.tokenizer, prompt, options):
        piece = piece if answer else piece.lstrip()
        answer += piece
        if piece:
          yield piece
    finally:
      if answer:
        self.turns.append(Turn(question, answer.rstrip()))

  def _prompt(self, question: str) -> tuple[Prompt, int]:
    """(the prompt with as many turns as fit, the most tokens that may follow it). Raises UserError."""
    run, window = self._run, self._run.window
    # An encoder reads the conversation, and the answer has a window of its own.
    reserved = 1 if run.model.encoder_decoder else min(self._options.max_new_tokens, window // 2)
    for dropped in range(len(self.turns) + 1):
      ids = self._form.encode(self._form.text(self._messages(self.turns[dropped:], question)))
      if len(ids) + reserved < window:
        break
    else:
      raise UserError(
        f"the message does not fit: with it the prompt has {len(ids):,} tokens, and the window of {window:,} leaves "
        f"{reserved:,} of them to the answer: shorten it"
      )
    if dropped:
      log.info("the window of %d tokens is full: the oldest %d turns were dropped", window, dropped)
      del self.turns[:dropped]
    symbols = dataclasses.replace(run.symbols, begin=-1) if self._form.template else run.symbols
    room = window if run.model.encoder_decoder else window - len(ids) - 1
    prefix = self._form.tokenizer.encode(self._options.prefix)
    return prompt_of(run.model, self._form.tokenizer, symbols, ids, prefix=prefix), room

  def _messages(self, turns: list[Turn], question: str) -> list[dict[str, str]]:
    system = [("system", self._system)] if self._system else []
    said = [pair for turn in turns for pair in (("user", turn.question), ("assistant", turn.answer))]
    return [{"role": role, "content": content} for role, content in (*system, *said, ("user", question))]


def read_line() -> str | None:
  """The next line from a terminal or a pipe; None: there is no more."""
  if not sys.stdin.isatty():
    return sys.stdin.readline() or None
  with contextlib.suppress(ImportError):
    import readline  # noqa: F401  # gives input() its history and editing
  try:
    return input("> ")
  except EOFError:
    print()
    return None


def chat(run: Any, options: Options, system: str = "", read: Callable[[], str | None] = read_line) -> None:
  """Answers lines until there are no more, or one is /exit; /reset forgets the conversation.

  Ctrl-C ends an answer; the second one without a line in between ends the program.

  Args:
    run: a model that generates text.
    options: of generation; see `Options`.
    system: what the assistant is told before the conversation.
    read: the next line; None: there is no more.

  Raises:
    UserError: a model that cannot answer, or impossible options.
    KeyboardInterrupt: Ctrl-C, twice.
  """
  conversation = Conversation(run, options, system)
  interrupted = False
  while True:
    try:
      line = read()
      interrupted = False
      if line is None or line.strip() == "/exit":
        return
      if line.strip() == "/reset":
        conversation.turns.clear()
        log.info("the conversation begins anew")
      elif line.strip():
        for piece in conversation.answer(line.strip()):
          print(piece, end="", flush=True)
        print()
    except UserError as error:
      log.warning("%s", error)
    except KeyboardInterrupt:
      if interrupted:
        raise
      interrupted = True
      print(flush=True)
      log.info("Ctrl-C again ends the program")
