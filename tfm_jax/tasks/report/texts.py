"""Errors of the form "texts"."""

import difflib
from collections.abc import Sequence
from html import escape

import numpy as np

from tfm_jax.runtime.reporting import page
from tfm_jax.tasks.report.parts import Row, lengths, passage, plain, section_by_length
from tfm_jax.tasks.scoring.texts import Texts, references_of

LEGEND = (
  '<ul class="legend"><li><mark class="predicted">not in the reference</mark></li>'
  '<li><mark class="label">not in the generated text</mark></li></ul>'
)


class TextsReport:
  """A `FormReport` of generated texts: every text that differs from its references counts as a mistake, by its chrF."""

  order = "The worst come first, by the chrF of the text alone."
  full = True

  def __init__(self, rows: Sequence[Row]) -> None:
    self._rows = rows
    self._labelled = [row for row in rows if row["label"] is not None]
    scored = Texts(self._labelled) if self._labelled else None
    self._language = scored.language if scored else "en"
    self._chrf = {id(row): value for row, value in zip(self._labelled, scored.sentence if scored else (), strict=True)}

  def mistakes(self) -> list[int]:
    """By ascending chrF."""
    wrong = [
      i for i, row in enumerate(self._rows)
      if row["label"] is not None and row["prediction"] not in references_of(row)
    ]  # fmt: skip
    return sorted(wrong, key=lambda i: self._chrf[id(self._rows[i])])

  def example(self, row: Row) -> str:
    """The source."""
    return passage(row.get("text", ""))

  def verdict(self, row: Row) -> str:
    """The generated text and the reference nearest to it, with what differs marked."""
    text = row["prediction"]
    if row["label"] is None:
      return passage(text, "generated")
    nearest = max(references_of(row), key=lambda one: self._matcher(text, one).ratio())
    generated, reference = self._marked(text, nearest)
    said = f"chrF {self._chrf[id(row)]:.1f}" if id(row) in self._chrf else ""
    several = f", the nearest of {len(references_of(row))}" if len(references_of(row)) > 1 else ""
    return (
      f'<p class="text"><span class="part">generated{f", {said}" if said else ""}</span>{generated}</p>'
      f'<p class="text"><span class="part">reference{several}</span>{reference}</p>'
    )

  def short(self, row: Row) -> tuple[str, str]:
    """The generated text and the first reference; the source."""
    return plain(f"{row['prediction']} | reference: {references_of(row)[0]}"), plain(row.get("text", ""))

  def sections(self) -> list[str]:
    """Lengths of texts and references, scores by the length of the source."""
    return [
      self._lengths(),
      section_by_length("texts", self._labelled, lambda row: row.get("text", ""), "source", language=self._language),
    ]

  def _lengths(self) -> str:
    """How long texts and references are."""
    ours, unit = lengths([row["prediction"] for row in self._labelled])
    theirs, _ = lengths([references_of(row)[0] for row in self._labelled])
    line = lambda name, sizes: [name, f"{np.mean(sizes):.1f}", f"{np.median(sizes):.0f}", f"{max(sizes):,}"]
    rows = [line("generated", ours), line("reference", theirs)]
    table = page.table(["text", "mean", "median", "longest"], rows)
    return page.section("Lengths", f"In {unit}; of several references the first.", table)

  def _pieces(self, text: str) -> list[str]:
    """Words, or in Chinese characters."""
    return list(text) if self._language == "zh" else text.split()

  def _matcher(self, text: str, reference: str) -> difflib.SequenceMatcher:
    return difflib.SequenceMatcher(None, self._pieces(text), self._pieces(reference), autojunk=False)

  def _marked(self, text: str, reference: str) -> tuple[str, str]:
    """HTML of both, with what the other lacks marked."""
    space = "" if self._language == "zh" else " "
    both = self._pieces(text), self._pieces(reference)
    sides: tuple[list[str], list[str]] = ([], [])
    for kind, *places in self._matcher(text, reference).get_opcodes():
      for side, pieces, (low, high), name in zip(
        sides, both, (places[:2], places[2:]), ("predicted", "label"), strict=True
      ):
        if low < high:
          part = escape(space.join(pieces[low:high]))
          side.append(part if kind == "equal" else f'<mark class="{name}">{part}</mark>')
    return tuple(space.join(side) or '<span class="empty">empty</span>' for side in sides)  # type: ignore[return-value]
