"""The surprisal of each token against plain forward passes, and the page that shows it."""

import dataclasses
import functools
import json
import math
import re

import numpy as np
import pytest

from tests.support.browser import headless
from tests.support.error_pages import sections, text_of, tree
from tests.support.generating import logits_after
from tests.support.generating import run_of as new_run_of
from tests.training.test_scoring import KINDS, TEXTS, log_softmax
from tests.training.test_scoring import make_run as new_run
from tfm_jax.decode import surprisal as module
from tfm_jax.decode.surprisal_page import surprisal_page
from tfm_jax.errors import UserError
from tfm_jax.models.config import replaced
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer

PROMPT, TEXT = "the cat", " sat on the mat"
run_of, make_run = functools.cache(new_run_of), functools.cache(new_run)


def check(token, logits):
  """A token's numbers are those of the logits in its place."""
  logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
  p = np.exp(logprobs)
  assert token.logprob == pytest.approx(logprobs[token.id], abs=2e-3)
  assert token.entropy == pytest.approx(-(p * logprobs).sum(), rel=1e-3)
  assert token.bits == pytest.approx(-np.log2(p[token.id]), abs=3e-3)
  above = (logprobs > logprobs[token.id] + 2e-3).sum()
  assert above < token.rank <= (logprobs >= logprobs[token.id] - 2e-3).sum()
  check_best(token.best, p)
  if token.rank <= len(token.best):
    assert token.best[token.rank - 1] == (token.piece, pytest.approx(math.exp(token.logprob), rel=1e-4))


def check_best(best, p):
  np.testing.assert_allclose([share for _, share in best], np.sort(p)[::-1][: len(best)], rtol=5e-3)


@pytest.mark.parametrize("variant", ["gpt", "t5"])
def test_each_token_is_a_forward_pass_of_what_comes_before(variant):
  run = run_of(variant)
  view = run.surprisal(TEXT, PROMPT, top=4)
  ids = [token.id for token in view.tokens]
  (scored,) = run.score([(PROMPT, TEXT)])
  assert ids == list(scored.ids)
  assert sum(token.logprob for token in view.tokens) == pytest.approx(scored.logprob, abs=1e-3)
  for i, token in enumerate(view.tokens):
    check(token, logits_after(run, PROMPT, ids[:i]))
    assert len(token.best) == 4 and token.piece == run.tokenizer.token(token.id)
  read = "".join(text for text, symbol in view.read if not symbol)
  assert read == PROMPT and "".join(token.text for token in view.tokens if not token.symbol).strip() == TEXT.strip()
  if variant == "t5":
    assert view.kind == "encoder-decoder" and view.tokens[-1].symbol and not view.following and view.read[-1][1]
  else:
    logits = logits_after(run, PROMPT, ids)
    check_best(view.following, np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
    assert view.kind == "decoder" and not any(token.symbol for token in view.tokens)


def test_of_an_encoder_each_token_is_masked_alone():
  run = make_run("rotary")
  prompt, text = "a dog ran", " the cat sat on the mat and saw all of the small grey bird in the town" * 2
  view = run.surprisal(text, prompt)
  tokenizer, before = run.tokenizer, len(run.tokenizer.encode(prompt))
  row = [tokenizer.bos_id, *tokenizer.encode(prompt + text), tokenizer.eos_id]
  ids = [token.id for token in view.tokens]
  assert ids == row[before + 1 : -1] and len(ids) > 32  # more than a batch
  for i in (0, 1, len(ids) // 2, len(ids) - 1):
    masked = list(row)
    masked[before + 1 + i] = tokenizer.mask_id
    check(view.tokens[i], log_softmax(run, masked)[before + 1 + i, : tokenizer.vocab_size])
  assert not view.following
  perplexity = run.perplexity(text)
  alone = run.surprisal(text)
  # `perplexity` also counts the ids beyond the tokenizer's.
  assert 2**alone.bits == pytest.approx(perplexity, rel=0.05)


def test_without_a_symbol_at_the_beginning_the_first_token_is_read():
  run = dataclasses.replace(run_of("gpt"), begin_id=-1)
  view = run.surprisal("the cat sat")
  count = len(run.tokenizer.encode("the cat sat"))
  assert len(view.tokens) == count - 1 and len(view.read) == 1


def test_nothing_follows_where_the_positions_end():
  run = run_of("gpt")  # of 32 positions
  text = run.tokenizer.decode(run.tokenizer.encode("the cat sat on the mat and saw the small grey bird " * 9)[:32])
  assert len(run.tokenizer.encode(text)) == 32
  view = run.surprisal(text)
  assert len(view.tokens) == 32 and not view.following
  with pytest.raises(UserError, match="the text has 33 tokens, but the model has 32 positions: shorten it"):
    run.surprisal(text + ".")


@pytest.mark.parametrize(
  ("kind", "text", "written"),
  [
    ("sentencepiece", "the cat\nsat é", ["the", " cat", "\n", "sat", " ", "<0xC3>", "<0xA9>"]),
    ("char", "a cat", list("a cat")),
  ],
)
def test_tokens_are_written_as_they_stand_in_the_text(kind, text, written):
  tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=KINDS[kind]), TEXTS)
  names = [name for name, _ in module._written(tokenizer, tokenizer.encode(text))]
  assert "".join(names).replace("<0xC3><0xA9>", "é") == text
  if kind == "char":
    assert names == written


