"""A conversation: what the model reads, what is dropped when the window is full, commands and Ctrl-C."""

import dataclasses
import logging

import pytest

from tests.support.chat_templates import CHATML
from tests.support.generating import run_of
from tfm_jax.decode import chat as chatting
from tfm_jax.decode.chat import Conversation, chat
from tfm_jax.decode.generate import continued, prepared
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import prompt_of
from tfm_jax.errors import UserError

TURN = "User: the cat\nAssistant: sat\n"


def window_for(text, answer=8):
  """A run whose window, that of an import, has room for a prompt and an answer, and no more."""
  tokens = len(run_of("llama").tokenizer.encode(text))
  return dataclasses.replace(run_of("llama", max_positions=tokens + answer + 1), imported=True)


@pytest.fixture
def run():
  """A run whose window has room for two turns and a question."""
  return window_for(f"be\n\n{TURN * 2}User: the cat\nAssistant:")


@pytest.fixture
def asked(monkeypatch):
  """What the model would read and by which options, one after the other; it answers in pieces."""
  calls = []

  def streamed(model, params, tokenizer, prompt, options):
    calls.append((tokenizer.decode(prompt.ids), prompt, options))
    yield from (" sa", "t", "\n")

  monkeypatch.setattr(chatting, "streamed", streamed)
  return calls


def talk(run, lines, options=None, **others):
  """The conversation of these lines, of which exceptions are raised."""
  rest = iter(lines)

  def read():
    line = next(rest, None)
    if isinstance(line, type):
      raise line
    return line

  chat(run, options or Options(max_new_tokens=8), read=read, **others)


def test_each_answer_follows_the_whole_conversation(run, asked, capsys):
  talk(run, ["the cat\n", "\n", "a dog\n", "/exit\n", "never read"])
  assert [text for text, _, _ in asked] == ["User: the cat\nAssistant:", f"{TURN}User: a dog\nAssistant:"]
  assert capsys.readouterr().out == "sat\n\n" * 2
  for _, prompt, options in asked:
    assert prompt.ids[0] == run.begin_id and options.stop == ("\nUser:",) and options.max_new_tokens == 8


def test_the_oldest_turns_are_dropped_whole_and_the_system_message_stays(run, asked, caplog):
  caplog.set_level(logging.INFO)
  talk(run, ["the cat"] * 4, system="be")
  assert [text for text, _, _ in asked] == [f"be\n\n{TURN * n}User: the cat\nAssistant:" for n in (0, 1, 2, 2)]
  assert f"the window of {run.window} tokens is full: the oldest 1 turns were dropped" in caplog.text
  assert [len(prompt.ids) + options.max_new_tokens <= run.window for _, prompt, options in asked] == [True] * 4
  # A longer message takes the place of more turns.
  long = "sat on the mat and saw the bird and all of the small grey town and a dog and the bird"
  prompts = [f"be\n\n{TURN * n}User: {long}\nAssistant:" for n in range(3)]
  fits = [len(run.tokenizer.encode(prompt)) + 8 < run.window for prompt in prompts]
  assert fits == [True, False, False]
  talk(run, ["the cat", "the cat", long], system="be")
  assert asked[-1][0] == prompts[0]


def test_a_message_that_does_not_fit_is_refused_and_forgotten(run, asked, caplog):
  talk(run, ["the cat", "a dog " * 30, "saw"])
  assert "the message does not fit: with it the prompt has" in caplog.text
  assert f"the window of {run.window} leaves 8 of them to the answer: shorten it" in caplog.text
  assert [text for text, _, _ in asked][1] == f"{TURN}User: saw\nAssistant:"


def test_reset_forgets_the_conversation(run, asked):
  talk(run, ["the cat", "/reset", "a dog"], system="be")
  assert [text for text, _, _ in asked][1] == "be\n\nUser: a dog\nAssistant:"


