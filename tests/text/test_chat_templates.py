"""Conversations as text: templates as published models have them, the plain form, and what ends an answer."""

import json
import pickle

import pytest

from tests.support.chat_templates import CHATML, CONVERSATION, LATER, LLAMA2, NAMES, WRITTEN
from tfm_jax.errors import UserError
from tfm_jax.hf.tokenizer import read_tokenizer, write_tokenizer
from tfm_jax.text.tokenizers.chat import Form, rendered
from tfm_jax.text.tokenizers.library import LibraryTokenizer
from tfm_jax.text.tokenizers.table import TokenizerConfig, load_tokenizer, train_tokenizer

pytest.importorskip("jinja2", reason="pip install -e '.[chat]'")

TEXT = ["the cat sat on the mat: User Assistant system", "a dog ran\n\n### Instruction"] * 3


def tokenizer_of(template="", specials=(), kind="gpt2"):
  """A tokenizer with a template and further special tokens."""
  sizes = {"gpt2": 300, "sentencepiece": 300}
  tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=sizes.get(kind, 0)), TEXT)
  if specials:
    tokenizer._library.add_special_tokens(list(specials))
    tokenizer = LibraryTokenizer(tokenizer._library.to_str(), tokenizer.roles)
  tokenizer.chat_template = template
  return tokenizer


@pytest.mark.parametrize("template", WRITTEN, ids=["chatml", "llama2", "later"])
def test_templates_write_a_conversation_as_published_models_expect_it(template):
  assert rendered(template, CONVERSATION, NAMES) == WRITTEN[template]


def test_without_an_answer_to_follow_the_conversation_ends_after_its_last_message():
  assert rendered(CHATML, CONVERSATION, NAMES, answer=False) == WRITTEN[CHATML].removesuffix("<|im_start|>assistant\n")
  assert Form(tokenizer_of()).text(CONVERSATION[:2], answer=False) == "Be brief.\n\nUser: Hi <b>you</b>!\n"


def test_the_plain_form():
  form = Form(tokenizer_of())
  assert form.text(CONVERSATION) == "Be brief.\n\nUser: Hi <b>you</b>!\nAssistant: Hello.\nUser: Two\nlines\nAssistant:"
  assert form.stop == ("\nUser:",)
  # A message that names a special token is text.
  ids = form.encode("User: </s>")
  assert form.tokenizer.eos_id not in ids and form.tokenizer.decode(ids) == "User: </s>"


@pytest.mark.parametrize(
  ("template", "specials", "stop"),
  [
    (CHATML, ("<|im_start|>", "<|im_end|>"), ("<|im_end|>",)),
    (LLAMA2, (), ("</s>",)),
    # Not special in this vocabulary: a string.
    (CHATML, (), ("<|im_end|>",)),
    ("{% for m in messages %}\n\n### {{ m.role }}:\n{{ m.content }}{% endfor %}", (), ("\n### user:",)),
    ("{% for m in messages %}{{ m.content }}\n{% endfor %}", (), ()),
    ("no message at all", (), ()),
  ],
)
def test_what_ends_an_answer_is_read_from_the_template(template, specials, stop):
  assert Form(tokenizer_of(template, specials)).stop == stop


def test_special_tokens_of_a_template_become_their_ids():
  form = Form(tokenizer_of(CHATML, ("<|im_start|>", "<|im_end|>")))
  ids = form.encode(form.text(CONVERSATION[1:2])).tolist()
  start, end = (form.tokenizer._library.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
  assert ids[0] == start and ids.count(start) == 2 and ids.count(end) == 1
  assert form.tokenizer.bos_id not in ids  # the template has none


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{% for m in %}", "refuses the conversation: Expected an expression"),
    ("{{ raise_exception('no system here') }}", "refuses the conversation: no system here"),
    ("{{ messages.nothing.at.all }}", "refuses the conversation: .* has no attribute 'nothing'"),
    ("{{ ''.__class__.__mro__ }}", "refuses the conversation: access to attribute '__class__'"),
    ("{{ messages.append(1) }}", "refuses the conversation: access to attribute 'append' of 'list' object is unsafe"),
    ("{{ 1 / 0 }}", "is damaged: ZeroDivisionError: division by zero"),
    ("{{ messages[0].role + 1 }}", "is damaged: TypeError"),
  ],
)
def test_a_template_that_fails_or_reaches_for_more_is_refused(template, message):
  with pytest.raises(UserError, match=message):
    Form(tokenizer_of(template)).text(CONVERSATION)


def test_a_template_needs_jinja(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
  with pytest.raises(UserError, match=r"needs the package Jinja2: pip install -e '\.\[chat\]'"):
    Form(tokenizer_of(CHATML)).text(CONVERSATION)


@pytest.mark.parametrize("form", ["text", "list", "file", "both"])
@pytest.mark.parametrize("kind", ["gpt2", "char", "sentencepiece"])
def test_the_template_survives_import_saving_and_export(tmp_path, kind, form):
  """In tokenizer_config.json it is a text or a list of named ones; chat_template.jinja has precedence."""
  write_tokenizer(tokenizer_of(kind=kind), tmp_path / "theirs", "llama", 100)
  assert not (tmp_path / "theirs" / "chat_template.jinja").exists()
  assert read_tokenizer(tmp_path / "theirs").chat_template == ""
  path = tmp_path / "theirs" / "tokenizer_config.json"
  named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": LATER}]
  value = {"text": LATER, "list": named, "both": "of another time"}.get(form)
  path.write_text(json.dumps(json.loads(path.read_text()) | ({"chat_template": value} if value else {})))
  if form in ("file", "both"):
    (tmp_path / "theirs" / "chat_template.jinja").write_bytes(LATER.encode())
  ours = read_tokenizer(tmp_path / "theirs")
  ours.save(tmp_path / "run")
  kept = pickle.loads(pickle.dumps(load_tokenizer(tmp_path / "run")))
  write_tokenizer(kept, tmp_path / "exported", "llama", 100)
  again = read_tokenizer(tmp_path / "exported")
  assert (ours.chat_template, kept.chat_template, again.chat_template) == (LATER,) * 3
  assert ours.fingerprint == kept.fingerprint == again.fingerprint
  assert "chat_template" not in json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())


def test_a_template_that_is_no_text_is_damaged(tmp_path):
  write_tokenizer(tokenizer_of(), tmp_path, "llama", 100)
  path = tmp_path / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": 7}))
  with pytest.raises(UserError, match="is damaged: its chat_template is no text"):
    read_tokenizer(tmp_path)
