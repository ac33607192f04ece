"""How the pages of errors look, beyond what every page has."""

STYLE = """<style>
.cases { list-style: none; margin: 14px 0 0; padding: 0; }
.case { display: grid; grid-template-columns: 4.2rem minmax(0, 1fr) 310px; gap: 4px 18px; padding: 12px 0;
  border-top: 1px solid var(--line); }
.case.full { grid-template-columns: 4.2rem minmax(0, 1fr); }
.case > * { min-width: 0; }
.case.full > .verdict { grid-column: 2; }
.case > small { padding-top: 2px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.text { margin: 0 0 6px; overflow-wrap: anywhere; white-space: pre-line; }
.thumbnail { width: 96px; image-rendering: pixelated; vertical-align: middle; margin-right: 12px; }
.part { color: var(--soft); font-size: 0.78rem; display: block; }
ol.choices { margin: 0 0 6px; padding-left: 1.4rem; overflow-wrap: anywhere; }
.run { color: var(--soft); font-size: 0.78rem; font-weight: 600; margin: 6px 0 2px; overflow-wrap: anywhere; }
.run:first-child { margin-top: 0; }
.odds { display: grid; grid-template-columns: minmax(0, 9.4rem) minmax(60px, 1fr) minmax(3.1rem, max-content);
  gap: 3px 8px; align-items: center; font-size: 0.84rem; line-height: 1.3; font-variant-numeric: tabular-nums;
  margin: 0 0 6px; }
.odds > .name { overflow-wrap: anywhere; }
.odds > :nth-child(3n) { text-align: right; }
.full .odds { max-width: 34rem; grid-template-columns: minmax(0, 18rem) minmax(60px, 1fr) minmax(3.1rem, max-content); }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.matrix { width: auto; }
.matrix td, .matrix th { padding: 6px 9px; border: 1px solid var(--card); }
.matrix th:first-child, .matrix td:first-child { padding-left: 0; min-width: 5rem; max-width: 14rem; }
.matrix td:first-child { overflow-wrap: break-word; }
.turned { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; max-height: 11rem; overflow: hidden; }
.matrix th.n { vertical-align: bottom; }
.matrix td.n:has(.cell) { padding: 0; }
.cell { display: block; padding: 5px 9px; min-width: 3.2rem; print-color-adjust: exact; }
.cell small { display: block; font-size: 0.74rem; line-height: 1.1; color: inherit; opacity: 0.75; }
.dense { font-size: 0.78rem; }
.dense th.n, .dense td.n { padding-left: 3px; padding-right: 3px; }
.dense .cell { padding: 4px 5px; min-width: 0; }
.cell.hit { background: color-mix(in srgb, var(--c3) var(--part), transparent); }
.cell.miss { background: color-mix(in srgb, var(--bad) var(--part), transparent); }
.cell.even { background: color-mix(in srgb, var(--c5) var(--part), transparent); }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 18px 34px; }
.beside > * { min-width: 0; }
td:has(> .bar) { width: 38%; }
.kinds td:has(> .bar) { width: 20%; }
.sentence { line-height: 2; overflow-wrap: anywhere; }
mark { background: none; color: inherit; padding: 1px 3px; border-radius: 3px; -webkit-box-decoration-break: clone;
  box-decoration-break: clone; print-color-adjust: exact; }
mark.predicted { background: color-mix(in srgb, var(--bad) 26%, transparent); }
mark.label { border-bottom: 2.5px solid var(--good); border-radius: 3px 3px 0 0; }
mark.right { background: color-mix(in srgb, var(--c3) 24%, transparent); }
.tag { font-size: 0.7rem; font-weight: 600; margin: 0 5px 0 2px; white-space: nowrap; color: var(--soft); }
.tag.wrong { color: var(--bad); }
.scale { grid-template-columns: 5rem minmax(60px, 1fr) 3rem; }
.question { font-weight: 600; margin: 0 0 4px; overflow-wrap: anywhere; }
.empty { color: var(--soft); font-style: italic; }
details .text { margin-top: 4px; }
h3 { font-size: 0.95rem; margin: 16px 0 6px; }
@media (max-width: 760px) {
  .case, .case.full { grid-template-columns: minmax(0, 1fr); gap: 4px; }
  .case.full > .verdict { grid-column: 1; }
  td:has(> .bar) { width: 26%; }
  .bar { min-width: 44px; }
}
</style>
"""
