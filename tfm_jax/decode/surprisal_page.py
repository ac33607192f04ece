"""The page of surprisal: texts whose tokens are coloured, with what the model expected. It runs no script."""

import math
import typing
from collections.abc import Sequence
from html import escape

import numpy as np

from tfm_jax.runtime.reporting.page import Html, bar, header, page, section, table, visible

if typing.TYPE_CHECKING:
  from tfm_jax.decode.surprisal import Surprisal, Token

Guesses = Sequence[tuple[str, float]]

_BEGINNING = 60  # tokens that are seen without scrolling
_GIVEN = {
  "decoder": "the tokens before it",
  "encoder-decoder": "the source and the tokens before it",
  "masked": "all other tokens of the text, masked one at a time",
}

# A card appears at the height of its token, in a column that the text leaves free; on narrow pages below the text.
STYLE = """<style>
:root { --hot: #d98513; --first: #2f86d0; }
.reading, .source, .numbers, .scale { padding-right: 275px; max-width: none; }
.reading { position: relative; font-size: 1.06rem; line-height: 2.05;
  overflow-wrap: anywhere; white-space: pre-wrap; margin-top: 10px; }
.reading.opened { min-height: 185px; }
.reading label { cursor: pointer; }
.reading input { position: absolute; opacity: 0; width: 1px; height: 1px; margin: 0; }
.token { padding: 3px 0; border-radius: 3px; background: color-mix(in srgb, var(--hot) var(--a), transparent);
  border-bottom: 2px solid transparent; box-decoration-break: clone; -webkit-box-decoration-break: clone;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.likeliest { border-bottom-color: var(--first); }
.symbol { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.8em; padding-inline: 3px; }
.read { color: var(--soft); }
label:hover .token { outline: 2px solid var(--ink); }
input:checked + .token { outline: 2px solid var(--soft); }
input:focus-visible + .token { outline: 2px solid var(--ink); }
.guesses { display: none; position: absolute; right: 0; width: 255px; margin-top: -85px; padding: 10px 12px;
  z-index: 1; background: var(--card); border: 1px solid var(--line); border-radius: 8px; font-size: 0.84rem;
  line-height: 1.45; white-space: normal; cursor: default; box-shadow: 0 3px 14px rgb(0 0 0 / 12%); }
input:checked ~ .guesses, label:hover .guesses { display: block; }
.reading:has(label:hover) label:not(:hover) .guesses { display: none; }
.guesses small { display: block; margin-bottom: 6px; }
.guess { display: flex; justify-content: space-between; gap: 10px; padding: 1px 6px; margin-bottom: 2px;
  border-radius: 3px; font-variant-numeric: tabular-nums; background:
  linear-gradient(90deg, color-mix(in srgb, var(--first) 42%, transparent) var(--p), var(--grid) var(--p)); }
.guess > :first-child, .piece { font-family: ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.guess > :first-child { min-width: 0; }
.scale { font-size: 0.84rem; color: var(--soft); display: flex; flex-wrap: wrap; gap: 4px 26px; margin: 0 0 4px; }
.ramp { display: inline-block; width: 140px; height: 11px; border-radius: 3px; margin: 0 8px; vertical-align: -1px;
  background: linear-gradient(90deg, transparent, color-mix(in srgb, var(--hot) 70%, transparent));
  border: 1px solid var(--line); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.source { font-size: 0.95rem; white-space: pre-wrap; color: var(--soft); overflow-wrap: anywhere; margin: 8px 0 0; }
.numbers { font-variant-numeric: tabular-nums; }
.expected td:last-child, .expected th:last-child { text-align: left; white-space: normal; }
.expected td:has(> .bar) { width: 14%; }
details { margin-top: 12px; }
@media (max-width: 820px) {
  .reading, .source, .numbers, .scale { padding-right: 0; }
  .reading, .reading.opened { min-height: 0; padding-bottom: 250px; }
  .guesses { right: auto; left: 0; bottom: 0; margin: 0; width: min(100%, 360px); }
}
@media print { .guesses { display: none !important; } .reading, .reading.opened { padding: 0; min-height: 0; } }
</style>"""


def surprisal_page(views: Sequence["Surprisal"]) -> str:
  """The page of one or several texts, all read by the same run."""
  first, several = views[0], len(views) > 1
  bits = math.log2(first.vocab_size)
  intro = f"How surprising each token of the text is to the model, given {_GIVEN[first.kind]}."
  explanation = (
    f"Surprisal is −log₂ of a token's probability, in bits. A token that the model was sure of has no colour; one that "
    f"surprises as much as a blind guess among {first.vocab_size:,} pieces, {bits:.1f} bits, has all of it. Point at a "
    f"token or tap it for what the model expected in its place; the arrow keys go through them."
  )
  scale = (
    f'<p class="scale"><span>0 bits<span class="ramp"></span>{bits:.1f} bits or more</span>'
    f'<span><span class="token likeliest" style="--a:0%">underlined</span>: what the model would have chosen</span></p>'
  )
  parts = [
    section(f"Text {number + 1}" if several else "The text", "" if number else explanation, body)
    for number, view in enumerate(views)
    for body in [("" if number else scale) + _body(view, number)]
  ]
  title = "Surprisal, token by token"
  return page(title, header(title, intro, first.facts) + "".join(parts), STYLE)


