"""The attention page: prediction and saliency, ablation, and the maps of all heads. It runs no script."""

import typing
from collections.abc import Sequence
from html import escape

import numpy as np

from tfm_jax.runtime.reporting.page import header, page, section
from tfm_jax.tasks.looking.maps import MAP_STYLE, maps
from tfm_jax.tasks.looking.saliency import FORMULA

if typing.TYPE_CHECKING:
  from tfm_jax.tasks.looking.ablation import Ablation
  from tfm_jax.tasks.looking.look import Look
  from tfm_jax.tasks.looking.prediction import Prediction, Target

_TARGETS = 24  # shown one by one
TITLES = {
  "": "Attention",
  "encoder": "Attention of the encoder",
  "decoder": "Attention of the decoder",
  "cross": "Cross-attention: the decoder's tokens over the encoder's",
}

STYLE = """
:root { --more: #2f86d0; --less: #d98513; }
.guesses { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 210px), 1fr)); gap: 14px 22px; }
.guesses h3 { font-size: 0.84rem; margin: 0 0 3px; color: var(--soft); overflow-wrap: anywhere; }
.bar { display: flex; justify-content: space-between; gap: 10px; padding: 1px 6px; margin-bottom: 2px;
  font-size: 0.84rem; border-radius: 3px; font-variant-numeric: tabular-nums;
  background: linear-gradient(90deg, color-mix(in srgb, var(--more) 42%, transparent) var(--p), var(--grid) var(--p)); }
.bar span:first-child { overflow-wrap: anywhere; min-width: 0; }
.tokens { line-height: 2; margin: 4px 0 10px; overflow-wrap: anywhere; }
.tokens span { padding: 2px 3px; margin-right: 2px; border-radius: 3px; white-space: pre-wrap;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.plus { background: color-mix(in srgb, var(--more) var(--a), transparent); }
.minus { background: color-mix(in srgb, var(--less) var(--a), transparent); }
.tokens, .bar span:first-child, .names { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.84rem; }
.heat { width: auto; margin: 6px 0 4px; }
.heat th, .heat td { border: 0; padding: 0 2px 2px 0; text-align: center; }
.heat th { vertical-align: middle; padding: 2px 8px 2px 0; font-size: 0.78rem; white-space: nowrap; }
.heat td > * { display: block; min-width: 52px; padding: 5px 4px; border-radius: 3px; }
.heat .flip { font-weight: 700; text-decoration: underline; }
label { cursor: pointer; }
.ramp { display: inline-block; width: 200px; height: 10px; border-radius: 3px; margin: 0 8px; vertical-align: 0;
  background: linear-gradient(90deg, color-mix(in srgb, var(--less) 70%, transparent), transparent 50%,
    color-mix(in srgb, var(--more) 70%, transparent)); }
h3 { font-size: 0.95rem; margin: 16px 0 4px; }
"""


def attention_page(look: "Look", sides: dict[str, tuple[list[str], ...]]) -> str:
  """The page of a look.

  Args:
    look: what it shows.
    sides: attention stack -> the tokens of its queries and of its keys.
  """
  parts = []
  if look.prediction is None:
    intro = f"The head {look.example.model.config.head.name} has no prediction to explain: only attention is shown."
  else:
    intro = f"The model {look.prediction.kind}."
    parts += [_prediction(look.prediction), _saliency(look), _ablation(look)]
  for stack, weights in look.attention.items():
    layers = [layer for layer in look.layers if layer < len(weights)]
    queries, keys = sides[stack]
    symbols = look.example.is_symbol("encoder" if stack == "cross" else stack)
    body = maps(stack or "self", weights, layers, queries, keys, symbols)
    explanation = (
      "Rows are layers, columns heads. In each map a row is a query, a column a key; the shade is the square root of "
      "the weight, relative to the greatest weight of that map. Click a map to enlarge it; arrow keys go through them."
    )
    parts.append(section(TITLES[stack], explanation, body))
  text = " ".join(look.example.text.split())
  title = text if len(text) <= 120 else text[:117] + "..."
  return page(
    f"Looking at: {title}", header(title, intro, look.facts) + "".join(parts), f"<style>{STYLE}{MAP_STYLE}</style>"
  )


def _prediction(prediction: "Prediction") -> str:
  """The likeliest choices of each target."""
  probable = prediction.quantity != "value"
  cards = "".join(_card(target, probable) for target in prediction.targets[:_TARGETS])
  rest = len(prediction.targets) - _TARGETS
  more = f'<p class="soft">and {rest} more</p>' if rest > 0 else ""
  answer = f"<p>Answer: <b>{escape(prediction.answer)}</b></p>" if prediction.answer else ""
  explanation = "The likeliest choices with their probabilities." if probable else "What the model estimates."
  return section("Prediction", explanation, f'{answer}<div class="guesses">{cards}</div>{more}')


