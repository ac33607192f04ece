"""How the page of a comparison looks: light or dark as the reader's system says, and on paper."""

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
h2 { font-size: 1.15rem; margin: 0 0 2px; }
p { margin: 0 0 10px; }
small, .soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin-top: 18px; }
section > p { color: var(--soft); max-width: 58rem; }
.facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 14px 0 0; }
.facts div { min-width: 0; }
.facts dt { color: var(--soft); font-size: 0.78rem; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.note { background: var(--note); border: 1px solid var(--note-line); border-left-width: 5px; border-radius: 8px;
  padding: 10px 16px; margin-top: 18px; }
.note p, .note ul { margin: 0; }
.note ul { padding-left: 1.1rem; }
.found { list-style: none; display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px;
  margin: 18px 0 0; padding: 0; }
.found li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 16px; }
.found small { display: block; font-size: 0.78rem; }
.found b { font-size: 1.1rem; margin-right: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.84rem; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; text-align: left; vertical-align: bottom; line-height: 1.25; }
th, td { padding: 6px 8px; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; }
tr > :last-child { padding-right: 0; }
tr:last-child > td { border-bottom: 0; }
td.n, th.n { text-align: right; }
td.n { white-space: nowrap; }
td.text { min-width: 7.2rem; }
.name { font-weight: 600; white-space: nowrap; }
.bad { color: var(--bad); font-weight: 600; }
.good { color: var(--good); font-weight: 600; }
tr.why td { padding-top: 0; color: var(--soft); overflow-wrap: anywhere; }
tr.said td { border-bottom: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; margin: 0 0 8px; padding: 0;
  font-size: 0.84rem; }
.key { display: inline-block; width: 13px; height: 13px; border-radius: 2px; margin-right: 6px; vertical-align: -1px; }
.chart { display: grid; grid-template-columns: minmax(6.5rem, max-content) minmax(0, 1fr) max-content;
  column-gap: 12px; align-items: center; font-size: 0.84rem; }
.label, .value { line-height: 1.2; padding: 3px 0; }
.label { max-width: 13rem; }
.label b, .chart small { display: block; }
.chart small { font-size: 0.74rem; }
.value { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.value.bad small { color: inherit; font-weight: 400; }
.reason { grid-column: 2 / 4; padding: 5px 0; min-height: 40px; align-content: center;
  line-height: 1.3; color: var(--soft); overflow-wrap: anywhere; }
svg { display: block; overflow: visible; font: 11px system-ui, "DejaVu Sans", sans-serif; }
.plot { position: relative; align-self: stretch; min-height: 40px; }
.plot > svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.plot.head, .plot.scale { min-height: 20px; }
.plot rect { stroke: var(--card); stroke-width: 1; }
.parameters, .all-gather, .compute, .median { fill: var(--c1); background: var(--c1); }
.optimizer, .reduce-scatter { fill: var(--c2); background: var(--c2); }
.gradients, .collective-permute { fill: var(--c3); background: var(--c3); }
.activations, .hbm, .all-reduce { fill: var(--c4); background: var(--c4); }
.temporaries, .other { fill: var(--c5); background: var(--c5); }
.communication, .all-to-all { fill: var(--c6); background: var(--c6); }
.plot rect.hidden { fill: url(#hatch); stroke: var(--c6); stroke-dasharray: 3 2; }
.key.hidden { border: 1px dashed var(--c6);
  background: repeating-linear-gradient(135deg, transparent 0 3px, var(--c6) 3px 4px); }
#hatch path { stroke: var(--c6); stroke-width: 1; }
.plot rect.beyond { fill: var(--bad-page); stroke: none; }
.plot > svg:has(.beyond) { overflow: hidden; }
.grid { stroke: var(--grid); }
line.limit { stroke: var(--bad); stroke-width: 1.5; }
text.limit { fill: var(--bad); font-weight: 600; }
.whisker, .tick { stroke: var(--ink); stroke-width: 1.5; }
.tick { stroke-width: 2.5; }
.key.tick { width: 3px; height: 15px; border-radius: 0; background: var(--ink); vertical-align: -3px; }
.scale text, .axis { fill: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 545px), 1fr)); gap: 26px 18px; }
.card { margin: 0; min-width: 0; }
.card p { color: var(--soft); font-size: 0.84rem; margin: 6px 0 0; }
.pair { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: flex-start; }
.piece { fill: hsl(var(--h) var(--strong) calc(var(--light) + var(--step) * var(--l))); stroke: var(--card);
  stroke-width: 2; }
.fine { stroke-width: 0.4; }
.bare { stroke: none; }
.absent { color: var(--soft); margin: 14px 0 0; }
.gone { opacity: 0.25; }
.held { fill: var(--held); font-size: 10.5px; }
.empty { position: absolute; width: 0; height: 0; }
summary { cursor: pointer; color: var(--soft); font-size: 0.9rem; }
details[open] summary { margin-bottom: 8px; }
footer { color: var(--soft); font-size: 0.8rem; margin-top: 18px; overflow-wrap: anywhere; }
@media (max-width: 950px) {
  main { padding: 20px 14px 36px; } section { padding: 16px 14px; }
  table { font-size: 0.71rem; }
  th, td { padding: 5px 3px; } td.bad { white-space: normal; } td.text { min-width: 5rem; }
}
@media print {
  body { background: none; } main { max-width: none; padding: 0; } section, .card { break-inside: avoid; }
}
"""
