"""How the page of a comparison looks, beyond what every page has."""

from tfm_jax.runtime.reporting import page

STYLE = (
  page.STYLE
  + """
.note { background: var(--note); border: 1px solid var(--note-line); border-left-width: 5px; border-radius: 8px;
  padding: 10px 16px; margin-top: 18px; }
.note p, .note ul { margin: 0; }
.note ul { padding-left: 1.1rem; }
.findings { list-style: none; display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px;
  margin: 18px 0 0; padding: 0; }
.findings li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 16px; }
.findings small { display: block; font-size: 0.78rem; }
.findings b { font-size: 1.1rem; margin-right: 4px; }
td.text { min-width: 7.2rem; }
.name { font-weight: 600; white-space: nowrap; }
.bad { color: var(--bad); font-weight: 600; }
.good { color: var(--good); font-weight: 600; }
tr.why td { padding-top: 0; color: var(--soft); overflow-wrap: anywhere; }
tr.explained td { border-bottom: 0; }
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
line.limit { stroke: var(--bad); stroke-width: 1.5; }
text.limit { fill: var(--bad); font-weight: 600; }
.whisker, .tick { stroke: var(--ink); stroke-width: 1.5; }
.tick { stroke-width: 2.5; }
.key.tick { width: 3px; height: 15px; border-radius: 0; background: var(--ink); vertical-align: -3px; }
.scale text, .axis { fill: var(--soft); }
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
@media (max-width: 950px) { td.bad { white-space: normal; } td.text { min-width: 5rem; } }
"""
)