def test_ctrl_c_ends_an_answer_and_twice_the_program(run, asked, monkeypatch, capsys):
  whole = chatting.streamed

  def interrupted(*arguments):
    answer = whole(*arguments)
    yield next(answer)
    raise KeyboardInterrupt

  monkeypatch.setattr(chatting, "streamed", interrupted)
  with pytest.raises(KeyboardInterrupt):
    talk(run, ["the cat", "a dog", KeyboardInterrupt, "never read"])
  # What was there of the answer is part of the conversation.
  assert [text for text, _, _ in asked][1] == "User: the cat\nAssistant: sa\nUser: a dog\nAssistant:"
  assert len(asked) == 2 and capsys.readouterr().out == "sa\n" * 2
  with pytest.raises(KeyboardInterrupt):
    talk(run, [KeyboardInterrupt, KeyboardInterrupt])
  monkeypatch.setattr(chatting, "streamed", whole)
  talk(run, [KeyboardInterrupt, "the cat", KeyboardInterrupt, "/exit"])


def test_an_answer_is_what_the_model_generates_after_the_template(run, capsys):
  """On a real model: the names of special tokens are read, and no other symbol stands in front."""
  pytest.importorskip("jinja2", reason="pip install -e '.[chat]'")
  run.tokenizer.chat_template = CHATML.replace("<|im_start|>", "<s>").replace("<|im_end|>", "<mask>")
  options = Options(max_new_tokens=6, temperature=1.0)
  talk(run, ["the cat"], options)
  ids = run.tokenizer.encode("<s>user\nthe cat<mask>\n<s>assistant\n", reads_names=True)
  prompt = prompt_of(run.model, run.tokenizer, dataclasses.replace(run.symbols, begin=-1), ids)
  assert prompt.ids.tolist() == ids.tolist() and run.tokenizer.mask_id in ids
  options = dataclasses.replace(options, stop=("<mask>",))
  ((one,),) = continued(run.model, prepared(run.model, run.params), run.tokenizer, [prompt], options)
  assert capsys.readouterr().out.rstrip() == one.text.strip() != ""


def test_a_special_token_that_is_named_ends_a_text():
  run = run_of("gpt", kind="char")
  drawn = {"max_new_tokens": 24, "temperature": 1.0, "samples": 8}
  mask = run.tokenizer.mask_id
  (free,) = run.generate(["the"], **drawn)
  (cut,) = run.generate(["the"], stop=("<mask>",), **drawn)
  assert sum(mask in one.ids for one in free) >= 2
  for one, other in zip(free, cut, strict=True):
    count = one.ids.index(mask) + 1 if mask in one.ids else len(one.ids)
    assert other.ids == one.ids[:count] and (other.end == "end") == (mask in one.ids or one.end == "end")


def test_an_encoder_reads_the_conversation(asked):
  run = run_of("t5")
  longer = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, seq_len=128))
  talk(dataclasses.replace(run, config=longer), ["the cat", "a dog"])
  assert [run.tokenizer.decode(prompt.source) for _, prompt, _ in asked][1] == f"{TURN}User: a dog\nAssistant:"
  assert all(options.max_new_tokens == 8 for _, _, options in asked)


def test_what_cannot_be_a_conversation_is_refused_before_the_first_line(run):
  for broken, options, message in (
    (run_of("bert"), Options(), "family=bert reads in both directions"),
    (run, Options(beams=2), "a text is streamed as its tokens are chosen"),
    (run, Options(top_p=0.5), "top_p=0.5 chooses what is drawn"),
    (dataclasses.replace(run, tokenizer=None), Options(), "the run has no tokenizer"),
  ):
    with pytest.raises(UserError, match=message):
      Conversation(broken, options)


def test_the_window_is_what_the_model_was_trained_on_or_its_positions():
  run = run_of("llama", max_positions=64)
  assert (run.window, dataclasses.replace(run, imported=True).window) == (16, 64)
  assert run_of("t5").window == 16
  short = run_of("gpt", max_positions=8)
  assert short.window == 8