def _body(view: "Surprisal", number: int) -> str:
  """One text: its figures, its coloured tokens, and the table behind them."""
  read = "".join(_symbol(text) if symbol else escape(text) for text, symbol in view.read)
  # The card of one token is open, for those who do not know yet that there are cards.
  opened = -1 if number else int(np.argmax([token.bits for token in view.tokens[:_BEGINNING]]))
  labels = [_label(token, number, i == opened, view.vocab_size) for i, token in enumerate(view.tokens)]
  if view.following:
    labels.append(_following(view.following, number))
  if view.kind == "encoder-decoder":
    source, before = f'<p class="source"><small>source</small> {read}</p>', ""
  else:
    source, before = "", f'<span class="read">{read}</span>'
  return (
    f'<p class="numbers">{_figures(view)}</p>{source}'
    f'<div class="reading{"" if number else " opened"}">{before}{"".join(labels)}</div>'
    f"<details><summary>As a table</summary>{_table(view)}</details>"
  )


def _figures(view: "Surprisal") -> str:
  count, nats = len(view.tokens), -sum(token.logprob for token in view.tokens)
  likeliest = sum(token.rank == 1 for token in view.tokens) / count
  pseudo = "pseudo-" if view.kind == "masked" else ""
  figures = [
    f"<b>{count:,}</b> tokens",
    f"<b>{view.bits:.2f}</b> bits each",
    f"{pseudo}perplexity <b>{math.exp(min(nats / count, 700)):,.1f}</b>",
    f"{pseudo}log-likelihood <b>{-nats:,.2f}</b> nats",
    f"<b>{likeliest:.0%}</b> were the likeliest token",
  ]
  return " · ".join(figures)


def _label(token: "Token", number: int, chosen: bool, vocab_size: int) -> str:
  """A token on its colour, with its card."""
  depth = 70 * min(token.bits / math.log2(vocab_size), 1.0)
  classes = f"token{' likeliest' if token.rank == 1 else ''}{' symbol' if token.symbol else ''}"
  text = visible(token.text) if token.symbol else token.text.replace("\r", "").replace("\n", "⏎\n")
  space = " " * (len(text) - len(text.lstrip(" "))) if text.strip() else ""  # that of a word has no colour
  summary = f"{token.bits:.2f} bits; {token.entropy / math.log(2):.2f} were expected"
  checked = ' checked=""' if chosen else ""
  button = f'<input type="radio" name="text-{number}"{checked}/>'
  card = f'<b class="piece">{escape(visible(token.piece))}</b> <small>{summary}</small>{_guesses(token.best, token)}'
  return (
    f'<label>{button}{space}<span class="{classes}" style="--a:{depth:.0f}%">{escape(text[len(space) :])}</span>'
    f'<span class="guesses">{card}</span></label>'
  )


def _following(following: Guesses, number: int) -> str:
  """What comes after the text."""
  card = f"<b>What comes next</b>{_guesses(following)}"
  return (
    f'<label><input type="radio" name="text-{number}"/><span class="token symbol" style="--a:0%">…</span>'
    f'<span class="guesses">{card}</span></label>'
  )


def _guesses(guesses: Guesses, token: "Token | None" = None) -> str:
  """The likeliest pieces as bars, and the token itself below them if it is none of them."""
  lines = [_guess(visible(name), p, bold=token is not None and name == token.piece) for name, p in guesses]
  if token and token.piece not in [name for name, _ in guesses]:
    lines.append(_guess(f"{token.rank:,}. {visible(token.piece)}", math.exp(token.logprob), bold=True))
  return "".join(lines)


def _guess(name: str, p: float, bold: bool) -> str:
  name = f"<b>{escape(name)}</b>" if bold else escape(name)
  return f'<span class="guess" style="--p:{p:.1%}"><span>{name}</span><span>{escape(_percent(p))}</span></span>'


def _table(view: "Surprisal") -> str:
  """All tokens with their numbers."""
  top = max(token.bits for token in view.tokens)
  rows = [
    [
      Html(f'<span class="piece">{escape(visible(token.piece))}</span>'),
      bar(token.bits / top if top else 0.0),
      f"{token.bits:.2f}",
      _percent(math.exp(token.logprob)),
      f"{token.rank:,}",
      f"{token.entropy / math.log(2):.2f}",
      _listed(token.best),
    ]
    for token in view.tokens
  ]
  if view.following:
    rows.append(["what comes next", "", "", "", "", "", _listed(view.following)])
  return table(
    ["token", "surprisal", "bits", "probability", "rank", "bits expected", "the likeliest"], rows, 2, "expected"
  )


def _listed(guesses: Guesses) -> Html:
  return Html(
    ", ".join(f'<span class="piece">{escape(visible(name))}</span> {escape(_percent(p))}' for name, p in guesses)
  )


def _symbol(name: str) -> str:
  return f'<span class="symbol">{escape(visible(name))}</span>'


def _percent(p: float) -> str:
  return f"{p:.1%}" if p >= 0.001 else "<0.1%"
