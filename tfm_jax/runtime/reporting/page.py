"""Pages that need no other file and run no script: light or dark as the reader's system says, and on paper."""

from collections.abc import Mapping, Sequence
from html import escape

# Colours after Okabe and Ito: they differ for colour-blind readers too; the lightness of neighbours differs as well.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f5f7; --card: #ffffff; --ink: #1a1f28; --soft: #566072; --line: #d9dde4; --grid: #e7eaef;
  --c1: #0a5f9e; --c2: #57a9dd; --c3: #00875f; --c4: #e39b12; --c5: #8d96a5; --c6: #c2478c;
  --bad: #b3261e; --bad-page: #fdecea; --good: #0b6b47; --note: #fff6dd; --note-line: #e0b13c;
  --light: 86%; --step: -24%; --strong: 68%; --held: #10151d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11151b; --card: #1a2029; --ink: #e7ebf1; --soft: #a3adbb; --line: #333c49; --grid: #29313c;
    --c1: #3d8fd1; --c2: #8fd0f5; --c3: #2fb588; --c4: #f0b544; --c5: #7d8797; --c6: #e27fb6;
    --bad: #ff8f85; --bad-page: #3a1f1f; --good: #5fd3a4; --note: #302a18; --note-line: #a9842b;
    --light: 24%; --step: 18%; --strong: 42%; --held: #f3f6fa;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 2px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 2px; overflow-wrap: anywhere; }
p { margin: 0 0 10px; overflow-wrap: anywhere; }
small, .soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin-top: 18px; }
section > p { color: var(--soft); max-width: 58rem; }
.facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 14px 0 0; }
.facts div { min-width: 0; }
.facts dt { color: var(--soft); font-size: 0.78rem; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.84rem; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; text-align: left; vertical-align: bottom; line-height: 1.25; }
th, td { padding: 6px 8px; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; }
tr > :last-child { padding-right: 0; }
tr:last-child > td { border-bottom: 0; }
td.n, th.n { text-align: right; }
td.n { white-space: nowrap; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; margin: 0 0 8px; padding: 0;
  font-size: 0.84rem; }
.key { display: inline-block; width: 13px; height: 13px; border-radius: 2px; margin-right: 6px; vertical-align: -1px; }
svg { display: block; overflow: visible; font: 11px system-ui, "DejaVu Sans", sans-serif; }
.grid { stroke: var(--grid); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 26px 18px; }
.card { margin: 0; min-width: 0; }
summary { cursor: pointer; color: var(--soft); font-size: 0.9rem; }
details[open] summary { margin-bottom: 8px; }
footer { color: var(--soft); font-size: 0.8rem; margin-top: 18px; overflow-wrap: anywhere; }
.curve { width: 100%; height: auto; overflow: hidden; font-size: 12px; }
.curve text { fill: var(--soft); }
.curve .lines { overflow: hidden; }
.curve polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.curve .faint { stroke-width: 1; opacity: 0.3; }
.curve .dashed { stroke-dasharray: 6 5; }
.wide { min-width: 560px; }
.bar { display: block; position: relative; height: 11px; min-width: 70px; border-radius: 2px; background: var(--grid);
  print-color-adjust: exact; }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 2px; background: var(--c2); }
.bar i.good { background: var(--c3); } .bar i.bad { background: var(--bad); } .bar i.soft { background: var(--c5); }
.bar b { position: absolute; top: 2px; bottom: 2px; border: solid var(--ink); border-width: 0 1.5px; }
.bar b::after { content: ""; position: absolute; inset: 50% 0 auto; border-top: 1.5px solid var(--ink); }
.bar u { position: absolute; top: -2px; bottom: -2px; border-left: 2px solid var(--soft); }
@media (max-width: 950px) {
  main { padding: 20px 14px 36px; } section { padding: 16px 14px; }
  table { font-size: 0.71rem; }
  th, td { padding: 5px 3px; }
}
@media print {
  body { background: none; } main { max-width: none; padding: 0; } section, .card { break-inside: avoid; }
}
"""


_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "⏎"})


class Html(str):
  """Text that is HTML already: tables leave it as it is."""


def page(title: str, body: str, head: str = "") -> str:
  """An HTML document.

  Args:
    title: plain text.
    body: HTML, inside `main`.
    head: more HTML for the head.
  """
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n{head}</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n"
    "</html>\n"
  )


def frame(document: str, height: int = 900) -> str:
  """A page inside another one, such as a notebook's output, whose style it leaves alone. `height` is in pixels."""
  return f'<div><iframe srcdoc="{escape(document)}" width="100%" height="{height}" style="border: 0"></iframe></div>'


def header(title: str, intro: str, facts: Mapping[str, object]) -> str:
  """The head of a page: what it shows, and facts by name; those that are empty are left out. All are plain text."""
  items = "".join(
    f"<div><dt>{escape(name)}</dt><dd>{escape(str(fact))}</dd></div>" for name, fact in facts.items() if fact
  )
  return f'<header><h1>{escape(title)}</h1><p class="soft">{escape(intro)}</p><dl class="facts">{items}</dl></header>'


def section(title: str, explanation: str, body: str) -> str:
  """A section; its body is HTML, the rest plain text."""
  explained = f"<p>{escape(explanation)}</p>" if explanation else ""
  return f"<section><h2>{escape(title)}</h2>{explained}{body}</section>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1, kind: str = "") -> str:
  """A table; all but the first `text_columns` columns hold numbers, which stand to the right.

  Args:
    columns: their titles. Titles and cells are plain text, or `Html`.
    rows: cells.
    kind: a class of the style.
  """
  tags = ["" if i < text_columns else ' class="n"' for i in range(len(columns))]
  line = lambda tag, cells: "".join(
    f"<{tag}{number}>{html_of(cell)}</{tag}>" for number, cell in zip(tags, cells, strict=True)
  )
  body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
  of_kind = f' class="{kind}"' if kind else ""
  return f'<div class="scroll"><table{of_kind}><tr>{line("th", columns)}</tr>{body}</table></div>'


def visible(text: str) -> str:
  """A text with its blanks made visible."""
  return text.translate(_VISIBLE)


def html_of(text: str) -> str:
  """`Html` as it is, other text escaped."""
  return text if isinstance(text, Html) else escape(text)


def bar(share: float, low: float | None = None, high: float | None = None, kind: str = "", zero: float = 0.0) -> Html:
  """A horizontal bar, with its interval.

  Args:
    share: its length, from 0 to 1.
    low, high: ends of an interval on the same scale.
    kind: "" or a colour of the style: "good", "bad", "soft".
    zero: where the bar begins; a line marks it if that is not the left end.
  """
  place = lambda value: 100 * min(max(value, 0.0), 1.0)
  begin, end = sorted((place(zero), place(share)))
  colour = f' class="{kind}"' if kind else ""
  parts = f'<i{colour} style="left:{begin:.1f}%;width:{end - begin:.1f}%"></i>'
  if zero:
    parts += f'<u style="left:{place(zero):.1f}%"></u>'
  if low is not None and high is not None:
    parts += f'<b style="left:{place(low):.1f}%;right:{100 - place(high):.1f}%"></b>'
  return Html(f'<span class="bar">{parts}</span>')
