"""The maps of all heads of an attention stack: small images, and one of them enlarged, chosen by radio buttons."""

from collections.abc import Sequence
from html import escape

import numpy as np

from tfm_jax.tasks.looking.images import data_uri, shades

_LONG = 36  # tokens from which on an enlarged map takes the whole width

MAP_STYLE = """
.maps { display: flex; flex-wrap: wrap; gap: 18px 28px; align-items: flex-start; }
.maps > * { min-width: 0; max-width: 100%; }
.small { flex: 0 1 auto; overflow-x: auto; }
.small table { width: auto; border-collapse: separate; border-spacing: 3px; }
.small th { border: 0; padding: 0 4px 0 0; text-align: center; font-size: 0.74rem; white-space: nowrap;
  vertical-align: middle; }
.small td { border: 0; padding: 0; }
.small label { position: relative; display: block; }
.small input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.map { background-size: 100% 100%; background-repeat: no-repeat; image-rendering: pixelated;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.small .map { display: block; width: var(--small); height: var(--small); border-radius: 2px;
  border: 1px solid var(--line); }
.small .map:hover { border-color: var(--ink); }
.small input:checked + .map { outline: 2px solid var(--ink); outline-offset: 0; }
.small input:focus-visible + .map { outline: 3px solid var(--more); }
.large { flex: 1 1 480px; position: sticky; top: 12px; }
.wide-map .large { flex-basis: 100%; position: static; }
.large p { font-size: 0.84rem; color: var(--soft); min-height: 3em; max-width: 58rem; }
.large p b { color: var(--ink); }
.axes { overflow: auto; max-height: 88vh; }
.axes > div { display: grid; width: max-content; grid-template-columns: auto auto; font-size: var(--font);
  line-height: var(--cell); }
.keys { display: flex; align-items: flex-end; }
.keys span { writing-mode: vertical-rl; transform: rotate(180deg); width: var(--cell); line-height: var(--cell);
  padding-top: 4px; max-height: 9em; overflow: hidden; white-space: pre; }
.queries span { display: block; height: var(--cell); text-align: right; padding-right: 4px; max-width: 11em;
  overflow: hidden; white-space: pre; }
.large .map { border: 1px solid var(--line); position: relative; }
.large .map::after { content: ""; position: absolute; inset: 0; background-size: var(--cell) var(--cell);
  background-image: linear-gradient(var(--grid) 1px, transparent 1px),
    linear-gradient(90deg, var(--grid) 1px, transparent 1px); opacity: 0.7; }
.large .said { display: none; }
"""


def maps(
  name: str, weights: np.ndarray, layers: Sequence[int], queries: list[str], keys: list[str], symbols: np.ndarray
) -> str:
  """Small maps of all heads, layer by layer, and an enlarged one with tokens on both axes.

  Args:
    name: of the stack, for the ids of elements: letters.
    weights: [N, H, T, S].
    layers: the layers shown.
    queries, keys: T and S tokens.
    symbols: which keys are symbols, bool [S].
  """
  heads = weights.shape[1]
  longest = max(len(queries), len(keys))
  cell = 22 if longest <= 18 else 16 if longest <= _LONG else 12
  small = 96 if heads <= 4 else 72 if heads <= 6 else 52 if heads <= 10 else 40
  rules, rows, captions = [], [], []
  chosen = True
  for n in layers:
    cells = []
    for h in range(heads):
      id = f"{name}-{n}-{h}"
      # The image stands once in the page: small, and large while its button is checked.
      large = f"#{name}:has(#{id}:checked) .large"
      rules.append(f'.{id},{large} .map{{background-image:url("{data_uri(shades(weights[n, h]))}")}}')
      rules.append(f"{large} .c{id}{{display:inline}}")
      captions.append(f'<span class="said c{id}">{_caption(name, n, h, weights[n, h], symbols)}</span>')
      button = f'<input type="radio" name="{name}" id="{id}"{" checked" if chosen else ""}>'
      cells.append(f'<td><label title="layer {n}, head {h}">{button}<span class="map {id}"></span></label></td>')
      chosen = False
    rows.append(f"<tr><th>{n}</th>{''.join(cells)}</tr>")
  head = "".join(f"<th>{h}</th>" for h in range(heads))
  labels = lambda tokens: "".join(f"<span>{escape(token)}</span>" for token in tokens)
  size = f"width:calc(var(--cell)*{len(keys)});height:calc(var(--cell)*{len(queries)})"
  return (
    f"<style>{''.join(rules)}</style>"
    f'<div class="maps{" wide-map" if longest > _LONG else ""}" id="{name}" '
    f'style="--cell:{cell}px;--font:{min(cell - 1, 13)}px;--small:{small}px">'
    f'<div class="small"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    f'<div class="large"><p>{"".join(captions)}</p><div class="axes"><div class="names"><div></div>'
    f'<div class="keys">{labels(keys)}</div><div class="queries">{labels(queries)}</div>'
    f'<div class="map" style="{size}"></div></div></div></div></div>'
  )


def _caption(name: str, layer: int, head: int, weights_TS: np.ndarray, symbols: np.ndarray) -> str:
  """What a head attends to, in figures: means over its queries."""
  w = weights_TS.astype(np.float64)
  entropy = -(w * np.log(np.where(w > 0, w, 1))).sum(-1)
  figures = [f"greatest weight {np.max(w):.2f}", f"a query spreads over {np.exp(entropy).mean():.1f} keys"]
  if name != "cross":
    nearby = {"itself": 0, "the token before": -1, "the token after": 1}
    for who, offset in nearby.items():
      figures.append(f"{np.trace(w, offset) / len(w):.0%} on {who}")
  if symbols.any():
    figures.append(f"{w[:, symbols].sum(-1).mean():.0%} on symbols")
  return f"<b>Layer {layer}, head {head}</b>: {', '.join(figures)}"
