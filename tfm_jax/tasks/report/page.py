"""The page of errors: what a model gets wrong on a file of labelled examples."""

from collections.abc import Mapping, Sequence

from tfm_jax.runtime.reporting import page
from tfm_jax.tasks.report import answers, tags, texts
from tfm_jax.tasks.report.forms import FORMS
from tfm_jax.tasks.report.parts import NEAR_OR_FAR, FormReport, Row, cases, scores_table
from tfm_jax.tasks.report.style import STYLE

MISTAKES = 30  # shown at most
UNLABELLED = 20
LEGENDS = {"tags": tags.LEGEND, "answers": answers.LEGEND, "texts": texts.LEGEND}


def errors_page(
  form: str, rows: Sequence[Row], scores: Mapping[str, float], title: str, facts: Mapping[str, object]
) -> str:
  """One self-contained HTML document: scores, the worst mistakes, and where they are.

  Args:
    form: "classes", "numbers", "tags", "answers" or "texts".
    rows: those of predictions.jsonl; without any label the page only shows predictions.
    scores: of `tfm_jax.tasks.scores.score`.
    title: plain text.
    facts: by name, for the head of the page; plain text.
  """
  report = FORMS[form](rows)
  labelled = sum(row["label"] is not None for row in rows)
  known = {"examples": f"{len(rows):,}", "without a label": f"{len(rows) - labelled:,}" if labelled < len(rows) else ""}
  if labelled:
    intro = "What the model gets wrong. Rows are those of predictions.jsonl."
    explained = "Thin marks are 95% bootstrap intervals over the examples."
    sections = [page.section("Scores", explained, scores_table(scores)), _mistakes(form, report, rows, labelled)]
    sections += report.sections()
  else:
    intro = "No example has a label" + (": the scores need none." if scores else ", so nothing is scored.")
    shown = cases(report, [(n, row) for n, row in enumerate(rows[:UNLABELLED], 1)])
    sections = [page.section("Scores", "", scores_table(scores))] if scores else []
    sections += [page.section("Predictions", f"The first {min(len(rows), UNLABELLED)}.", shown)] if rows else []
  return document(title, intro, dict(facts) | known, sections)


def document(title: str, intro: str, facts: Mapping[str, object], sections: Sequence[str]) -> str:
  """The page; what no encoding can hold, such as half of a surrogate pair, becomes a question mark."""
  body = "\n".join([page.header(title, intro, facts), *filter(None, sections)])
  return page.page(title, body, head=STYLE).encode("utf-8", "replace").decode("utf-8")


def _mistakes(form: str, report: FormReport, rows: Sequence[Row], labelled: int) -> str:
  """The worst mistakes."""
  wrong = report.mistakes()
  if not wrong:
    return page.section("Mistakes", "", f"<p>None: all {labelled:,} predictions are right.</p>")
  shown = [(i + 1, rows[i]) for i in wrong[:MISTAKES]]
  what = "sentences" if form == "tags" else "examples"
  count = f"{len(wrong):,} of {labelled:,} {what} are wrong ({len(wrong) / labelled:.1%}). "
  if form in NEAR_OR_FAR:
    count = ""
  title = "Mistakes" if len(wrong) <= MISTAKES else f"The {len(shown)} worst mistakes"
  return page.section(title, count + report.order, LEGENDS.get(form, "") + cases(report, shown))