def _card(target: "Target", probable: bool) -> str:
  """One target's choices as bars; the one that is explained is bold."""
  bars = []
  for name, number in target.best:
    share, shown = (number, f"{number:.1%}") if probable else (0.0, f"{number:.4g}")
    name = escape(name)
    name = f"<b>{name}</b>" if name == escape(target.name) else name
    bars.append(f'<div class="bar" style="--p:{share:.1%}"><span>{name}</span><span>{shown}</span></div>')
  return f"<div><h3>{escape(target.where)}</h3>{''.join(bars)}</div>"


def _saliency(look: "Look") -> str:
  """The tokens, coloured by their saliency for all targets together, then for each."""
  assert look.saliency is not None and look.prediction is not None
  total, each, targets = look.saliency.total, look.saliency.each, look.prediction.targets
  explanation = (
    f"Gradient × input: {FORMULA}, where x(t) is the embedding of token t (what the first block reads: with position "
    f"and norm) and f the {look.prediction.quantity} of the prediction. Blue tokens raise it, orange ones lower it, to "
    f"first order. Point at a token for its number."
  )
  body = _coloured(look, total)
  if len(targets) > 1:
    shown = min(len(targets), len(next(iter(each.values()))))
    one_by_one = "".join(
      f"<h3>{escape(target.where)}: {escape(target.name)}</h3>" + _coloured(look, {s: x[j] for s, x in each.items()})
      for j, target in enumerate(targets[:shown])
    )
    first = "each" if shown == len(targets) else f"the first {shown}"
    together = f"<p>For the sum of all {len(targets)} predictions:</p>"
    body = f"{together}{body}<details><summary>For {first} of them alone</summary>{one_by_one}</details>"
  return section("Saliency", explanation, body)


def _coloured(look: "Look", values: dict[str, np.ndarray]) -> str:
  """The tokens of each side, coloured; the scale is common to the sides."""
  top = max(float(np.abs(x).max()) for x in values.values())
  lines = []
  for side, x in values.items():
    spans = "".join(_token(token, float(s), top) for token, s in zip(look.example.tokens(side), x, strict=True))
    name = f"<small>{side}</small> " if side else ""
    lines.append(f'<div class="tokens">{name}{spans}</div>')
  ends = f'<small>{-top:.3g}<span class="ramp"></span>{top:+.3g}</small>'
  return "".join(lines) + ends


def _token(token: str, value: float, top: float) -> str:
  """A token on its colour."""
  return f'<span class="{_sign(value)}" style="--a:{_depth(value, top)}" title="{value:+.4f}">{escape(token)}</span>'


def _ablation(look: "Look") -> str:
  """The heat maps of all stacks, with one scale."""
  assert look.ablation is not None and look.prediction is not None
  top = max(float(np.abs(one.change).max()) for one in look.ablation.values())
  quantity, count = look.prediction.quantity, len(look.prediction.targets)
  what = f"the {quantity} of the prediction" if count == 1 else f"the {quantity} of all {count} predictions together"
  explanation = (
    f"The change of {what} when the output of one head is set to zero. Orange: the prediction needs the head; blue: it "
    f"would be surer without. Bold and underlined: another choice becomes the likeliest. Click a number to choose the "
    f"head's map below."
  )
  body = "".join(_heat(stack, one, top, look.layers) for stack, one in look.ablation.items())
  return section("Heads, removed one at a time", explanation, body)


def _heat(stack: str, one: "Ablation", top: float, mapped: Sequence[int]) -> str:
  """One stack's changes as a table, layers by heads."""
  layers, heads = one.change.shape
  head = "".join(f"<th>{h}</th>" for h in range(heads))
  rows = []
  for n in range(layers):
    cells = []
    for h in range(heads):
      value, flips = float(one.change[n, h]), int(one.flips[n, h])
      flip = f"; {flips} of the predictions change" if flips else ""
      attributes = f'class="{_sign(value)}{" flip" if flips else ""}" style="--a:{_depth(value, top)}"'
      attributes += f' title="layer {n}, head {h}: {value:+.4f}{flip}"'
      tag = f'label for="{stack or "self"}-{n}-{h}"' if n in mapped else "span"
      cells.append(f"<td><{tag} {attributes}>{value:+.2f}</{tag.split()[0]}></td>")
    rows.append(f"<tr><th>layer {n}</th>{''.join(cells)}</tr>")
  title = f"<h3>{escape(TITLES[stack])}</h3>" if stack else ""
  return f'{title}<div class="scroll"><table class="heat"><tr><th>head</th>{head}</tr>{"".join(rows)}</table></div>'


def _sign(value: float) -> str:
  return "minus" if value < 0 else "plus"


def _depth(value: float, top: float) -> str:
  """How strong a colour is, at most 70 %, so that text on it stays legible."""
  return f"{70 * abs(value) / top if top else 0:.0f}%"