# The page.


def test_the_page_has_each_token_on_its_colour_with_a_card():
  view = run_of("gpt").surprisal(TEXT, PROMPT)
  page = view.html()
  assert "<script" not in page and "http" not in page and "prefers-color-scheme: dark" in page
  labels = list(tree(page).iter("label"))
  assert len(labels) == len(view.tokens) + 1  # what comes next
  assert sum("checked" in label.find("input").attrib for label in labels) == 1
  blind = math.log2(view.vocab_size)
  for token, label in zip(view.tokens, labels, strict=False):
    shown, card = label.findall("span")
    assert shown.text == (token.text.lstrip() or token.text) and ("likeliest" in shown.get("class")) == (
      token.rank == 1
    )
    assert shown.get("style") == f"--a:{70 * min(token.bits / blind, 1):.0f}%"
    assert f"{token.bits:.2f} bits" in text_of(card)
    guesses = [text_of(one.find("span")) for one in card.findall("span")]
    assert guesses[:5] == [name for name, _ in token.best]
    assert guesses[5:] == ([f"{token.rank}. {token.piece}"] if token.rank > 5 else [])
    assert [one.text for one in card.iter("b")][1:] in ([token.piece], [f"{token.rank}. {token.piece}"])
  (section,) = sections(page).values()
  assert [row.findtext("td/span") for row in list(section.iter("tr"))[1:-1]] == [token.piece for token in view.tokens]


def test_text_is_escaped():
  run = run_of("gpt")
  view = run.surprisal("<b>&amp;")
  text_of(tree(view.html()))
  assert "<b>&amp;amp;" not in view.html() and "&lt;" in view.html()
  assert view._repr_html_().startswith("<div><iframe srcdoc=") and view._repr_html_().count("<") == 4


def test_several_texts_have_a_section_each():
  run = run_of("t5")
  found = sections(surprisal_page([run.surprisal("sat", "the cat"), run.surprisal("ran", "a dog")]))
  assert list(found) == ["Text 1", "Text 2"] and "a dog" in text_of(found["Text 2"])


def without_head(run):
  config = replaced(run.model.config, {"head.name": "none"})
  return dataclasses.replace(run, model=dataclasses.replace(run.model, config=config))


@pytest.mark.parametrize(
  ("variant", "call", "message"),
  [
    ("gpt", lambda run: run.surprisal(""), "the text is empty: there is nothing to score"),
    ("gpt", lambda run: run.surprisal("a", top=0), "top=0 is not between 1 and"),
    ("t5", lambda run: run.surprisal("a"), "the prompt is empty: the encoder needs at least one token"),
    ("bert", lambda run: run.surprisal(""), "the text is empty"),
    ("bert", lambda run: run.surprisal("a [MASK]"), "the text has a mask"),
    ("bert", lambda run: run.surprisal("the cat " * 30), "but the model has 32 positions"),
    ("llama", lambda run: run.surprisal("the cat " * 600), "a page shows at most 1,024: shorten it"),
    ("bert", lambda run: without_head(run).surprisal("a"), "head.name=none, which predicts no tokens"),
  ],
)
def test_refusals(variant, call, message):
  with pytest.raises(UserError, match=message):
    call(make_run(variant, begin_id=2, start_id=0))


POINT = """<script>addEventListener("load", () => {
  const cards = [...document.querySelectorAll(".guesses")], e = document.documentElement;
  const seen = () => cards.map((x, i) => getComputedStyle(x).display === "none" ? -1 : i).filter(i => i >= 0);
  const first = seen().length;
  document.querySelectorAll("label")[1].click();
  const place = cards[1].getBoundingClientRect(), inside = place.left >= 0 && place.right <= e.clientWidth;
  document.title = JSON.stringify({first, second: seen(), overflow: e.scrollWidth - e.clientWidth, inside}); });
</script></body>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser_a_click_on_a_token_opens_its_card(width, tmp_path):
  browser = headless(tmp_path / "profile")
  page = tmp_path / "page.html"
  text = "the cat sat on the mat and saw the small grey bird"
  page.write_text(run_of("gpt").surprisal(text).html().replace("</body>", POINT), encoding="utf-8")
  title = re.search(r"<title>(\{.*?\})</title>", browser(page, width, "--dump-dom"))[1]
  assert json.loads(title) == {"first": 1, "second": [1], "overflow": 0, "inside": True}
